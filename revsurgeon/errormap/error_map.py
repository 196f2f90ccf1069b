"""A map of gradient error and drift over the coefficients: what was measured, how, and what follows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from revsurgeon.errormap.comparison import METRICS
from revsurgeon.errormap.grid import Axes
from revsurgeon.errormap.point import Point
from revsurgeon.errormap.recommend import Recommendation, recommend
from revsurgeon.errors import RevsurgeonError, UsageError
from revsurgeon.recipes import Recipe

FORMAT_VERSION = 1


@dataclass
class ErrorMap:
    """What `revsurgeon.errmap` returns.

    Attributes:
        configuration: what was measured and how, as plain data; maps with equal ones may be joined.
        grid: the measured points by (alpha, beta).
        exact_failure: why exact arithmetic, which was tried where it is recommended, does not work with this
            network; None if it does, or was not tried.
    """

    configuration: Mapping[str, Any]
    grid: dict[tuple[float, float], Point] = field(default_factory=dict)
    exact_failure: str | None = None

    @property
    def name(self) -> str:
        """Of the network."""
        return str(self.configuration["name"])

    @property
    def axes(self) -> Axes:
        """The coefficients that the map has, or will have when it is complete."""
        return Axes(tuple(self.configuration["alphas"]), tuple(self.configuration["betas"]))

    @property
    def arithmetics(self) -> tuple[str, ...]:
        """In which gradients were reversed."""
        return tuple(self.configuration["arithmetics"])

    @property
    def chains(self) -> tuple[str, ...]:
        """Names of the network's chains."""
        return tuple(chain["name"] for chain in self.configuration["chains"])

    @property
    def missing(self) -> list[tuple[float, float]]:
        """Points that were not measured yet."""
        return [place for place in self.axes.points if place not in self.grid]

    @property
    def path(self) -> Mapping[str, Any] | None:
        """The recipe's: {"start": [alpha, beta], "end": [alpha, beta] or None, "order": ...}."""
        path: Mapping[str, Any] | None = self.configuration["path"]
        return path

    @property
    def recommended(self) -> Recommendation | None:
        """Start, end point, path and arithmetic that keep drift and error lowest.

        The rule is in the first lines of `revsurgeon/errormap/recommend.py`. None if there is no choice.
        """
        return recommend(self.grid, exact=self.exact_failure is None)

    def values(
        self, metric: str, arithmetic: str = "float", chain: str | None = None
    ) -> list[list[float | None]]:
        """A measure at all points: one row a beta, one column an alpha.

        Args:
            metric: "drift", "bits" or one of `METRICS`.
            arithmetic: "float" or "exact".
            chain: only this chain's parameters.

        Returns:
            None where it does not apply (errors at beta = 0) or was not measured.

        Raises:
            UsageError: no such chain or measure, or an arithmetic that was not measured.
        """
        self.check(metric, arithmetic, chain)
        axes = self.axes
        return [
            [_value(self.grid.get((alpha, beta)), metric, arithmetic, chain) for alpha in axes.alphas]
            for beta in axes.betas
        ]

    def check(self, metric: str, arithmetic: str = "float", chain: str | None = None) -> None:
        """Refuse what the map does not have.

        Raises:
            UsageError: see `values`.
        """
        if chain is not None and chain not in self.chains:
            raise UsageError(f"there is no chain {chain!r}.", where=f"the chains: {', '.join(self.chains)}")
        if metric in ("drift", "bits"):
            return
        if metric not in METRICS:
            raise UsageError(f"there is no metric {metric!r}.", hint=f"The metrics are {', '.join(METRICS)}.")
        if arithmetic not in self.arithmetics:
            raise UsageError(f"gradients were not measured in {arithmetic} arithmetic.")

    def recipe(self) -> Recipe:
        """The recommendation as a recipe that `convert` takes.

        Raises:
            RevsurgeonError: nothing can be recommended.
        """
        if self.recommended is None:
            raise RevsurgeonError(
                "there is nothing to recommend: no point with a beta above 0 was measured.",
                hint="Take betas above 0, as in --beta 0.05,0.1,0.5,1.",
            )
        route = self.recommended.route
        point = [dict(zip(("alpha", "beta"), at, strict=True)) for at in (route.start, route.end)]
        moves = route.start != route.end
        anchors = [every for _, _, every in self.recommended.anchors if every]
        return Recipe.model_validate(
            {
                "name": f"{self.name}-errmap",
                "description": f"What the error map of {self.name} recommends.",
                "mode": "dr2",
                **self.configuration["cut"],
                "merge": self.configuration["merge"],
                "arithmetic": route.arithmetic,
                "anchors": min(anchors, default=None) if route.arithmetic == "float" else None,
                "start": point[0],
                "end": point[1] if moves else None,
                "schedule": {"policy": "linear", "order": route.order} if moves else None,
            }
        )

    def plot(self, path: str | Path, *, metric: str = "relative", chain: str | None = None) -> Path:
        """Draw the map.

        Args:
            path: ends in .png, .svg or .pdf.
            metric: of the gradients, one of `METRICS`.
            chain: only this chain's parameters.

        Raises:
            UsageError: another kind of file, or a measure that the map does not have.
        """
        from revsurgeon.errormap.plot import draw

        return draw(self, Path(path), metric=metric, chain=chain)

    def to_dict(self) -> dict[str, Any]:
        """Everything, as plain data; the points come in the order of the axes."""
        complete = not self.missing
        return {
            "format_version": FORMAT_VERSION,
            "complete": complete,
            "configuration": dict(self.configuration),
            "exact_failure": self.exact_failure,
            "recommended": self.recommended.to_dict() if complete and self.recommended else None,
            "points": [self.grid[place].to_dict() for place in self.axes.points if place in self.grid],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ErrorMap:
        """What `to_dict` made; what is recommended is found again.

        Raises:
            KeyError, TypeError, ValueError: it is something else.
        """
        if data["format_version"] != FORMAT_VERSION:
            raise ValueError(f"format {data['format_version']}; this revsurgeon reads {FORMAT_VERSION}")
        points = [Point.from_dict(point) for point in data["points"]]
        failure = data["exact_failure"]
        return cls(
            dict(data["configuration"]),
            {(p.alpha, p.beta): p for p in points},
            None if failure is None else str(failure),
        )


def _value(point: Point | None, metric: str, arithmetic: str, chain: str | None) -> float | None:
    if point is None:
        return None
    if metric == "drift":
        return point.drift
    if metric == "bits":
        return point.bits
    errors = point.errors.get(arithmetic)
    if errors is None:
        return None
    value: float | None = getattr(errors.of(chain), metric)
    return value
