"""Finding recipe files and presets, and reading them with errors that name the line and the fix."""

from __future__ import annotations

import os
from difflib import get_close_matches
from pathlib import Path

from pydantic import ValidationError

from revsurgeon.errors import RecipeError
from revsurgeon.recipes.mistakes import located
from revsurgeon.recipes.schema import Recipe
from revsurgeon.recipes.strict_yaml import MAX_BYTES, YamlError, parse_yaml

_DEFAULTS = {"dr2": "dr2-hold", "re2": "re2"}


def load_recipe(name_or_path: str | Path | None, mode: str = "dr2") -> Recipe:
    """Read and validate a recipe.

    Args:
        name_or_path: a preset's name, a YAML file's path, or None for the default of `mode`. A text with
            a path separator or ending in .yaml or .yml is a path; any other is a preset's name first.
        mode: "dr2" or "re2"; it only chooses the default. A recipe that is named has its own mode.

    Raises:
        RecipeError: there is no such recipe, or it is not valid; `where` names file, line and key.
    """
    if name_or_path is None:
        if mode not in _DEFAULTS:
            raise RecipeError(f"There is no mode {mode!r}.", hint="The modes are dr2 and re2.")
        name_or_path = _DEFAULTS[mode]
    if isinstance(name_or_path, str) and not _is_path(name_or_path):
        presets = preset_names()
        if name_or_path in presets:
            return _validated(preset_text(name_or_path), f"recipes/{name_or_path}.yaml")
        if not os.path.isfile(name_or_path):
            near = get_close_matches(name_or_path, presets, n=1)
            guess = f"Did you mean {near[0]!r}? " if near else ""
            raise RecipeError(
                f"There is no recipe {name_or_path!r}.",
                hint=f"{guess}The presets are {', '.join(presets)}. "
                "A recipe of your own is given by its path.",
            )
    path = Path(name_or_path)
    return _validated(_read(path), str(path))


def preset_names() -> list[str]:
    """The names of the shipped recipes, sorted."""
    return sorted(path.stem for path in _preset_folder().glob("*.yaml"))


def preset_text(name: str) -> str:
    """A shipped recipe's YAML, comments and all.

    Raises:
        RecipeError: there is no preset of that name.
    """
    if name not in preset_names():
        raise RecipeError(
            f"There is no preset {name!r}.", hint=f"The presets are {', '.join(preset_names())}."
        )
    return (_preset_folder() / f"{name}.yaml").read_text(encoding="utf-8")


def _preset_folder() -> Path:
    """The presets: inside an installed package, or at the top level of a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "presets"
    return installed if installed.is_dir() else package.parent / "recipes"


def _is_path(text: str) -> bool:
    return "/" in text or "\\" in text or text.endswith((".yaml", ".yml"))


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)  # the parser refuses what is longer, /dev/zero included
    except OSError as error:
        raise RecipeError(
            f"The recipe cannot be read: {error.strerror}.",
            where=str(path),
            hint="Give the path of a YAML file, or a preset's name: revsurgeon recipes list",
        ) from None
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if len(raw) > MAX_BYTES:
            return raw.decode("utf-8", "replace")
        line = raw.count(b"\n", 0, error.start) + 1
        raise RecipeError(
            "The recipe is not UTF-8 text.", where=f"{path}:{line}", hint="Save the file as UTF-8."
        ) from None


def _validated(text: str, file: str) -> Recipe:
    try:
        document = parse_yaml(text)
    except YamlError as mistake:
        what = f"The recipe cannot be read: {mistake.what}."
        raise RecipeError(what, where=f"{file}:{mistake.line}", hint=_sentence(mistake.hint)) from None
    if not isinstance(document.data, dict):
        raise RecipeError(
            "The recipe is not a mapping of keys to values.",
            where=f"{file}:{document.line(())}",
            hint="Start from a preset: revsurgeon recipes show dr2-balanced > my.yaml",
        )
    try:
        return Recipe.model_validate(document.data)
    except ValidationError as error:
        raise located(error, document, file) from None


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]
