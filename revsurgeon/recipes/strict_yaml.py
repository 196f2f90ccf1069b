"""YAML as plain data with line numbers, and nothing else: no tags, no aliases, no bombs.

PyYAML composes and constructs recursively and expands aliases, so neither is used: the events
of its parser are read one by one, under limits, and the data is built here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import yaml

MAX_BYTES = 1 << 20
MAX_DEPTH = 32
MAX_VALUES = 20_000

Path = tuple[str | int, ...]

_PREFIX = "tag:yaml.org,2002:"
_FLOAT = re.compile(r"[-+]?(?:\d[\d_]*(?:\.[\d_]*)?|\.\d[\d_]*)(?:[eE][-+]?\d+)?")
_INTEGER = re.compile(r"[-+]?(?:0|[1-9][\d_]*)")
# YAML 1.1 reads 1e-3 as text, for want of a dot. Nobody who writes it means text.
_EXPONENT = re.compile(r"[-+]?(?:\d[\d_]*(?:\.[\d_]*)?|\.\d[\d_]*)[eE][-+]?\d+\Z")

# A text of several lines that is safe as a literal block, for example a JSON file.
_BLOCK = re.compile(r"[\w{\[](?:[ -~]*[!-~])?(?:\n|\n[ -~]*[!-~])+", re.ASCII)


class YamlError(ValueError):
    """What is wrong with a YAML text, in which line, and the fix."""

    def __init__(self, what: str, line: int, hint: str) -> None:
        super().__init__(what)
        self.what = what
        self.line = line
        self.hint = hint


@dataclass(frozen=True)
class Document:
    """The data of a YAML text and the line (from 1) on which each value stands."""

    data: Any
    lines: dict[Path, int]

    def line(self, path: Path) -> int:
        """The line of a value, or of the nearest value around it."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)


class _Loader(yaml.SafeLoader):
    """PyYAML's scanner and resolver; its constructor is never called."""


class _Dumper(yaml.SafeDumper):
    """Writes what `parse_yaml` reads: no aliases, sequences indented, long texts as blocks."""

    def ignore_aliases(self, data: object) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = None
    if _BLOCK.fullmatch(text):
        style = "|"
    elif not text.isprintable():  # PyYAML would write some line breaks of Unicode as they are
        style = '"'
    return dumper.represent_scalar(f"{_PREFIX}str", text, style=style)


for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver(f"{_PREFIX}float", _EXPONENT, list("-+.0123456789"))
_Dumper.add_representer(str, _represent_text)


def dump_yaml(data: Any) -> str:
    """Plain data as YAML that `parse_yaml` reads back equal, in the order it is given."""
    return str(
        yaml.dump(
            data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110, default_flow_style=False
        )
    )


def parse_yaml(
    text: str, *, max_bytes: int = MAX_BYTES, max_depth: int = MAX_DEPTH, max_values: int = MAX_VALUES
) -> Document:
    """Read one YAML document of mappings, sequences, text, numbers, booleans and null.

    Raises:
        YamlError: bad syntax, a duplicate or non-text key, a tag, an anchor, an alias, a date, or
            more bytes, depth or values than allowed.
    """
    if len(text) > max_bytes or len(text.encode("utf-8", "surrogatepass")) > max_bytes:
        raise YamlError(f"the file is larger than {max_bytes:,} bytes", 1, "is it the right file?")
    try:
        return _build(_Loader(text), max_depth, max_values)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = error.problem or error.context or "bad syntax"
        raise YamlError(f"not valid YAML: {what}", mark.line + 1 if mark else 1, _SYNTAX_HINT) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, int(error.position)) + 1
        raise YamlError(
            f"not valid YAML: the character {chr(error.character)!r} is not allowed", line, "remove it."
        ) from None
    except YamlError:
        raise
    except (ValueError, OverflowError):  # an escape such as "\\UFFFFFFFF", a version of 5,000 digits
        raise YamlError("not valid YAML: a number or an escape is out of range", 1, _SYNTAX_HINT) from None


_SYNTAX_HINT = "check the indentation, the brackets and the quotes there."


def _build(loader: _Loader, max_depth: int, max_values: int) -> Document:
    lines: dict[Path, int] = {}
    stack: list[dict[str, Any] | list[Any]] = []  # the open containers
    keys: list[str | None] = []  # for each of them: the key whose value comes next
    path: list[str | int] = []
    root: Any = None
    count = documents = 0
    while loader.check_event():
        event = loader.get_event()
        line = event.start_mark.line + 1 if event.start_mark else 1
        if isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents > 1:
                raise YamlError("there is more than one document", line, "remove the ---.")
        if isinstance(event, yaml.CollectionEndEvent):
            stack.pop()
            keys.pop()
            if path:
                path.pop()
        if not isinstance(event, yaml.NodeEvent):
            continue
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            raise YamlError("anchors and aliases (& and *) are not allowed", line, "write the value out.")
        count += 1
        if count > max_values:
            raise YamlError(f"there are more than {max_values:,} values", line, "is it the right file?")
        value = _value(loader, event, line)
        parent = stack[-1] if stack else None
        if isinstance(parent, dict) and keys[-1] is None:
            if not isinstance(value, str):
                raise YamlError(
                    f"the key {_short(value)} is not text", line, "put keys that are not words in quotes."
                )
            if value in parent:
                raise YamlError(f"the key {_short(value)} stands there twice", line, "remove one of the two.")
            keys[-1] = value
            lines[(*path, value)] = line
            continue
        if isinstance(parent, dict):
            key = keys[-1]
            assert key is not None
            parent[key] = value
            keys[-1] = None
            path.append(key)
        elif isinstance(parent, list):
            path.append(len(parent))
            parent.append(value)
            lines[tuple(path)] = line
        else:
            root = value
            lines[()] = line
        if isinstance(value, (dict, list)):
            if len(stack) >= max_depth:
                raise YamlError(f"the nesting is deeper than {max_depth}", line, "is it the right file?")
            stack.append(value)
            keys.append(None)
        elif path:
            path.pop()
    return Document(root, lines)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _value(loader: _Loader, event: yaml.NodeEvent, line: int) -> Any:
    tag = getattr(event, "tag", None)
    if tag not in (None, "!"):
        raise YamlError(
            f"the tag {_short(tag)} is not allowed", line, "remove the tag; only plain data is read."
        )
    if isinstance(event, yaml.MappingStartEvent):
        return {}
    if isinstance(event, yaml.SequenceStartEvent):
        return []
    assert isinstance(event, yaml.ScalarEvent)
    return _scalar(loader, event, line)


def _scalar(loader: _Loader, event: yaml.ScalarEvent, line: int) -> str | int | float | bool | None:
    text = event.value
    kind = loader.resolve(yaml.ScalarNode, text, event.implicit).removeprefix(_PREFIX)
    if kind == "str" or event.tag == "!":
        return text
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() in ("yes", "true", "on")
    if kind == "int" and _INTEGER.fullmatch(text) and len(text) < 4000:
        return int(text)
    if kind == "float" and _FLOAT.fullmatch(text) and len(text) < 4000:
        return float(text)
    shown = text if len(text) <= 40 else text[:37] + "..."
    raise YamlError(
        f"{shown!r} is neither a plain number nor plain text", line, "put it in quotes if it is text."
    )
