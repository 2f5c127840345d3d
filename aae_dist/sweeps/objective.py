"""What a sweep looks for: one metric, a weighted sum of metrics, or a Pareto front of several.

Constraints bound further metrics from above. Trials compare by the rules of Deb, "An efficient
constraint handling method for genetic algorithms" (2000): one that keeps all constraints is better
than any that does not; two that keep them compare by the objective, two that do not by how far they
are from keeping them.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

from aae_dist.config.metric_names import BASIS, is_comparable
from aae_dist.errors import ConfigError

Mode = Literal["min", "max"]
Metrics = Mapping[str, float | None]
Point = tuple[float, ...]  # one value per direction of the objective

WEIGHTED_SUM = "objective/weighted_sum"
PARETO_PICK = (
    "of the Pareto front, its knee point: the nearest one to the best value of every metric, with "
    "each metric scaled to run from 0 to 1 over the front"
)
"""How `ranking` picks one trial where several metrics count."""


@dataclass(frozen=True)
class Objective:
    """Which metrics count, and in which direction."""

    metrics: tuple[str, ...]  # names read from a trial's metrics
    modes: tuple[Mode, ...]
    """One per direction: one for a single metric or a weighted sum, else one per metric."""
    weights: tuple[float, ...] | None = None  # one per metric, for a weighted sum only
    constraints: tuple[tuple[str, float], ...] = ()
    """Metrics, each with the highest value that is allowed."""

    @classmethod
    def from_config(
        cls,
        metric: str | Mapping[str, float] | Sequence[str],
        mode: str | Sequence[str],
        constraints: Mapping[str, float] | None = None,
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
        bounds = tuple((name, float(bound)) for name, bound in (constraints or {}).items())
        return cls(metrics, cast(tuple[Mode, ...], modes), weights, bounds)

    @property
    def is_pareto(self) -> bool:
        return len(self.modes) > 1

    @property
    def inputs(self) -> tuple[str, ...]:
        """Metrics that decide: those of the objective and those of the constraints."""
        return tuple(dict.fromkeys((*self.metrics, *(name for name, _ in self.constraints))))

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

    def violations(self, metrics: Metrics) -> Point | None:
        """Return for each constraint by how much its value is above the bound, negative below it.

        In units of the bound (of 1 where that is 0), so that constraints add up. None when a value
        is missing or not finite.
        """
        found = []
        for name, bound in self.constraints:
            value = metrics.get(name)
            if value is None or not math.isfinite(value):
                return None
            found.append((value - bound) / (abs(bound) or 1.0))
        return tuple(found)

    def violation(self, metrics: Metrics) -> float | None:
        """Return the sum of what is above the bounds, 0 where all constraints are kept."""
        found = self.violations(metrics)
        return None if found is None else sum(max(0.0, each) for each in found)

    def is_kept(self, metrics: Metrics) -> bool:
        """Return whether all constraints are kept; not without their values."""
        return self.violation(metrics) == 0.0

    def comparable_score(self, metrics: Metrics) -> float | None:
        """Return one number by which a scheduler compares, in the direction of the objective.

        With constraints the order is Deb's, see the module: 0 to 1 where all are kept (the
        objective through a monotone function), 1 plus the violation else; the sign is changed where
        high values are better. A Pareto front compares by its first metric.
        """
        values, violation = self.values(metrics), self.violation(metrics)
        if values is None or violation is None:
            return None
        if not self.constraints:
            return values[0]
        sign = 1.0 if self.modes[0] == "min" else -1.0
        kept = 0.5 + math.atan(sign * values[0]) / math.pi
        return sign * (kept if violation == 0.0 else 1.0 + violation)

    def no_score(self, metrics: Metrics) -> str | None:
        """Return why a trial has no score, None if it has one."""
        if self.comparable_score(metrics) is not None:
            return None
        found = {name: metrics.get(name) for name in self.inputs}
        lacking = [name for name, v in found.items() if v is None or not math.isfinite(v)]
        return f"no score, since it has no finite {', '.join(lacking)}"

    def __str__(self) -> str:
        """Return the objective in words, such as `lowest prior_match/c2st`."""
        bounds = " and ".join(f"{name} at most {bound:g}" for name, bound in self.constraints)
        return self._goal() + (f", with {bounds}" if bounds else "")

    def _goal(self) -> str:
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
    return _front([_cost(point, modes) for point in points])


def usual_basis(trials: Iterable[Metrics]) -> dict[str, float]:
    """Return of how many samples, and of which features, most trials' scores are.

    By the metrics of `BASIS`, without those that no trial has.
    """
    usual, known = dict[str, float](), list(trials)
    for name in BASIS:
        counts = Counter(n for metrics in known if (n := metrics.get(name)) is not None)
        if counts:
            usual[name] = max(counts, key=lambda n: (counts[n], n))
    return usual


def ranking(objective: Objective, trials: Sequence[Metrics]) -> list[int]:
    """Return the indices of the trials that have a score, best first; ties keep their order.

    Scores of another number of samples, or of other features, than most trials' count as none.
    Trials that keep all constraints come first, then the others by how far they are from keeping
    them.

    With several directions: the Pareto front first, then the front of the rest, and so on; within a
    front by the distance to its ideal point (see `PARETO_PICK`), so that the knee comes first.
    """
    usual = usual_basis(trials)
    points, broken = dict[int, Point](), dict[int, float]()
    for i, metrics in enumerate(trials):
        point, violation = objective.values(metrics), objective.violation(metrics)
        if (
            point is None
            or violation is None
            or not is_comparable(objective.inputs, metrics, usual)
        ):
            continue
        if violation > 0.0:
            broken[i] = violation
        points[i] = point
    costs = {i: _cost(point, objective.modes) for i, point in points.items()}
    order = _by_front({i: cost for i, cost in costs.items() if i not in broken})
    return order + sorted(broken, key=lambda i: (broken[i], costs[i]))


def ranked_points(points: Sequence[Point], modes: Sequence[Mode]) -> list[int]:
    """Return the indices of points, best first: front by front, the knee of each first."""
    return _by_front({i: _cost(point, modes) for i, point in enumerate(points)})


def _by_front(costs: Mapping[int, Point]) -> list[int]:
    if all(len(cost) == 1 for cost in costs.values()):
        return sorted(costs, key=costs.__getitem__)
    order: list[int] = []
    left = dict(costs)
    while left:
        names = list(left)
        front = [names[k] for k in _front(list(left.values()))]
        distances = dict(zip(front, _distances_to_ideal([left[i] for i in front]), strict=True))
        order += sorted(front, key=lambda i: (distances[i], i))
        left = {i: cost for i, cost in left.items() if i not in distances}
    return order


def _distances_to_ideal(costs: Sequence[Point]) -> list[float]:
    """Return each point's Euclidean distance to the lowest cost in every direction.

    Each direction is scaled to run from 0 to 1 over the points. The point with the lowest distance
    is the knee of a front.
    """
    columns = list(zip(*costs, strict=True))
    lows = [min(column) for column in columns]
    spans = [max(column) - low or 1.0 for column, low in zip(columns, lows, strict=True)]
    return [
        math.hypot(*((c - low) / span for c, low, span in zip(cost, lows, spans, strict=True)))
        for cost in costs
    ]


def _cost(point: Point, modes: Sequence[Mode]) -> Point:
    return tuple(v if mode == "min" else -v for v, mode in zip(point, modes, strict=True))


def _front(costs: Sequence[Point]) -> list[int]:
    return [i for i, cost in enumerate(costs) if not any(_dominates(c, cost) for c in costs)]


def _dominates(a: Point, b: Point) -> bool:
    return a != b and all(x <= y for x, y in zip(a, b, strict=True))
