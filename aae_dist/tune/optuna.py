"""Optuna proposes trials: conditional spaces, one or several directions, earlier trials known."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import optuna
from ray.tune.search import Searcher

from aae_dist.config.metric_names import NUM_SAMPLES
from aae_dist.errors import ConfigError
from aae_dist.sweeps import space
from aae_dist.sweeps.folder import TrialState
from aae_dist.sweeps.ledger import FINAL, Entry, Ledger
from aae_dist.sweeps.plan import trial_id
from aae_dist.tune.driver import point_of
from aae_dist.tune.trial import OBJECTIVE, STATE, VIOLATIONS

FAIL, MODES = optuna.trial.TrialState.FAIL, optuna.study.StudyDirection
DIRECTIONS = {"min": MODES.MINIMIZE, "max": MODES.MAXIMIZE}
TRIES = 50  # consecutive proposals that repeat earlier trials after which the search is over


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
            trial.set_user_attr(f"{VIOLATIONS}{number}", value)


def _violations(trial: optuna.trial.FrozenTrial) -> tuple[float, ...]:
    noted = trial.user_attrs
    return tuple(noted[key] for key in sorted(noted) if key.startswith(VIOLATIONS))


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


class OptunaSearcher(Searcher):
    """Asks Optuna for trials and tells it how they ended."""

    def __init__(self, ledger: Ledger, stopping: Callable[[], bool] = lambda: False) -> None:
        """Continue from the ledger: ended trials enter the study, others come first again."""
        super().__init__()
        self._stopping = stopping
        search = ledger.plan.sweep.search
        assert search.kind == "optuna"
        self._ledger = ledger
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        # A restart must not propose the first start's trials again.
        seed = search.seed + len(ledger.entries)
        sampler = build_sampler(seed, search.startup_trials, bool(ledger.objective.constraints))
        directions = [DIRECTIONS[mode] for mode in ledger.objective.modes]
        self._study = optuna.create_study(sampler=sampler, directions=directions)
        self._asked: dict[str, optuna.Trial] = {}
        self._running: dict[str, str] = {}
        for entry in ledger.in_state(*FINAL):
            self._tell(entry, self._recall(entry))
        self._unfinished = ledger.pending()
        for entry in self._unfinished:
            if entry.draws is not None:
                self._asked[entry.plan.id] = self._recall(entry)

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing: Tune stores its searcher, which is never read again."""
        return {}

    def suggest(self, trial_id: str) -> Any:
        if self._stopping():
            return None  # what is proposed now would be drawn without the results to come
        entry = self._unfinished.pop(0) if self._unfinished else self._propose()
        if entry is None:
            return Searcher.FINISHED
        self._running[trial_id] = entry.plan.id
        return point_of(entry)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Nothing: only the end of a trial counts."""

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        name = self._running.pop(trial_id, None)
        trial = self._asked.pop(name, None) if name else None
        if name is None or trial is None:
            return
        result = result or {}
        state = TrialState.FAILED if error else TrialState(result.get(STATE, TrialState.PRUNED))
        compares = self._ledger.is_comparable({NUM_SAMPLES: result.get(NUM_SAMPLES)})
        if state == TrialState.FINISHED and f"{OBJECTIVE}0" in result and compares:
            _note_violations(trial, result.get(VIOLATIONS, ()))
            count = len(self._ledger.objective.modes)
            self._study.tell(trial, [result[f"{OBJECTIVE}{n}"] for n in range(count)])
        elif state != TrialState.INTERRUPTED:
            self._study.tell(trial, state=FAIL)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the sweep's folder holds all there is to know."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: see `save`."""

    def _propose(self) -> Entry | None:
        """Return a new trial that is valid and was not proposed before."""
        plan = self._ledger.plan
        for _ in range(TRIES):
            if len(self._ledger.entries) >= plan.num_trials:
                return None
            asked = self._study.ask()
            parameters = self._drawn(asked)
            name = trial_id(parameters)
            if name in self._ledger.entries:
                self._tell(self._ledger.entries[name], asked)
                continue
            try:
                trial = plan.trial(parameters, len(self._ledger.entries))
            except ConfigError:
                # Known beforehand to be possible: sweep.invalid=skip.
                self._study.tell(asked, state=FAIL)
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
            self._study.enqueue_trial(entry.draws or {})
            trial = self._study.ask()
            self._drawn(trial)
        return trial

    def _tell(self, entry: Entry, trial: optuna.Trial) -> None:
        values = self._ledger.objective.values(entry.metrics)
        violations = self._ledger.objective.violations(entry.metrics)
        counts = entry.state == TrialState.FINISHED and self._ledger.is_comparable(entry.metrics)
        is_scored = values is not None and violations is not None
        if counts and is_scored and trial_id(self._drawn(trial)) == entry.plan.id:
            _note_violations(trial, violations or ())
            self._study.tell(trial, list(values or ()))
        else:
            self._study.tell(trial, state=FAIL)
