"""`revsurgeon recipes`: list, show, validate, and the schema for editors."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from revsurgeon.cli import options
from revsurgeon.cli.options import examples, help_when_alone
from revsurgeon.cli.output import Output, columns

if TYPE_CHECKING:
    from revsurgeon.recipes import Coefficients, Recipe

LIST_EXAMPLES = examples(
    ("All presets with their coefficients", "recipes list"),
    ("Their names alone, for a script", "recipes list --quiet"),
)
SHOW_EXAMPLES = examples(
    ("A preset as it is shipped", "recipes show dr2-paper"),
    ("Start a recipe of your own from it", "recipes show dr2-paper > my-recipe.yaml"),
)
VALIDATE_EXAMPLES = examples(
    ("Check a preset", "recipes validate dr2-hold"),
    ("Check a recipe of your own, then use it", "recipes show dr2-hold > my-recipe.yaml"),
    ("(errors name the line and the fix)", "recipes validate my-recipe.yaml"),
)
SCHEMA_EXAMPLES = examples(
    ("For an editor that completes and checks YAML", "recipes schema > recipe.schema.json"),
)

app = typer.Typer(rich_markup_mode=None)


@app.callback(invoke_without_command=True)
def _start(context: typer.Context) -> None:
    """Recipes: what to rewire, and with which coefficients and schedule."""
    help_when_alone(context)


@app.command("list", epilog=LIST_EXAMPLES)
def list_presets(
    as_json: options.Json = False, quiet: options.Quiet = False, debug: options.Debug = False
) -> None:
    """List the recipes that are shipped."""
    with Output(as_json=as_json, quiet=quiet, debug=debug) as out:
        from revsurgeon.recipes import load_recipe, preset_names

        presets = {name: load_recipe(name) for name in preset_names()}
        out.result(
            {"recipes": [{"name": name, **_summary(recipe)} for name, recipe in presets.items()]},
            columns([_row(name, recipe) for name, recipe in presets.items()], out.width),
            "\nSee one: revsurgeon recipes show NAME",
            brief="\n".join(presets),
        )


@app.command(epilog=SHOW_EXAMPLES)
def show(
    name: Annotated[str, typer.Argument(metavar="NAME|FILE", show_default=False, help="A preset or a file.")],
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Print a recipe as YAML, comments and all."""
    with Output(as_json=as_json, quiet=quiet, debug=debug) as out:
        from pathlib import Path

        from revsurgeon.recipes import load_recipe, preset_names, preset_text

        recipe = load_recipe(name)  # a recipe that does not validate is an error, not text
        text = preset_text(name) if name in preset_names() else Path(name).read_text(encoding="utf-8")
        text = text.rstrip("\n")
        if out.for_people and out.on_terminal:
            from rich.syntax import Syntax

            out.print(Syntax(text, "yaml", theme="ansi_dark", background_color="default", word_wrap=True))
        else:
            out.result(recipe.model_dump(mode="json"), text, brief=text)


@app.command(epilog=VALIDATE_EXAMPLES)
def validate(
    name: Annotated[
        str, typer.Argument(metavar="FILE|NAME", show_default=False, help="A recipe's file, or a preset.")
    ],
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Check a recipe without converting anything; errors name the line and the fix."""
    with Output(as_json=as_json, quiet=quiet, debug=debug) as out:
        from revsurgeon.recipes import load_recipe

        recipe = load_recipe(name)
        out.result(
            {"valid": True, "name": recipe.name, **_summary(recipe)},
            f"{name} is valid: {recipe.mode}, {path_of_coefficients(recipe)}",
        )


@app.command(epilog=SCHEMA_EXAMPLES)
def schema(as_json: options.Json = False, quiet: options.Quiet = False, debug: options.Debug = False) -> None:
    """Print the JSON schema of a recipe."""
    with Output(as_json=as_json, quiet=quiet, debug=debug) as out:
        from revsurgeon.recipes import recipe_schema

        document = recipe_schema()
        text = json.dumps(document, indent=2)
        out.result(document, text, brief=text)


def _summary(recipe: Recipe) -> dict[str, object]:
    fields = {"description", "source", "mode", "granularity", "start", "end", "schedule"}
    return recipe.model_dump(mode="json", include=fields)


def _row(name: str, recipe: Recipe) -> tuple[str, ...]:
    return (name, recipe.mode, path_of_coefficients(recipe), recipe.description)


def path_of_coefficients(recipe: Recipe) -> str:
    """Return where (alpha, beta) starts and where it ends."""

    def point(at: Coefficients | Literal["auto"]) -> str:
        return at if at == "auto" else f"({at.alpha:g}, {at.beta:g})"

    if recipe.end is None:
        return point(recipe.start)
    return f"{point(recipe.start)} -> {point(recipe.end)}"
