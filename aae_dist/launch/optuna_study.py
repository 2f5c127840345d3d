"""Optuna proposes trials: conditional spaces, one or several directions, earlier trials known."""

import warnings
from collections.abc import Sequence
from typing import Any

import optuna

from aae_dist.errors import ConfigError
from aae_dist.sweeps import FINAL, Entry, Ledger, TrialState, objective, space
from aae_dist.sweeps.plan import trial_id

FAIL, MODES = optuna.trial.TrialState.FAIL, optuna.study.StudyDirection
DIRECTIONS = {"min": MODES.MINIMIZE, "max": MODES.MAXIMIZE}
TRIES = 50  # consecutive proposals that repeat earlier trials after which the search is over


_VIOLATIONS = "violations"
SETS_CONSTRAINTS = hasattr(optuna.Trial, "set_constraint")
"""Optuna 5 takes constraints from the trial; 4 asks the sampler's function for them."""


def build_sampler(
    seed: int, startup_trials: int, is_constrained: bool
) -> optuna.samplers.TPESampler:
    """Return the sampler of a sweep.

    What differs between Optuna 4 and 5 is pinned: `multivariate` with `group`, which also models
    terms that exist with some options only, and `constant_liar`, since trials run at once.
    """
    old: dict[str, Any] = (
        {"constraints_func": _violations} if is_constrained and not SETS_CONSTRAINTS else {}
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # these arguments are experimental in Optuna 4
        return optuna.samplers.TPESampler(
            seed=seed,
            n_startup_trials=startup_trials,
            multivariate=True,
            group=True,
            constant_liar=True,
            **old,
        )


def _note_violations(trial: optuna.Trial, violations: Sequence[float]) -> None:
    """Attach constraints to a trial that is about to end: up to 0 is kept."""
    for number, value in enumerate(violations):
        if SETS_CONSTRAINTS:
            trial.set_constraint(str(number), value)
        else:
            trial.set_user_attr(f"{_VIOLATIONS}{number}", value)


def _violations(trial: optuna.trial.FrozenTrial) -> tuple[float, ...]:
    noted = trial.user_attrs
    return tuple(noted[key] for key in sorted(noted) if key.startswith(_VIOLATIONS))


class OptunaDraw:
    """Draws of one Optuna trial."""

    def __init__(self, trial: optuna.Trial) -> None:
        self._trial = trial

    def index(self, name: str, count: int) -> int:
        return int(self._trial.suggest_categorical(name, list(range(count))))

    def real(self, name: str, low: float, high: float, log: bool) -> float:
        return float(self._trial.suggest_float(name, low, high, log=log))

    def whole(self, name: str, low: int, high: int) -> int:
        return int(self._trial.suggest_int(name, low, high))


class OptunaStudy:
    """A study of the trials of a ledger: asked for trials, notified of their ends."""

    def __init__(self, ledger: Ledger) -> None:
        """Continue from the ledger: ended trials enter the study, others come first again."""
        search = ledger.plan.sweep.search
        assert search.kind == "optuna"
        self._ledger = ledger
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        # A restart must not propose the first start's trials again.
        seed = search.seed + len(ledger.entries)
        sampler = build_sampler(seed, search.startup_trials, bool(ledger.objective.constraints))
        directions = [DIRECTIONS[mode] for mode in ledger.objective.modes]
        self.study = optuna.create_study(sampler=sampler, directions=directions)
        self._asked: dict[str, optuna.Trial] = {}
        for entry in ledger.in_state(*FINAL):
            self._tell(entry, self._recall(entry))
        self._unfinished = ledger.pending()
        for entry in self._unfinished:
            if entry.draws is not None:
                self._asked[entry.plan.id] = self._recall(entry)

    def next(self) -> Entry | None:
        """Return the next trial to run, None when there are enough."""
        return self._unfinished.pop(0) if self._unfinished else self._propose()

    def ended(
        self,
        name: str,
        state: TrialState,
        values: objective.Point | None,
        violations: objective.Point,
    ) -> None:
        """Take the end of a trial: `values` None for one without a score that compares."""
        trial = self._asked.pop(name, None)
        if trial is None:
            return
        if state == TrialState.FINISHED and values is not None:
            _note_violations(trial, violations)
            self.study.tell(trial, list(values))
        elif state != TrialState.INTERRUPTED:
            self.study.tell(trial, state=FAIL)

    def _propose(self) -> Entry | None:
        """Return a new trial that is valid and was not proposed before."""
        plan = self._ledger.plan
        for _ in range(TRIES):
            if len(self._ledger.entries) >= plan.num_trials:
                return None
            asked = self.study.ask()
            parameters = self._drawn(asked)
            name = trial_id(parameters)
            if name in self._ledger.entries:
                self._tell(self._ledger.entries[name], asked)
                continue
            try:
                trial = plan.trial(parameters, len(self._ledger.entries))
            except ConfigError:
                # Known beforehand to be possible: sweep.invalid=skip.
                self.study.tell(asked, state=FAIL)
                continue
            self._asked[name] = asked
            return self._ledger.add(trial, dict(asked.params))
        return None

    def _drawn(self, trial: optuna.Trial) -> dict[str, Any]:
        draw, terms = OptunaDraw(trial), self._ledger.plan.sweep.space
        return {key: space.drawn(node, draw, key) for key, node in terms.items()}

    def _recall(self, entry: Entry) -> optuna.Trial:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.study.enqueue_trial(entry.draws or {})
            trial = self.study.ask()
            self._drawn(trial)
        return trial

    def _tell(self, entry: Entry, trial: optuna.Trial) -> None:
        values = self._ledger.objective.values(entry.metrics)
        violations = self._ledger.objective.violations(entry.metrics)
        counts = entry.state == TrialState.FINISHED and self._ledger.is_comparable(entry.metrics)
        is_scored = values is not None and violations is not None
        if counts and is_scored and trial_id(self._drawn(trial)) == entry.plan.id:
            _note_violations(trial, violations or ())
            self.study.tell(trial, list(values or ()))
        else:
            self.study.tell(trial, state=FAIL)
