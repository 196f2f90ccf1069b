"""The error map: from any exception to what is wrong, where, what to do next, and an exit code."""

from __future__ import annotations

import errno
import sys
from dataclasses import asdict, dataclass

import typer

from revsurgeon.errors import RevsurgeonError

INTERRUPTED = 130  # 128 + SIGINT, as shells count
BROKEN_PIPE = 141  # 128 + SIGPIPE

_OUT_OF_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@dataclass(frozen=True)
class Failure:
    """An error as the command line shows it; `kind` is the exception's class name."""

    kind: str
    what: str
    where: str | None
    hint: str | None
    exit_code: int

    def text(self) -> str:
        """Return the lines for a person: what, where (indented), what to do next."""
        lines = [f"{self.kind}: {self.what}"]
        lines += [f"  {line}" for line in (self.where or "").splitlines()]
        return "\n".join(lines + ([self.hint] if self.hint else []))

    def document(self) -> dict[str, object]:
        """Return the JSON document that stands for the result of a command that failed."""
        error = asdict(self)
        return {"error": error, "exit_code": error.pop("exit_code")}


def describe(error: BaseException) -> Failure:
    """Return what to tell the user about an exception.

    Errors that the package raises on purpose already say everything. What is left are the
    operating system's, an exhausted memory, a command line that does not parse, and defects.
    """
    kind = type(error).__name__
    if isinstance(error, RevsurgeonError):
        return Failure(kind, error.what, error.where, error.hint, error.exit_code)
    if isinstance(error, typer.TyperException):
        # Typer checks values with pydantic, and passes on how pydantic opens its messages.
        what = error.format_message().replace("Value error, ", "")
        return Failure("UsageError", what, None, _help_for(error), error.exit_code)
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return Failure("Interrupted", "stopped by Ctrl-C.", None, None, INTERRUPTED)
    if isinstance(error, MemoryError) or _is_torch_out_of_memory(error):
        return Failure(
            "OutOfMemory",
            "the memory of this machine or device does not suffice.",
            str(error).splitlines()[0] if str(error) else None,
            "Close other programs, or take a smaller --input; inspect needs no memory for weights.",
            1,
        )
    if isinstance(error, BrokenPipeError):
        return Failure(kind, "the reader of this output went away.", None, None, BROKEN_PIPE)
    if isinstance(error, OSError):
        return _describe_os_error(error)
    if isinstance(error, ModuleNotFoundError) and error.name:
        hint = f"Install it: pip install {error.name.partition('.')[0]}"
        return Failure(kind, f"the Python module {error.name!r} is missing.", None, hint, 1)
    return Failure(
        kind,
        str(error) or "no message was given.",
        _innermost_frame(error),
        "This is unexpected. Run the command again with --debug for the traceback, "
        "and report it with that traceback in revsurgeon's issue tracker.",
        1,
    )


def _describe_os_error(error: OSError) -> Failure:
    kind = type(error).__name__
    what = f"{error.strerror or error}."
    names = [str(name) for name in (error.filename, error.filename2) if name is not None]
    where = "\n".join(names) or None
    if isinstance(error, ConnectionError | TimeoutError) or _is_http_error(error):
        hint = "Check the network connection; what is already in the cache works with HF_HUB_OFFLINE=1."
        return Failure(kind, what, where, hint, 5)
    if error.errno in _OUT_OF_SPACE:
        return Failure(kind, what, where, "Free some space, or write elsewhere with --output.", 1)
    if isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError | FileExistsError):
        return Failure(kind, what, where, "Check the path for a typing error.", 2)
    if isinstance(error, PermissionError):
        return Failure(kind, what, where, "Check who may read or write this path.", 2)
    return Failure(kind, what, where, "Run the command again with --debug for the traceback.", 1)


def _help_for(error: typer.TyperException) -> str:
    """Return the command whose help explains the usage that the error is about."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "revsurgeon"
    return f"See how it is used: {command} --help"


def _is_torch_out_of_memory(error: BaseException) -> bool:
    torch = sys.modules.get("torch")  # an error of torch's implies that torch has been imported
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def _is_http_error(error: OSError) -> bool:
    hub = sys.modules.get("huggingface_hub.errors")
    return hub is not None and isinstance(error, hub.HfHubHTTPError | hub.OfflineModeIsEnabled)


def _innermost_frame(error: BaseException) -> str | None:
    trace = error.__traceback__
    if trace is None:
        return None
    while trace.tb_next is not None:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
