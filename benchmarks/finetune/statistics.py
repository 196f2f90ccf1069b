"""Means, standard deviations, and differences of two arms over the seeds that both have."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.finetune.results import Results

# Two-sided 95 % quantiles of Student's t, by degrees of freedom; the normal one beyond.
_T: tuple[float, ...] = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
_T += (2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086)


@dataclass(frozen=True)
class Spread:
    """A sample of figures.

    Attributes:
        mean: of them.
        deviation: the standard deviation (n - 1); not a number for a single figure.
        count: how many.
    """

    mean: float
    deviation: float
    count: int

    @classmethod
    def of(cls, figures: Sequence[float]) -> Spread | None:
        """None of no figures."""
        if not figures:
            return None
        deviation = statistics.stdev(figures) if len(figures) > 1 else math.nan
        return cls(statistics.fmean(figures), deviation, len(figures))

    @property
    def interval(self) -> tuple[float, float] | None:
        """Where the mean is with 95 % confidence (Student's t); None for a single figure."""
        if self.count < 2:
            return None
        quantile = _T[self.count - 2] if self.count - 2 < len(_T) else 1.96
        half = quantile * self.deviation / math.sqrt(self.count)
        return self.mean - half, self.mean + half

    def text(self, *, sign: bool = False) -> str:
        """Mean and standard deviation, to a tenth."""
        mean = f"{self.mean:+.1f}" if sign else f"{self.mean:.1f}"
        return mean if math.isnan(self.deviation) else f"{mean} ± {self.deviation:.1f}"


def figures(results: Results, arm: str, name: str = "score") -> dict[int, float]:
    """A figure of an arm by seed, where there is one."""
    rows = [row for (found, _), row in sorted(results.rows.items()) if found == arm]
    return {row["seed"]: row[name] for row in rows if row.get(name) is not None}


def difference(results: Results, better: tuple[str, str], other: tuple[str, str]) -> Spread | None:
    """Of two (arm, figure) the first minus the second, seed by seed."""
    first, second = figures(results, *better), figures(results, *other)
    return Spread.of([first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())])
