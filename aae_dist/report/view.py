"""The data of a report: ranked trials, swept parameters, metrics, and how values are written."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from aae_dist.sweeps import SweepRecord, TrialRecord
from aae_dist.sweeps.objective import Objective, Point, pareto_front, ranking
from aae_dist.sweeps.recommendation import SEED, Recommendation, ScoredTrial, recommend
from aae_dist.tracking.sinks import LABELS
from aae_dist.training.folder import match_of

Value = str | float
NONE = "–"  # shown for a missing number
Interval = tuple[float, float]

RECONSTRUCTION = ("reconstruction/mse", "loss/reconstruction")
MATCH = ("prior_match/c2st", "prior_match/sliced_wasserstein", "prior_match/mmd")
PERFECT = {"prior_match/c2st": 0.5, "prior_match/sliced_wasserstein": 1.0, "prior_match/mmd": 1.0}
"""Scores of codes that match the prior perfectly."""
GROUPS = ("prior.kind", "prior", "method.kind", "method", "posterior.kind", "model.kind")
"""Keys that may set the colours; the first swept one does."""
MAX_OPTIONS = 8  # largest number of structural values that are shown whole, each in its own colour
ORDER = ("finished", "running", "interrupted", "pruned", "failed", "waiting")


@dataclass(frozen=True)
class RankedTrial:
    """One trial of the report."""

    trial: TrialRecord
    parameters: Mapping[str, Value]
    """Swept values by dotted key; structural values are split into their fields."""
    score: Point | None  # one value per metric of the objective
    rank: int | None  # from 1, among finished trials
    on_front: bool = False  # whether it is on the Pareto front of the finished trials
    breaks: tuple[str, ...] = ()
    """Constraints that its scores break, such as `prior_match/c2st at most 0.65`."""

    @property
    def is_best(self) -> bool:
        """Whether the table highlights it: rank 1, or on the Pareto front."""
        return self.rank == 1 or self.on_front

    @property
    def match(self) -> str | None:
        """How well its codes match the prior: good, fair, poor, None without an evaluation."""
        return match_of(self.trial.metrics)

    def metric(self, name: str) -> float | None:
        return finite(self.trial.metrics.get(name))

    def interval(self, name: str) -> Interval | None:
        low, high = self.metric(f"{name}_low"), self.metric(f"{name}_high")
        return None if low is None or high is None else (low, high)


@dataclass(frozen=True)
class ReportView:
    """Everything that the page and its charts are made from."""

    sweep: SweepRecord
    objective: Objective
    rows: tuple[RankedTrial, ...]  # best first, then trials without a rank
    varied: tuple[str, ...]
    """Dotted keys whose values differ between trials, in the order of the space."""
    group_key: str | None  # key that sets the colours of the charts
    metrics: tuple[str, ...]  # metrics of the table, the objective's first
    recommendation: Recommendation

    @property
    def columns(self) -> tuple[str, ...]:
        """Dotted keys of the table: the space, and the seed where `tune --more` has added some."""
        is_seeded = any(SEED in row.trial.values for row in self.rows)
        return tuple(dict.fromkeys([*self.sweep.space, *([SEED] if is_seeded else [])]))

    @cached_property
    def groups(self) -> tuple[str, ...]:
        by_number = sorted(self.rows, key=lambda row: row.trial.number)
        return tuple(dict.fromkeys(self.group(row) for row in by_number))

    def group(self, row: RankedTrial) -> str:
        return format_value(row.parameters.get(self.group_key, "")) if self.group_key else ""

    @cached_property
    def plane(self) -> tuple[str, str] | None:
        """The two metrics of the Pareto chart, reconstruction first; None if they do not exist."""
        if self.objective.is_pareto:
            return self.objective.metrics[0], self.objective.metrics[1]
        x = next((name for name in RECONSTRUCTION if self._has(name)), None)
        wanted = [name for name in self.objective.metrics if name in MATCH]
        others = [name for name in self.objective.metrics if name not in MATCH]
        y = next((n for n in (*wanted, *MATCH, *others) if n != x and self._has(n)), None)
        return None if x is None or y is None else (x, y)

    @property
    def weighted_sum(self) -> str | None:
        """Name of an objective that is no metric itself but a weighted sum of some."""
        name = self.objective.names[0]
        return None if name in self.objective.metrics else name

    def mode(self, metric: str) -> str:
        """Return whether low or high values of a metric are good: min unless the sweep says."""
        pairs = zip(self.objective.names, self.objective.modes, strict=True)
        return dict(pairs).get(metric, "min")

    def _has(self, name: str) -> bool:
        return any(row.metric(name) is not None for row in self.rows)


def make_view(sweep: SweepRecord) -> ReportView:
    """Return the view of a sweep in any state."""
    objective = Objective.from_config(sweep.metric, sweep.mode, sweep.constraints)
    rows = _ranked(sweep.trials, objective, _whole(sweep))
    varied = _varied(rows)
    groups = [key for key in GROUPS if key in varied]
    named = [k for k in varied if k != SEED and any(type(r.parameters.get(k)) is str for r in rows)]
    return ReportView(
        sweep=sweep,
        objective=objective,
        rows=rows,
        varied=varied,
        group_key=next(iter([*groups, *named]), None),
        metrics=_table_metrics(rows, objective),
        recommendation=recommendation(sweep),
    )


def recommendation(sweep: SweepRecord) -> Recommendation:
    """Return the answer of a sweep in any state, from its finished trials."""
    objective = Objective.from_config(sweep.metric, sweep.mode, sweep.constraints)
    finished = [trial for trial in sweep.trials if trial.state == "finished"]
    return recommend(objective, [ScoredTrial(t.number, t.values, t.metrics) for t in finished])


def finite(value: Any) -> float | None:
    """Return a finite number as a float, anything else as None."""
    good = isinstance(value, int | float) and math.isfinite(value)
    return float(value) if good else None


def flatten(parameters: Mapping[str, Any], whole: Collection[str] = ()) -> dict[str, Value]:
    """Return swept values by dotted key, numbers as floats, everything else as text.

    Structural values are split into their fields, except at the keys in `whole`.
    """
    found: dict[str, Value] = {}
    for key, value in parameters.items():
        if isinstance(value, Mapping) and key not in whole:
            found |= flatten({f"{key}.{inner}": v for inner, v in value.items()})
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[key] = float(value)
        else:
            found[key] = format_value(value)
    return found


def _whole(sweep: SweepRecord) -> set[str]:
    """Return the structural keys with a few fixed options, for example three priors to compare.

    Two Gaussians of different width are two options there, not one kind with a parameter.
    """
    found = set()
    for key, term in sweep.space.items():
        options = next(iter(term.values()), None) if isinstance(term, Mapping) else None
        listed = options if isinstance(options, list) else []
        maps = [option for option in listed if isinstance(option, Mapping)]
        has_terms = any(isinstance(v, Mapping) for option in maps for v in option.values())
        values = {format_value(t.values[key]) for t in sweep.trials if key in t.values}
        if maps and not has_terms and len(values) <= MAX_OPTIONS:
            found.add(key)
    return found


def _ranked(
    trials: Sequence[TrialRecord], objective: Objective, whole: Collection[str]
) -> tuple[RankedTrial, ...]:
    finished = [trial for trial in trials if trial.state == "finished"]
    order = ranking(objective, [trial.metrics for trial in finished])
    ranks = {finished[i].id: place for place, i in enumerate(order, start=1)}
    kept = [finished[i] for i in order if objective.is_kept(finished[i].metrics)]
    points = [objective.values(trial.metrics) or () for trial in kept]
    front = {kept[i].id for i in pareto_front(points, objective.modes)}
    rows = [
        RankedTrial(
            trial,
            flatten(trial.values, whole),
            objective.values(trial.metrics),
            ranks.get(trial.id),
            on_front=objective.is_pareto and trial.id in front,
            breaks=_broken(objective, trial.metrics),
        )
        for trial in trials
    ]
    return tuple(sorted(rows, key=_merit))


def _broken(objective: Objective, metrics: Mapping[str, float | None]) -> tuple[str, ...]:
    found = [(name, bound, finite(metrics.get(name))) for name, bound in objective.constraints]
    return tuple(
        f"{name} at most {bound:g}"
        for name, bound, value in found
        if value is not None and value > bound
    )


def _merit(row: RankedTrial) -> tuple[float, int, int]:
    return (row.rank or math.inf, ORDER.index(row.trial.state), row.trial.number)


def _varied(rows: Sequence[RankedTrial]) -> tuple[str, ...]:
    in_order = sorted(rows, key=lambda row: row.trial.number)
    keys = dict.fromkeys(key for row in in_order for key in row.parameters)
    return tuple(k for k in keys if len({row.parameters.get(k) for row in rows}) > 1)


def _table_metrics(rows: Sequence[RankedTrial], objective: Objective) -> tuple[str, ...]:
    known = [*objective.inputs, RECONSTRUCTION[0], *MATCH]
    found = {name for row in rows for name in row.trial.metrics}
    named = [name for name in dict.fromkeys(known) if name in found]
    # Without validation data there are no scores: the losses are all that there is to see.
    return tuple(named or sorted(name for name in found if name.startswith("loss/")))


def number(value: float | None, digits: int = 4) -> str:
    """Return a number with so many significant digits, a dash where there is none."""
    if value is None or not math.isfinite(value):
        return NONE
    if value == int(value) and abs(value) < 1e6:
        return f"{int(value):,}"
    return f"{value:.{digits}g}"


def measured(value: float | None) -> str:
    """Return a measurement with four significant digits, zeros among them: columns line up."""
    if value is None or not math.isfinite(value):
        return NONE
    return f"{value:#.4g}".rstrip(".")


def label(metric: str) -> str:
    """Return the display name of a metric."""
    return LABELS.get(metric, metric)


def format_value(value: Any, digits: int = 4) -> str:
    """Return a swept value on one line: `mixture, num_modes 5` for a structural one."""
    if isinstance(value, Mapping):
        rest = [f"{k} {format_value(v)}" for k, v in value.items() if k != "kind"]
        return ", ".join([*([str(value["kind"])] if "kind" in value else []), *rest])
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(format_value, value)) + "]"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return number(value, digits) if isinstance(value, int | float) else str(value)
