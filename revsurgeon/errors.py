"""Every error a user can meet: what is wrong, where, and what to do next.

The exit codes are part of the public contract: 1 an unexpected failure, 2 bad usage or bad
input, 3 verification failed, 4 nothing in the model can be rewired, 5 the Hub or the network.
"""

from __future__ import annotations


class RevsurgeonError(Exception):
    """Base of all errors that revsurgeon raises on purpose.

    Args:
        what: one sentence that says what is wrong.
        where: the place it was found (a path, a module's name, a line), one item a line.
        hint: what to do next, as an instruction or a command.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str | None = None, hint: str | None = None) -> None:
        super().__init__(what, where, hint)
        self.what = what
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines += [f"  {line}" for line in self.where.splitlines()]
        if self.hint:
            lines.append(self.hint)
        return "\n".join(lines)

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only arguments do not survive the default pickling of exceptions.
        return (_rebuild, (type(self), self.what, self.where, self.hint))


def _rebuild(kind: type[RevsurgeonError], what: str, where: str | None, hint: str | None) -> RevsurgeonError:
    return kind(what, where=where, hint=hint)


class UsageError(RevsurgeonError):
    """An option or an argument that makes no sense."""

    exit_code = 2


class RecipeError(RevsurgeonError):
    """A recipe that cannot be read or does not validate."""

    exit_code = 2


class ArtifactError(RevsurgeonError):
    """A converted checkpoint that cannot be written, read or trusted."""

    exit_code = 2


class SourceError(RevsurgeonError):
    """A source that does not exist or cannot be turned into a network."""

    exit_code = 2


class HubError(SourceError):
    """The Hub or the network did not deliver."""

    exit_code = 5


class UnsupportedModelError(RevsurgeonError):
    """Nothing (or nothing asked for) in the network can be rewired."""

    exit_code = 4


class VerificationError(RevsurgeonError):
    """A rewired network that is not equal to the one it came from."""

    exit_code = 3


class ChainBrokenError(RevsurgeonError):
    """A chain was not run the way it was rewired, so its streams would be wrong."""
