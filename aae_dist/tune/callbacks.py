"""Events of Ray Tune's trials, recorded in the sweep's ledger."""

from pathlib import Path
from typing import Any

from ray import tune
from ray.exceptions import ActorDiedError, RayActorError

from aae_dist.launch.failures import PROCESS_DIED, condensed
from aae_dist.sweeps.folder import TrialState
from aae_dist.sweeps.ledger import Entry, Ledger
from aae_dist.tune.trial import CAUSE, LINEAGE, STATE, SWEEP

_DEATHS = (ActorDiedError.BASE_ERROR_MSG, RayActorError.BASE_ERROR_MSG)
"""First words of Ray's errors about a process that died without an exception."""


def point_of(entry: Entry) -> dict[str, Any]:
    """Return a trial as its process gets it."""
    values = entry.values or entry.plan.parameters
    config = entry.plan.config.model_dump_json()
    return {SWEEP: {"id": entry.plan.id, "config": config, "values": values}}


class LedgerCallback(tune.Callback):
    """Records trials in the ledger; runs in the thread of `Tuner.fit`."""

    def __init__(self, ledger: Ledger, scheduler: str) -> None:
        """Write to `ledger`; a trial that ends without a state was stopped by `scheduler`."""
        self._ledger, self._scheduler = ledger, scheduler

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing: Tune stores its callbacks, which are never read again."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Note that the trial has its place."""
        self._ledger.start(name_of(trial))

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Note which trials have released their places (PBT); Tune has no event for it."""
        for trial in trials:
            if trial.status == "PAUSED":
                self._ledger.pause(name_of(trial))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Note how far the trial is."""
        if LINEAGE in result:
            self._ledger.exploit(name_of(trial), result[LINEAGE])
        if "metrics" in result:
            values = trial.config[SWEEP]["values"]
            self._ledger.update(name_of(trial), result["metrics"], values)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Note how the trial ended."""
        last = trial.last_result or {}
        step = last.get("step", 0)
        pruned = f"stopped by {self._scheduler} at step {step}"
        state = TrialState(last.get(STATE, TrialState.PRUNED))
        self._ledger.finish(
            name_of(trial), state, pruned if state == TrialState.PRUNED else last.get(CAUSE)
        )

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Note a trial whose process failed too often."""
        self._ledger.finish(name_of(trial), TrialState.FAILED, f"crashed: {cause_of(trial)}")

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Note that a trial's process failed and will be started again."""
        self._ledger.crashed(name_of(trial), cause_of(trial))


def cause_of(trial: Any) -> str:
    """Return in one line why a trial's process failed last.

    Tune keeps the text of each failure in the driver's own folder, and a pickle that is left alone.
    `Trial.get_error` looks in Tune's storage, where a copy may come an hour later.
    """
    if not trial.error_file:
        return condensed("")
    newest = Path(trial.error_file).read_text().rpartition("Failure # ")[2]
    text = newest.partition("\n")[2].strip()
    return PROCESS_DIED if text.startswith(_DEATHS) else condensed(text)


def name_of(trial: Any) -> str:
    """Return the name of a Tune trial's folder."""
    return str(trial.config[SWEEP]["id"])
