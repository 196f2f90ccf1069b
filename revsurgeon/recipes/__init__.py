"""Recipes: what to rewire and with which coefficients and schedule, as data.

A recipe is a YAML file (the presets lie in the top-level folder `recipes/`), validated whole, with
line numbers, before anything is downloaded. A new preset is one more file in that folder.
Nothing here imports torch.
"""

from __future__ import annotations

from revsurgeon.recipes.files import load_recipe, preset_names, preset_text
from revsurgeon.recipes.schema import (
    SMALLEST_BETA,
    Checks,
    Coefficients,
    Recipe,
    Schedule,
    Until,
    path_matches,
    recipe_schema,
)

__all__ = [
    "SMALLEST_BETA",
    "Checks",
    "Coefficients",
    "Recipe",
    "Schedule",
    "Until",
    "load_recipe",
    "path_matches",
    "preset_names",
    "preset_text",
    "recipe_schema",
]
