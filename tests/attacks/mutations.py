"""Wrong inputs made of right ones: bytes that are changed, and structures in which values are."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

_BYTES = (
    *(
        b"",
        b"\x00",
        b"\xff",
        b"\xc3\x28",
        b"\xed\xa0\x80",
        b"\r",
        b"\t",
        b"\n",
        b"{",
        b"}",
        b"[",
        b"]",
        b'"',
        b":",
        b",",
    ),
    *(
        b"-1",
        b"1e999",
        b"NaN",
        b"null",
        b"true",
        b"&a ",
        b"*a",
        b"!!python/name:os.system ",
        b"<<: ",
        b"---\n",
        b"? ",
    ),
    *(
        b"9" * 40,
        b"0x7fffffffffffffff",
        b"../../../etc/passwd",
        b"\\ud800",
        b"\\u0000",
        b"{{{{",
        b"[[[[",
        b"| \n",
        b"%YAML 9.9\n",
    ),
    *(
        (2**63).to_bytes(8, "little"),
        (2**64 - 1).to_bytes(8, "little"),
        bytes(8),
        b"__metadata__",
        b"revsurgeon",
    ),
)
"""What is put into a file: pieces of the formats, and what parsers are known to stumble over."""

_VALUES: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        2**31,
        2**53 + 1,
        2**63,
        2**64,
        -(2**63),
        10**400,
        0.0,
        -0.0,
        1e-320,
        0.5,
        1e308,
    ),
    *(
        "",
        "x",
        "0",
        "../../x",
        "/etc/passwd",
        "\x00",
        "\ud800",
        "python:os:abort",
        "auto",
        "re2",
        "dr2",
        "F32",
        "a" * 3000,
    ),
    *([], {}, [[]], [None], {"": None}, {"a": {"b": {"c": []}}}, [1] * 50, "0" * 64, [0, 0], [2**62, 2**62]),
)
"""What is put in the place of a value."""


def changed_bytes(raw: bytes, chance: random.Random) -> bytes:
    """Bytes with one to five changes: flipped, cut out, doubled, moved, or made a piece of a format."""
    data = bytearray(raw)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 5))):
        at = chance.randrange(len(data) + 1)
        to = min(len(data), at + chance.choice((1, 1, 2, 4, 8, 30, 300)))
        kind = chance.randrange(6)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            del data[at:to]
        elif kind == 2:
            data[at:at] = data[at:to] * chance.choice((1, 2, 50))
        elif kind == 3:
            data[at:to] = chance.choice(_BYTES)
        elif kind == 4:
            data[at:at] = chance.choice(_BYTES) * chance.choice((1, 1, 3, 200))
        elif data:
            other = chance.randrange(len(data))
            data[at:to] = data[other : other + to - at]
    return bytes(data)


def changed_structure(value: Any, chance: random.Random) -> Any:
    """Plain data with one to three changes: another value, a key that is missing, doubled or another."""
    value = copy.deepcopy(value)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        container, key = _place(value, chance)
        if container is None:
            return chance.choice(_VALUES)
        kind = chance.randrange(6)
        if kind == 0:
            del container[key]
        elif kind == 1 and isinstance(container, dict):
            container[chance.choice(("extra", "", "tensors", "\x00", "a" * 300))] = container.pop(key)
        elif kind == 1:
            container.insert(key, copy.deepcopy(container[key]))
        elif kind == 2:
            container[key] = [container[key]]
        elif kind == 3:
            container[key] = {"x": container[key]}
        else:
            container[key] = copy.deepcopy(chance.choice(_VALUES))
    return value


def _place(value: Any, chance: random.Random) -> tuple[Any, Any]:
    """A container and a key in it, somewhere in the data; (None, None) where there is none."""
    container, key = None, None
    while isinstance(value, dict | list) and value:
        container = value
        key = chance.choice(list(value)) if isinstance(value, dict) else chance.randrange(len(value))
        value = container[key]
        if chance.random() < 0.25:
            break
    return container, key


def as_json(value: Any) -> bytes:
    """JSON of plain data, with what JSON does not have in it: lone surrogates, NaN."""
    return json.dumps(value).encode("ascii")
