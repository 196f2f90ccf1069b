"""The schema of a recipe, documented field by field; the JSON schema is made from it."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from revsurgeon.recipes.strict_yaml import dump_yaml

SMALLEST_BETA = 2.0**-16
"""Exact arithmetic holds beta as p / 2^m with m <= 16, so nothing smaller can be represented."""

_FROZEN = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

Unit = Annotated[float, Field(ge=0.0, le=1.0)]


def _mistake(problem: str, *, key: str | None = None, hint: str) -> PydanticCustomError:
    """A validation error that knows its fix and, if it lies one level deeper, its key."""
    return PydanticCustomError("recipe", "{problem}", {"problem": problem, "key": key, "hint": hint})


class Coefficients(BaseModel):
    """One point (alpha, beta): alpha on the original skips, beta on the added ones."""

    model_config = _FROZEN

    alpha: Unit = Field(description="Scale of the network's own skips, 0 to 1. 1 is the pretrained network.")
    beta: Unit = Field(
        description="Scale of the added skips, 0 to 1. 0 is the pretrained network, which cannot be "
        "reversed: in a recipe beta is at least 2**-16."
    )


CheckName = Literal[
    "integrity",
    "provenance",
    "equivalence",
    "convergence",
    "equations",
    "reversibility",
    "gradients",
    "training",
]

Start = Annotated[
    Annotated[Coefficients, Tag("point")] | Annotated[Literal["auto"], Tag("auto")],
    # A mistake in it is told about the form that was meant, not about both.
    Discriminator(lambda value: "auto" if value == "auto" else "point"),
]


class Until(BaseModel):
    """Where a schedule reaches its end point; exactly one of the three."""

    model_config = _FROZEN

    steps: int | None = Field(default=None, ge=1, description="After this many iterations.")
    epochs: float | None = Field(default=None, gt=0, description="After this many epochs (the paper's tau).")
    fraction: float | None = Field(
        default=None, gt=0, le=1, description="After this share of the whole training, above 0, at most 1."
    )

    @model_validator(mode="after")
    def _exactly_one(self) -> Until:
        given = [name for name in ("steps", "epochs", "fraction") if getattr(self, name) is not None]
        if len(given) != 1:
            told = " and ".join(given) or "nothing"
            raise _mistake(f"names {told} instead of one end", hint="write one of: steps, epochs, fraction.")
        return self


class Schedule(BaseModel):
    """How the coefficients move from `start` to `end` during finetuning."""

    model_config = _FROZEN

    policy: Literal["linear", "exponential", "logarithmic"] = Field(
        default="linear", description="The curve between the two points."
    )
    order: Literal["simultaneous", "alpha-first", "beta-first"] = Field(
        default="simultaneous", description="Both coefficients at once, or one after the other."
    )
    update_every: int = Field(
        default=1, ge=1, description="Iterations between two updates (the paper's eta)."
    )
    until: Until = Field(
        default=Until(fraction=1.0),
        description="When the end point is reached: {steps: 1000}, "
        "{epochs: 5} or {fraction: 0.5}. The whole training unless said otherwise.",
    )


class Checks(BaseModel):
    """How a network that is made by the recipe is verified."""

    model_config = _FROZEN

    rtol: float | None = Field(
        default=None,
        ge=0,
        description="The relative error to allow in recovered inputs and in gradients, instead of the "
        "derived one: 0 in exact arithmetic, 0.1 and 0.01 in float.",
    )
    seeds: int | None = Field(
        default=None,
        ge=1,
        le=1000,
        description="How many random inputs, at most 1000; 2 unless said otherwise.",
    )
    skip: list[CheckName] = Field(default=[], description="Checks to leave out; the report says so.")


class Recipe(BaseModel):
    """What to rewire, and with which coefficients and schedule."""

    model_config = _FROZEN

    name: str = Field(min_length=1, description="The recipe's name.")
    description: str = Field(default="", description="One sentence for people.")
    source: str | None = Field(
        default=None, description="A source this recipe was made for; only a suggestion."
    )
    mode: Literal["dr2", "re2"] = Field(
        description="dr2: both skips, with coefficients that may move. re2: alpha 0 and beta 1, for good."
    )
    granularity: Literal["segment", "block"] = Field(
        default="segment",
        description="segment: each residual module is reversible by itself (a pre-norm transformer block "
        "has two). block: whole blocks are, which halves the length of the chains.",
    )
    include: list[str] = Field(
        default=["**"],
        min_length=1,
        description="Blocks to rewire, as patterns over their dotted paths: `*` within one component, "
        "`**` any number of components. encoder.layer.* takes encoder.layer.0 but not encoder.layer.0.mlp.",
    )
    exclude: list[str] = Field(default=[], description="Blocks to leave alone; exclude wins over include.")
    merge: Literal["auto", "normalized", "last"] = Field(
        default="auto",
        description="The two streams at the end of a chain. normalized: (x + y) / (1 + beta), best on "
        "pre-norm networks. last: x, best on post-norm ones. auto: the one with less drift at the start.",
    )
    arithmetic: Literal["float", "exact", "auto"] = Field(
        default="auto",
        description="float: no side buffers, gradients as precise as beta allows. exact: streams on an "
        "integer grid, gradients exact. auto: exact where float is worse than 1e-3 at the start.",
    )
    anchors: int | None = Field(
        default=None,
        ge=1,
        description="In float arithmetic, store the streams behind every so many segments, so that their "
        "error grows no longer than that. Without it they are stored only at the end of a chain, unless "
        "`arithmetic: auto` finds segments that do not repeat bit for bit, and measures what they need.",
    )
    chunks: int = Field(
        default=1,
        ge=1,
        le=1024,
        description="Run a segment in so many pieces where these do not depend on one another (an MLP's "
        "tokens), which lowers the peak of the backward pass. The other segments run whole.",
    )
    start: Start = Field(
        description="The coefficients that finetuning starts with. auto: the largest beta of .1, .05, .02, "
        ".01 and .005, with alpha = 1 - beta, at which the output drifts by no more than max_drift."
    )
    max_drift: float | None = Field(
        default=None,
        gt=0,
        le=1,
        validate_default=True,
        description="With `start: auto`: how far the output may be from the pretrained network's, "
        "||difference|| / ||output||. 0.05 unless said otherwise.",
    )
    end: Coefficients | None = Field(
        default=None, description="Where the schedule ends. Without it the coefficients stay at start."
    )
    schedule: Schedule | None = Field(
        default=None,
        validate_default=True,
        description="How to move from start to end. With an end but no schedule: linear, to the last step.",
    )
    checks: Checks | None = Field(
        default=None, description="How the result is verified, where the usual way does not fit."
    )

    @model_validator(mode="before")
    @classmethod
    def _re2_start(cls, data: Any) -> Any:
        """`mode: re2` alone is a whole recipe, because its coefficients are not a choice."""
        if isinstance(data, Mapping) and data.get("mode") == "re2" and "start" not in data:
            return {**data, "start": {"alpha": 0.0, "beta": 1.0}}
        return data

    @field_validator("include", "exclude")
    @classmethod
    def _patterns(cls, patterns: list[str]) -> list[str]:
        for pattern in patterns:
            if not all(pattern.split(".")):
                raise _mistake(
                    f"the pattern {pattern!r} has an empty path component",
                    hint="write patterns such as encoder.layer.* or blocks.** .",
                )
        return patterns

    @field_validator("max_drift")
    @classmethod
    def _only_for_a_search(cls, drift: float | None, info: ValidationInfo) -> float | None:
        if drift is not None and "start" in info.data and info.data["start"] != "auto":
            raise _mistake(
                "a drift is allowed for, but the start is given, not searched for",
                hint="write `start: auto`, or remove `max_drift`.",
            )
        return drift

    @field_validator("start", "end")
    @classmethod
    def _reversible(
        cls, point: Coefficients | Literal["auto"] | None, info: ValidationInfo
    ) -> Coefficients | Literal["auto"] | None:
        if point == "auto" and info.data.get("mode") == "re2":
            raise _mistake(
                "mode re2 is alpha 0, beta 1, so there is no start to search for",
                hint="remove `start`, or use `mode: dr2`.",
            )
        if point is None or point == "auto":
            return point
        if point.beta == 0.0:
            raise _mistake(
                "beta is 0, and that network cannot be reversed: the inverse divides by beta",
                key="beta",
                hint="use beta: 0.1, or beta: 0.01 to start still closer to the pretrained network.",
            )
        if point.beta < SMALLEST_BETA:
            raise _mistake(
                f"beta is {point.beta!r}, below 2**-16, the finest beta that exact arithmetic has",
                key="beta",
                hint="use beta: 0.01 or more.",
            )
        if info.data.get("mode") == "re2":
            if info.field_name == "end":
                raise _mistake(
                    "mode re2 stays at alpha 0, beta 1, so it has no end",
                    hint="remove `end`, or use `mode: dr2` for coefficients that move.",
                )
            if (point.alpha, point.beta) != (0.0, 1.0):
                raise _mistake(
                    f"mode re2 is alpha 0, beta 1, not alpha {point.alpha!r}, beta {point.beta!r}",
                    hint="remove `start`, or use `mode: dr2` to choose the coefficients.",
                )
        return point

    @field_validator("schedule")
    @classmethod
    def _schedule_needs_end(cls, schedule: Schedule | None, info: ValidationInfo) -> Schedule | None:
        if "end" not in info.data:  # `end` is wrong by itself and is reported by itself
            return schedule
        if info.data["end"] is not None:
            return schedule or Schedule()
        if schedule is not None:
            raise _mistake(
                "there is a schedule but no end point to move to",
                hint="add `end: {alpha: 0.3, beta: 0.7}`, or remove `schedule` to stay at start.",
            )
        return None

    def selects(self, path: str) -> bool:
        """Whether include and exclude leave the block at this dotted path to be rewired."""
        return any(path_matches(p, path) for p in self.include) and not any(
            path_matches(p, path) for p in self.exclude
        )

    def starting_at(self, alpha: float, beta: float) -> Recipe:
        """The same recipe with the start that a search found; a start that was given stays."""
        if self.start != "auto":
            return self
        start = Coefficients(alpha=alpha, beta=beta)
        return self.model_copy(update={"start": start, "max_drift": None})

    def to_yaml(self) -> str:
        """The recipe as a file that `load_recipe` reads back as an equal recipe."""
        return dump_yaml(self.model_dump(mode="json", exclude_none=True))


def path_matches(pattern: str, path: str) -> bool:
    """Whether a pattern covers a dotted module path, whole and case-sensitive.

    Args:
        pattern: components joined by dots; `**` stands for any number of components, none
            included, and `*`, `?` and `[...]` for characters within one.
        path: for example `encoder.layer.3`.

    >>> path_matches("encoder.layer.*", "encoder.layer.3")
    True
    >>> path_matches("encoder.*", "encoder.layer.3"), path_matches("encoder.**", "encoder.layer.3")
    (False, True)
    """
    return _components_match(tuple(pattern.split(".")), tuple(path.split(".")))


@lru_cache(maxsize=4096)
def _components_match(pattern: tuple[str, ...], path: tuple[str, ...]) -> bool:
    # One row a pattern component: which prefixes of the path the pattern so far can cover.
    # A recursion over `**` would be exponential in the number of `**`.
    reachable = [True] + [False] * len(path)
    for component in pattern:
        if component == "**":
            first = reachable.index(True) if True in reachable else len(reachable)
            reachable = [at >= first for at in range(len(reachable))]
        else:
            reachable = [False] + [
                reachable[at] and fnmatchcase(name, component) for at, name in enumerate(path)
            ]
    return reachable[-1]


def recipe_schema() -> dict[str, Any]:
    """The JSON schema of a recipe, for editors and for `revsurgeon recipes schema`."""
    return Recipe.model_json_schema()
