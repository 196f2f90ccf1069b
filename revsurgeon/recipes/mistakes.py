"""From pydantic's validation errors to an error that names file, line, key, value and the fix."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from revsurgeon.errors import RecipeError
from revsurgeon.recipes.schema import Recipe
from revsurgeon.recipes.strict_yaml import Document, Path

_KINDS = {
    "float_type": "a number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "string_type": "text",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "finite_number": "a finite number",
}


@dataclass(frozen=True)
class Mistake:
    """One thing that is wrong: where, what, and the fix."""

    place: str
    what: str
    hint: str


def located(error: ValidationError, document: Document, file: str) -> RecipeError:
    """The error for people: one mistake in full, or several with a line each."""
    mistakes = [_mistake(details, document, file) for details in error.errors(include_url=False)]
    mistakes.sort(key=lambda mistake: int(mistake.place.removeprefix(f"{file}:").split()[0]))
    if len(mistakes) == 1:
        (only,) = mistakes
        return RecipeError(f"The recipe is not valid: {only.what}.", where=only.place, hint=only.hint)
    return RecipeError(
        f"The recipe is not valid: {len(mistakes)} mistakes.",
        where="\n".join(f"{mistake.place}: {mistake.what}" for mistake in mistakes),
        hint="\n".join(dict.fromkeys(mistake.hint for mistake in mistakes)),
    )


def _mistake(details: ErrorDetails, document: Document, file: str) -> Mistake:
    context = details.get("ctx") or {}
    path: Path = details["loc"]
    if path[:1] == ("start",) and path[1:2] in (("point",), ("auto",)):
        path = (path[0], *path[2:])  # pydantic's name for the form of it, which is no key
    if context.get("key"):
        path = (*path, context["key"])
    line = document.line(path)
    path = tuple(part if isinstance(part, int) else _short(part) for part in path)
    key = ".".join(map(str, path))
    what, hint = _words(details, context, path)
    place = f"{file}:{line}" + (f" {key}" if key else "")
    return Mistake(place, what, hint[0].upper() + hint[1:])


def _words(details: ErrorDetails, context: dict[str, Any], path: Path) -> tuple[str, str]:
    kind, value = details["type"], _shown(details["input"])
    name = ".".join(map(str, path)) or "the recipe"
    if kind == "recipe":
        problem = context["problem"]
        return (problem if path and problem.startswith(str(path[-1])) else f"{name}: {problem}"), context[
            "hint"
        ]
    if kind == "extra_forbidden":
        keys = _keys(path[:-1])
        near = get_close_matches(str(path[-1]), keys, n=1)
        guess = f"did you mean {near[0]!r}? " if near else ""
        return f"{name!r} is not a key of a recipe", f"{guess}The keys here are {', '.join(keys)}."
    if kind == "missing":
        example = {"start": "start: {alpha: 0.9, beta: 0.1}", "mode": "mode: dr2", "name": "name: my-recipe"}
        return f"{name} is missing", f"add `{example.get(str(path[-1]), f'{path[-1]}: ...')}`."
    if kind == "literal_error":
        expected = context["expected"]
        near = get_close_matches(str(details["input"]), expected.replace("'", " ").split(), n=1)
        guess = f"did you mean {near[0]!r}? " if near else ""
        return f"{name} is {value}", f"{guess}It is one of {expected}."
    bounds = _bounds(kind, context, name)
    if bounds:
        return f"{name} is {value}, which is {bounds[0]}", bounds[1]
    if path == ("start",) and isinstance(details["input"], str):
        return f"{name} is {value}, neither auto nor a mapping", "write `auto`, or alpha and beta."
    if kind in _KINDS:
        return f"{name} is {value}, not {_KINDS[kind]}", f"write {_KINDS[kind]} there."
    if kind in ("too_short", "string_too_short"):
        return f"{name} is empty", "give it at least one entry, or remove the key for the default."
    return f"{name} is {value}: {details['msg']}", "see the field's description: revsurgeon recipes schema"


def _bounds(kind: str, context: dict[str, Any], name: str) -> tuple[str, str] | None:
    signs = {
        "greater_than_equal": ("ge", "below", "at least"),
        "greater_than": ("gt", "not above", "above"),
        "less_than_equal": ("le", "above", "at most"),
    }
    if kind not in signs:
        return None
    bound, wrong, right = signs[kind]
    if name.endswith((".alpha", ".beta")):
        return "outside [0, 1]", "use a number from 0 to 1."
    limit = f"{context[bound]:g}"
    return f"{wrong} {limit}", f"use a number {right} {limit}."


def _keys(path: Path) -> list[str]:
    """The keys that the schema has at a path."""
    model: type[BaseModel] = Recipe
    for part in path:
        field = model.model_fields.get(str(part))
        inner = [field.annotation, *get_args(field.annotation)] if field else []
        model = next((t for t in inner if isinstance(t, type) and issubclass(t, BaseModel)), model)
    return list(model.model_fields)


def _shown(value: object) -> str:
    return _short(repr(value))


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."
