"""What a sweep looks for: one metric, a weighted sum of metrics, or a Pareto front of several."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

from aae_dist.config.metric_names import NUM_SAMPLES, is_comparable
from aae_dist.errors import ConfigError

Mode = Literal["min", "max"]
Metrics = Mapping[str, float | None]
Point = tuple[float, ...]  # one value per direction of the objective

WEIGHTED_SUM = "objective/weighted_sum"
PARETO_PICK = "of the Pareto front, picked by the lowest sum of its ranks in each metric"
"""How `ranking` picks one trial where several metrics count."""


@dataclass(frozen=True)
class Objective:
    """Which metrics count, and in which direction."""

    metrics: tuple[str, ...]  # names read from a trial's metrics
    modes: tuple[Mode, ...]
    """One per direction: one for a single metric or a weighted sum, else one per metric."""
    weights: tuple[float, ...] | None = None  # one per metric, for a weighted sum only

    @classmethod
    def from_config(
        cls, metric: str | Mapping[str, float] | Sequence[str], mode: str | Sequence[str]
    ) -> "Objective":
        """Read `sweep.metric` and `sweep.mode`; ConfigError where they contradict each other.

        `metric` is one name, a map of names and weights (their weighted sum), or a list of names (a
        Pareto front); `mode` is min or max, for a list of names also a list, one per name.
        """
        metrics = (metric,) if isinstance(metric, str) else tuple(metric)
        weights = tuple(map(float, metric.values())) if isinstance(metric, Mapping) else None
        directions = 1 if weights or len(metrics) == 1 else len(metrics)
        modes = (mode,) * directions if isinstance(mode, str) else tuple(mode)
        if not metrics or len(set(metrics)) < len(metrics):
            raise ConfigError(f"sweep.metric should name different metrics (got {metric!r})")
        if weights and not all(math.isfinite(w) and w for w in weights):
            raise ConfigError(f"sweep.metric: weights should be finite, not 0 (got {metric!r})")
        if len(modes) != directions or not set(modes) <= {"min", "max"}:
            raise ConfigError(
                f"sweep.mode should be min or max, or a list of {directions} of them, one for each "
                f"of {', '.join(metrics)} (got {mode!r})"
            )
        return cls(metrics, cast(tuple[Mode, ...], modes), weights)

    @property
    def is_pareto(self) -> bool:
        return len(self.modes) > 1

    @property
    def names(self) -> tuple[str, ...]:
        return (WEIGHTED_SUM,) if self.weights and len(self.metrics) > 1 else self.metrics

    def values(self, metrics: Metrics) -> Point | None:
        """Return one value per direction; None when a metric is missing or not finite."""
        found = [metrics.get(name) for name in self.metrics]
        values = [float(v) for v in found if v is not None and math.isfinite(v)]
        if len(values) < len(self.metrics):
            return None
        if self.weights is None:
            return tuple(values)
        return (sum(w * v for w, v in zip(self.weights, values, strict=True)),)

    def value(self, metrics: Metrics) -> float | None:
        """Return the value of an objective with one direction; None as for `values`."""
        if self.is_pareto:
            raise ValueError(f"a Pareto front of {self.metrics} has no single value")
        values = self.values(metrics)
        return None if values is None else values[0]

    def __str__(self) -> str:
        """Return the objective in words, such as `lowest prior_match/c2st`."""
        adjective = {"min": "lowest", "max": "highest"}
        if self.weights:
            terms = zip(self.weights, self.metrics, strict=True)
            return f"{adjective[self.modes[0]]} " + " + ".join(f"{w:g} x {m}" for w, m in terms)
        pairs = zip(self.modes, self.metrics, strict=True)
        return " and ".join(f"{adjective[mode]} {metric}" for mode, metric in pairs)


def pareto_front(points: Sequence[Point], modes: Sequence[Mode]) -> list[int]:
    """Return the indices, in order, of the points that no other point dominates.

    A point dominates another when it is at least as good in every direction and better in one.
    """
    costs = [_cost(point, modes) for point in points]
    return [i for i, cost in enumerate(costs) if not any(_dominates(c, cost) for c in costs)]


def usual_num_samples(trials: Iterable[Metrics]) -> float | None:
    """Return of how many samples most trials' scores are, None where no trial has any."""
    counts = Counter(n for metrics in trials if (n := metrics.get(NUM_SAMPLES)) is not None)
    return max(counts, key=lambda n: (counts[n], n), default=None)


def ranking(objective: Objective, trials: Sequence[Metrics]) -> list[int]:
    """Return the indices of the trials that have a score, best first; ties keep their order.

    Scores of another number of samples than most trials' count as none.

    With several directions: the Pareto front first, then the front of the rest, and so on; within a
    front by the sum of the ranks in each direction, so that balanced trials stand before extremes.
    """
    usual = usual_num_samples(trials)
    points = {
        i: point
        for i, m in enumerate(trials)
        if (point := objective.values(m)) is not None and is_comparable(objective.metrics, m, usual)
    }
    costs = {i: _cost(point, objective.modes) for i, point in points.items()}
    if not objective.is_pareto:
        return sorted(costs, key=costs.__getitem__)
    rank_sums = _rank_sums(costs)
    order: list[int] = []
    left = list(points)
    while left:
        front = {left[k] for k in pareto_front([points[i] for i in left], objective.modes)}
        order += sorted(front, key=lambda i: (rank_sums[i], i))
        left = [i for i in left if i not in front]
    return order


def _cost(point: Point, modes: Sequence[Mode]) -> Point:
    return tuple(v if mode == "min" else -v for v, mode in zip(point, modes, strict=True))


def _dominates(a: Point, b: Point) -> bool:
    return a != b and all(x <= y for x, y in zip(a, b, strict=True))


def _rank_sums(costs: Mapping[int, Point]) -> dict[int, int]:
    columns = [sorted(values) for values in zip(*costs.values(), strict=True)]
    return {
        i: sum(column.index(v) for column, v in zip(columns, point, strict=True))
        for i, point in costs.items()
    }
