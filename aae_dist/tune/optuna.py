"""Ray Tune asks Optuna for trials."""

from collections.abc import Callable
from typing import Any

from ray.tune.search import Searcher

from aae_dist.config.metric_names import BASIS
from aae_dist.launch.optuna_study import OptunaStudy
from aae_dist.sweeps import Ledger, TrialState
from aae_dist.tune.driver import point_of
from aae_dist.tune.trial import OBJECTIVE, STATE, VIOLATIONS


class OptunaSearcher(Searcher):
    """Hands Tune's questions on to a study of the ledger."""

    def __init__(self, ledger: Ledger, stopping: Callable[[], bool] = lambda: False) -> None:
        super().__init__()
        self._ledger, self._stopping = ledger, stopping
        self.optuna = OptunaStudy(ledger)
        self._running: dict[str, str] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing: Tune stores its searcher, which is never read again."""
        return {}

    def suggest(self, trial_id: str) -> Any:
        if self._stopping():
            return None  # what is proposed now would be drawn without the results to come
        entry = self.optuna.next()
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
        if name is None:
            return
        result = result or {}
        state = TrialState.FAILED if error else TrialState(result.get(STATE, TrialState.PRUNED))
        compares = self._ledger.is_comparable({name: result.get(name) for name in BASIS})
        count = len(self._ledger.objective.modes)
        scores = [result.get(f"{OBJECTIVE}{n}") for n in range(count)]
        values = tuple(score for score in scores if score is not None) if compares else ()
        known = values if len(values) == count else None
        self.optuna.ended(name, state, known, tuple(result.get(VIOLATIONS, ())))

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the sweep's folder holds all there is to know."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: see `save`."""
