"""Options of a call or a command line that stand in for what a recipe says."""

from __future__ import annotations

from typing import Any

from revsurgeon.errors import UsageError
from revsurgeon.recipes.schema import Recipe


def overridden(recipe: Recipe, **options: Any) -> Recipe:
    """The recipe with some of its keys replaced.

    Args:
        recipe: stays as it is.
        options: values by key; None leaves the recipe's.

    Raises:
        UsageError: a value that the key does not take.
    """
    given = {key: list(v) if isinstance(v, tuple) else v for key, v in options.items() if v is not None}
    if not given:
        return recipe
    if isinstance(given.get("start"), list):
        given["start"] = dict(zip(("alpha", "beta"), map(float, given["start"]), strict=True))
        given.setdefault("max_drift", None)  # the recipe's belonged to its own search
    from pydantic import ValidationError

    try:
        return Recipe.model_validate({**recipe.model_dump(), **given})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise UsageError(
            f"{first['loc'][0]}: {first['msg']}", hint=(first.get("ctx") or {}).get("hint")
        ) from None
