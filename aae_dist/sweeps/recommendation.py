"""The answer of a sweep: which parameters to take, why, and what would change the choice.

Trials that differ in `run.seed` only are one candidate. The rule is the one-standard-error rule of
Breiman, Friedman, Olshen and Stone, "Classification and Regression Trees" (1984), section 3.4.3:
of the candidates that keep the constraints, the smallest latent size whose mean score is within one
standard error of the best one's.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean, stdev
from typing import Any, Literal

from aae_dist.sweeps.objective import Metrics, Objective, Point, ranked_points, ranking
from aae_dist.sweeps.plan import describe

SEED = "run.seed"
SIZE_KEYS = ("model.latent_dim", "model")  # keys of a space that may hold the latent size
MIN_SEEDS = 3
"""Seeds per candidate from which a spread over seeds is worth stating."""
MORE_SEEDS = 2  # seeds that `--more` adds to candidates which have enough and are still too close
RULE = (
    "the smallest latent size whose mean {score} is within one standard error of the best, among "
    "the parameters that keep the constraints"
)
PARETO_RULE = (
    "the knee point of the Pareto front of the means: nearest to the best value of every metric, "
    "each scaled to run from 0 to 1 over the front"
)
REMEDIES = "train longer, try another prior, or allow a higher value"
T_90 = (3.0777, 1.8856, 1.6377, 1.5332, 1.4759, 1.4398, 1.4149, 1.3968, 1.3830, 1.3722)
"""One-sided 90 % quantiles of Student's t distribution with 1 to 10 degrees of freedom."""
Z_90 = 1.2816


@dataclass(frozen=True)
class ScoredTrial:
    """A finished trial."""

    number: int
    parameters: Mapping[str, Any]
    metrics: Metrics


@dataclass(frozen=True)
class Candidate:
    """Trials that differ in their seed only."""

    parameters: Mapping[str, Any]  # without the seed
    numbers: tuple[int, ...]  # of its trials
    score: Point  # mean per direction of the objective
    standard_error: float | None  # of the first score; None for one seed
    bounds: Mapping[str, float]
    """Per constrained metric the value below which a new seed stays with 90 % confidence."""

    @property
    def num_seeds(self) -> int:
        return len(self.numbers)

    @property
    def size(self) -> float:
        """The latent size, infinite where it is not swept."""
        return size_of(self.parameters) or math.inf

    @property
    def name(self) -> str:
        return describe(dict(self.parameters)) or "the only parameters"

    def document(self) -> dict[str, Any]:
        return {
            "parameters": dict(self.parameters),
            "trials": list(self.numbers),
            "seeds": self.num_seeds,
            "score": list(self.score),
            "standard_error": self.standard_error,
            "upper_bounds": dict(self.bounds),
        }


@dataclass(frozen=True)
class Recommendation:
    """The choice, in words and in numbers."""

    state: Literal["chosen", "none_qualifies", "no_scores"]
    sentence: str
    rule: str
    candidates: tuple[Candidate, ...] = ()
    chosen: Candidate | None = None
    """The choice; where none qualifies the nearest candidate."""
    runner_up: Candidate | None = None
    would_change: tuple[str, ...] = ()
    seeds: str = ""
    """Whether there are enough seeds, and what to do; empty when there is nothing to do."""
    add: tuple[tuple[Mapping[str, Any], int], ...] = ()
    """Parameters without a seed, each with the number of seeds that `tune --more` adds."""

    def document(self) -> dict[str, Any]:
        """Return the value of the key `recommendation` of sweep.json."""
        return {
            "state": self.state,
            "sentence": self.sentence,
            "rule": self.rule,
            "chosen": self.chosen and self.chosen.document(),
            "runner_up": self.runner_up and self.runner_up.document(),
            "would_change": list(self.would_change),
            "seeds": self.seeds,
            "add": [{"parameters": dict(p), "seeds": count} for p, count in self.add],
        }


def recommend(objective: Objective, trials: Sequence[ScoredTrial]) -> Recommendation:
    """Return the recommendation of a sweep from its finished trials, in any order."""
    rule = PARETO_RULE if objective.is_pareto else RULE.format(score=objective.names[0])
    candidates = pooled(objective, sorted(trials, key=lambda trial: trial.number))
    if not candidates:
        sentence = "No recommendation: no trial has finished with a score."
        return Recommendation("no_scores", sentence, rule)
    kept = [c for c in candidates if _excess(objective, c) == 0.0]
    if not kept:
        return _none_qualifies(objective, candidates, rule)
    chosen = _choose(objective, kept)
    runner_up = next((c for c in _ordered(objective, kept) if c is not chosen), None)
    add = _add(objective, chosen, runner_up)
    return Recommendation(
        state="chosen",
        sentence=_sentence(objective, chosen, kept, runner_up),
        rule=rule,
        candidates=tuple(candidates),
        chosen=chosen,
        runner_up=runner_up,
        would_change=tuple(_would_change(objective, candidates, kept, chosen)),
        seeds=_seeds(add),
        add=add,
    )


def size_of(parameters: Mapping[str, Any]) -> float | None:
    """Return the latent size among swept parameters, None where it is not swept."""
    model = parameters.get(SIZE_KEYS[1])
    inside = model.get("latent_dim") if isinstance(model, Mapping) else None
    size = parameters.get(SIZE_KEYS[0], inside)
    is_number = isinstance(size, int | float) and not isinstance(size, bool)
    return float(size) if is_number and math.isfinite(size) else None


def pooled(objective: Objective, trials: Sequence[ScoredTrial]) -> list[Candidate]:
    """Return the candidates, by the number of their first trial; trials without a rank are none."""
    ranked = set(ranking(objective, [trial.metrics for trial in trials]))
    groups: dict[str, list[ScoredTrial]] = {}
    for index, trial in enumerate(trials):
        if index in ranked:
            own = {key: value for key, value in trial.parameters.items() if key != SEED}
            groups.setdefault(json.dumps(own, sort_keys=True), []).append(trial)
    return [_candidate(objective, group) for group in groups.values()]


def _candidate(objective: Objective, trials: Sequence[ScoredTrial]) -> Candidate:
    points = [objective.values(trial.metrics) or () for trial in trials]
    columns = list(zip(*points, strict=True))
    spread = stdev(columns[0]) / math.sqrt(len(points)) if len(points) > 1 else None
    return Candidate(
        parameters={k: v for k, v in trials[0].parameters.items() if k != SEED},
        numbers=tuple(trial.number for trial in trials),
        score=tuple(fmean(column) for column in columns),
        standard_error=spread,
        bounds={
            name: upper_bound([trial.metrics for trial in trials], name)
            for name, _ in objective.constraints
        },
    )


def upper_bound(trials: Sequence[Metrics], name: str) -> float:
    """Return the value below which the metric of a new seed stays with 90 % confidence.

    It is the prediction bound of normal samples, mean + t(0.9, n - 1) s sqrt(1 + 1/n), and at least
    the mean of the upper ends of the trials' own intervals, which is all that one seed tells.
    """
    values = [value for metrics in trials if (value := metrics.get(name)) is not None]
    ends = [metrics.get(f"{name}_high") for metrics in trials]
    measured = fmean(
        value if end is None else max(end, value) for value, end in zip(values, ends, strict=True)
    )
    if len(values) < 2:
        return measured
    count = len(values)
    predicted = fmean(values) + _t90(count - 1) * stdev(values) * math.sqrt(1 + 1 / count)
    return max(measured, predicted)


def _t90(degrees: int) -> float:
    if degrees <= len(T_90):
        return T_90[degrees - 1]
    return Z_90 + (Z_90**3 + Z_90) / (4 * degrees)  # Cornish and Fisher; within 0.005 of the value


def _excess(objective: Objective, candidate: Candidate) -> float:
    """Return how far the upper bounds are above the constraints, in units of each, 0 when kept."""
    return objective.violation(candidate.bounds) or 0.0


def _cost(objective: Objective, candidate: Candidate) -> float:
    return candidate.score[0] if objective.modes[0] == "min" else -candidate.score[0]


def _ordered(objective: Objective, kept: Sequence[Candidate]) -> list[Candidate]:
    """Return candidates that keep the constraints, best first."""
    if not objective.is_pareto:
        return sorted(kept, key=lambda c: (_cost(objective, c), c.size, c.numbers[0]))
    return [kept[i] for i in ranked_points([c.score for c in kept], objective.modes)]


def _choose(objective: Objective, kept: Sequence[Candidate]) -> Candidate:
    best = _ordered(objective, kept)[0]
    if objective.is_pareto:
        return best
    limit = _cost(objective, best) + (best.standard_error or 0.0)
    near = [c for c in kept if _cost(objective, c) <= limit]
    return min(near, key=lambda c: (c.size, _cost(objective, c), c.numbers[0]))


def _none_qualifies(
    objective: Objective, candidates: Sequence[Candidate], rule: str
) -> Recommendation:
    def distance(candidate: Candidate) -> tuple[float, ...]:
        merit = () if objective.is_pareto else (_cost(objective, candidate),)
        return _excess(objective, candidate), *merit, candidate.numbers[0]

    nearest = min(candidates, key=distance)
    add = _add(objective, nearest, None)
    bounds = " and ".join(f"{name} at most {bound:g}" for name, bound in objective.constraints)
    sentence = (
        f"None qualifies: no parameters keep {bounds}; nearest are {nearest.name}, with "
        f"{_scores(objective, nearest)} and {_upper(objective, nearest)}: {REMEDIES}."
    )
    return Recommendation(
        "none_qualifies", sentence, rule, tuple(candidates), nearest, seeds=_seeds(add), add=add
    )


def _sentence(
    objective: Objective,
    chosen: Candidate,
    kept: Sequence[Candidate],
    runner_up: Candidate | None,
) -> str:
    parts = [f"Recommended: {chosen.name}, with {_scores(objective, chosen)}"]
    if objective.is_pareto:
        parts.append("the knee point of the Pareto front")
    else:
        best = _ordered(objective, kept)[0]
        if best is not chosen:
            own = f"the best mean, {best.score[0]:.4g} of {best.name}"
            parts.append(f"the smallest size within one standard error of {own}")
        else:
            word = "lowest" if objective.modes[0] == "min" else "highest"
            parts.append(f"the {word} mean" if len(kept) > 1 else "the only choice")
    if objective.constraints:
        parts.append(_upper(objective, chosen))
    sentence = ", ".join(parts)
    if runner_up is not None:
        sentence += f"; runner-up: {runner_up.name}, with {_scores(objective, runner_up)}"
    return f"{sentence}."


def _scores(objective: Objective, candidate: Candidate) -> str:
    values = zip(objective.names, candidate.score, strict=True)
    shown = " and ".join(f"{name} {value:.4g}" for name, value in values)
    if candidate.standard_error is not None and not objective.is_pareto:
        shown += f" ± {candidate.standard_error:.2g}"
    count = candidate.num_seeds
    return f"mean {shown} over {count} seeds" if count > 1 else f"{shown} (one seed)"


def _upper(objective: Objective, candidate: Candidate) -> str:
    bounds = [
        f"{name} up to {candidate.bounds[name]:.3f} (allowed: {bound:g})"
        for name, bound in objective.constraints
    ]
    return " and ".join(bounds)


def _would_change(
    objective: Objective,
    candidates: Sequence[Candidate],
    kept: Sequence[Candidate],
    chosen: Candidate,
) -> Iterable[str]:
    # A looser constraint: the nearest candidate that would be chosen if it were allowed.
    for candidate in sorted(candidates, key=partial(_excess, objective)):
        if candidate not in kept and _choose(objective, [*kept, candidate]) is candidate:
            needed = " and ".join(
                f"{name} up to {candidate.bounds[name]:.3f}"
                for name, bound in objective.constraints
                if candidate.bounds[name] > bound
            )
            yield f"allowing {needed} would choose {candidate.name}"
            break
    # A tighter one.
    if objective.constraints:
        rest = [c for c in kept if c is not chosen]
        other = _choose(objective, rest).name if rest else "nothing"
        limits = [f"{name} below {chosen.bounds[name]:.3f}" for name, _ in objective.constraints]
        yield f"asking for {' or '.join(limits)} would exclude it and choose {other}"
    # A smaller size that is not good enough.
    smaller = [c for c in kept if c.size < chosen.size]
    if smaller and not objective.is_pareto:
        nearest = _ordered(objective, smaller)[0]
        best = _ordered(objective, kept)[0]
        sign = 1.0 if objective.modes[0] == "min" else -1.0
        limit = best.score[0] + sign * (best.standard_error or 0.0)
        yield (
            f"a mean of {limit:.4g} instead of {nearest.score[0]:.4g} would choose {nearest.name}"
        )


def _add(
    objective: Objective, chosen: Candidate, runner_up: Candidate | None
) -> tuple[tuple[Mapping[str, Any], int], ...]:
    """Return the seeds that would make the choice surer."""
    deciding = [chosen, *([runner_up] if runner_up else [])]
    lacking = [(c.parameters, MIN_SEEDS - c.num_seeds) for c in deciding if c.num_seeds < MIN_SEEDS]
    if lacking or runner_up is None or objective.is_pareto:
        return tuple(lacking)
    both = math.hypot(chosen.standard_error or 0.0, runner_up.standard_error or 0.0)
    is_close = abs(chosen.score[0] - runner_up.score[0]) <= both
    return tuple((c.parameters, MORE_SEEDS) for c in deciding) if is_close else ()


def _seeds(add: Sequence[tuple[Mapping[str, Any], int]]) -> str:
    if not add:
        return ""
    wanted = "; ".join(f"{count} of {describe(dict(p)) or 'them'}" for p, count in add)
    return (
        f"Too few seeds to be sure: {wanted} would tell more. The same command with --more adds "
        "them."
    )
