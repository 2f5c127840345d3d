"""Ray Tune's schedulers, given the scores of earlier starts of the sweep."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from ray import tune
from ray.tune import schedulers

from aae_dist.config import AshaScheduler, PbtScheduler, RunConfig, Sweep
from aae_dist.sweeps import Objective, TrialRecord, TrialState, checks
from aae_dist.tune.trial import KEPT, OBJECTIVE, SWEEP

Compares = Callable[[Mapping[str, Any]], bool]
"""Whether a score is of as many samples as most trials' are."""


def build_scheduler(
    sweep: Sweep,
    objective: Objective,
    configs: Sequence[RunConfig],
    ended: Iterable[TrialRecord],
    compares: Compares = lambda metrics: True,
) -> schedulers.TrialScheduler:
    """Return the scheduler of a sweep.

    The scores of `ended`, the trials of earlier starts, fill the rungs again.
    """
    kind = sweep.scheduler
    shared: dict[str, Any] = {"metric": OBJECTIVE, "mode": objective.modes[0]}
    scheduler: Asha | RunFolderPbt
    if isinstance(kind, AshaScheduler):
        unit, longest = checks.asha_key(kind, configs), checks.asha_longest(kind, configs)
        assert longest is not None  # checked with the configuration
        scheduler = Asha(
            time_attr=unit,
            max_t=longest,
            grace_period=kind.grace,
            reduction_factor=kind.reduction_factor,
            stop_last_trials=False,
            **shared,
        )
        scheduler.compares = compares
        for trial in ended:
            _replay(scheduler, objective, trial, unit)
    elif isinstance(kind, PbtScheduler):
        scheduler = RunFolderPbt(
            time_attr="step",
            perturbation_interval=kind.every_steps,
            quantile_fraction=kind.quantile,
            resample_probability=kind.resample_probability,
            hyperparam_mutations={SWEEP: {"values": _mutations(sweep)}},
            log_config=False,
            require_attrs=False,
            **shared,
        )
        scheduler.compares = compares
    else:
        return schedulers.FIFOScheduler()
    return scheduler


def _replay(scheduler: Any, objective: Objective, trial: TrialRecord, unit: str) -> None:
    # Of a trial it looks at nothing but the id.
    stand_in = SimpleNamespace(trial_id=trial.id)
    scheduler.on_trial_add(None, stand_in)
    for record in trial.history:
        value = objective.comparable_score(record)
        if value is not None and unit in record:
            scored = {OBJECTIVE: value, KEPT: objective.is_kept(record)}
            scheduler.on_trial_result(None, stand_in, {**record, **scored})
    if trial.state == TrialState.PRUNED:
        scheduler.keeping.discard(trial.id)


class ComparableScoresMixin:
    """Leaves out scores of other numbers of samples, which do not compare."""

    compares: Compares

    def __getstate__(self) -> dict[str, Any]:
        """Return all but `compares`, the driver's ledger: what Tune stores is never read again."""
        return {key: value for key, value in vars(self).items() if key != "compares"}

    def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> Any:
        """Take a result; one without a score leaves the trial as it is."""
        return super().on_trial_result(controller, trial, self._comparable(result))  # type: ignore[misc]

    def on_trial_complete(self, controller: Any, trial: Any, result: dict[str, Any]) -> None:
        super().on_trial_complete(controller, trial, self._comparable(result))  # type: ignore[misc]

    def _comparable(self, result: dict[str, Any]) -> dict[str, Any]:
        if self.compares(result):
            return result
        return {key: value for key, value in result.items() if key != OBJECTIVE}


class Asha(ComparableScoresMixin, schedulers.AsyncHyperBandScheduler):
    """Stops trials that are behind others of their age.

    With constraints, a trial is never stopped while it is the only one, of those that run and those
    that have finished, whose newest scores keep them all.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.keeping: set[str] = set()  # trials whose newest scores keep all constraints

    def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> Any:
        decision = super().on_trial_result(controller, trial, result)
        if KEPT not in result or not self.compares(result):
            return decision
        (self.keeping.add if result[KEPT] else self.keeping.discard)(trial.trial_id)
        if decision == schedulers.TrialScheduler.STOP:
            if self.keeping == {trial.trial_id}:
                return schedulers.TrialScheduler.CONTINUE
            self.keeping.discard(trial.trial_id)
        return decision


class RunFolderPbt(ComparableScoresMixin, schedulers.PopulationBasedTraining):
    """Population based training; a trial keeps its own folder when it takes another's state."""

    def _get_new_config(self, trial: Any, trial_to_clone: Any) -> tuple[dict[str, Any], Any]:
        config, operations = super()._get_new_config(trial, trial_to_clone)
        own = trial.config[SWEEP]
        values = json.loads(json.dumps(config[SWEEP]["values"]))
        return {SWEEP: {**own, "values": values}}, operations


def _mutations(sweep: Sweep) -> dict[str, Any]:
    makers: dict[str, Callable[..., Any]] = {
        "uniform": tune.uniform,
        "loguniform": tune.loguniform,
        "randint": lambda low, high: tune.randint(low, high + 1),
    }
    found: dict[str, Any] = {}
    for key, node in checks.mutations(sweep).items():
        name, values = next(iter(node.items()))
        found[key] = makers[name](*values) if name in makers else list(values)
    return found
