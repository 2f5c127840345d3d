"""The driver of a sweep while Ray Tune runs: progress, ledger, stops, capacity of the cluster."""

import logging
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from ray import tune
from ray.exceptions import ActorDiedError, RayActorError

from aae_dist.config import RunConfig
from aae_dist.launch.ending import PROCESS_DIED, StopToken, WorkersFailedError, condensed, last_line
from aae_dist.launch.ray import cluster, driver, monitor
from aae_dist.launch.ray.cluster import ResourceRequest, Resources
from aae_dist.launch.sweep import POLL_SECONDS, STOP_SECONDS, STOPPING, announce, bookkeeping
from aae_dist.sweeps import FINAL, Entry, Ledger, TrialState, read_sweep
from aae_dist.training.folder import write_marker
from aae_dist.tune.schedulers import build_scheduler
from aae_dist.tune.trial import CAUSE, LINEAGE, STATE, SWEEP, SweepTask, Trial
from aae_dist.utils.text import echo

DRIVER = "driver"  # a custom resource that operators give to nodes that are not taken away (spot)
DRIVER_BYTES = float(1 << 28)
"""Memory that a trial of several workers asks for its own process, which only waits."""
_DEATHS = (ActorDiedError.BASE_ERROR_MSG, RayActorError.BASE_ERROR_MSG)
"""First words of Ray's errors about a process that died without an exception."""


class EndExperiment(tune.Stopper):
    """Ends the experiment once the driver sets `now`."""

    def __init__(self) -> None:
        self.now = False

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False  # trials end by themselves

    def stop_all(self) -> bool:
        return self.now


class SweepDriver:
    """Starts Tune in a thread; the main thread shows progress, keeps the ledger, takes signals."""

    def __init__(
        self,
        ledger: Ledger,
        launch_id: str,
        place: str,
        stop: StopToken,
        changed: Callable[[], None],
    ) -> None:
        """Run the trials that are not done; Tune's own files go to the folder `place`."""
        self._ledger, self._stop, self._changed = ledger, stop, changed
        self._launch_id, self._place = launch_id, place
        self._stopper, self._monitor = EndExperiment(), monitor.start_monitor()
        requests = requests_of(ledger.plan.configs)
        capacity = max_concurrent_trials(requests, all_nodes())
        wanted = ledger.plan.sweep.max_concurrent or capacity
        self._concurrent = max(1, min(wanted, capacity))
        # Ask for no more places at once: another sweep may want them.
        os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(self._concurrent)
        announce(ledger, f"{self._concurrent} at once, each {' or '.join(map(str, requests))}")
        if wanted > capacity:
            echo(f"note: sweep.max_concurrent={wanted}, but the cluster holds {capacity} at once")

    def run(self) -> None:
        """Return when every trial has ended, or all have stopped after a signal."""
        tuner = self._tuner()
        # Tune's tracebacks of trials and complaints of missing result files; the ledger has causes.
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
        fit = driver.Fit(tuner.fit)
        stop_by, saving = 0.0, set[str]()
        with bookkeeping(self._ledger, self._concurrent, self._changed) as update:
            while fit.is_alive():
                fit.join(POLL_SECONDS)
                update()
                if self._stop.requested:
                    running = {entry.plan.id for entry in self._ledger.in_state(TrialState.RUNNING)}
                    if not stop_by:
                        echo(STOPPING)
                        self._monitor.request_stop.remote()
                        stop_by, saving = time.monotonic() + STOP_SECONDS, running
                    # Those that get a free place from now on have nothing to save.
                    self._stopper.now = not running & saving or time.monotonic() > stop_by
        if fit.error is not None and not self._stop.requested:
            raise WorkersFailedError(f"Ray Tune ended: {last_line(fit.error)}") from fit.error

    def _tuner(self) -> tune.Tuner:
        ledger, plan, sweep = self._ledger, self._ledger.plan, self._ledger.plan.sweep
        pause = sweep.scheduler.every_steps if sweep.scheduler.kind == "pbt" else None
        task = SweepTask(
            uri=plan.uri,
            token=write_marker(ledger.folder),
            objective=ledger.objective,
            launch_id=self._launch_id,
            monitor=self._monitor,
            search_path=os.getcwd(),
            pause_every=pause,
        )
        trainable = tune.with_resources(tune.with_parameters(Trial, task=task), self._placement())
        space, search, count = self._search()
        is_asha = sweep.scheduler.kind == "asha" and ledger.in_state(*FINAL)
        ended = [t for t in read_sweep(plan.uri).trials if t.state in FINAL] if is_asha else []
        return tune.Tuner(
            trainable,
            param_space=space,
            tune_config=tune.TuneConfig(
                search_alg=search,
                scheduler=build_scheduler(
                    sweep, ledger.objective, plan.configs, ended, ledger.is_comparable
                ),
                num_samples=count,
                # A population takes turns: all of it must be known to be compared.
                max_concurrent_trials=None if pause else self._concurrent,
                # A Ray Train run that was aborted lives as long as the process that started it.
                reuse_actors=all(config.launch.most_workers == 1 for config in plan.configs),
                trial_name_creator=name_of,
                trial_dirname_creator=name_of,
            ),
            run_config=tune.RunConfig(
                name=sweep.name,
                storage_path=self._place,
                verbose=0,
                stop=self._stopper,
                callbacks=[LedgerCallback(ledger, sweep.scheduler.kind)],
                failure_config=tune.FailureConfig(max_failures=sweep.max_failures),
                # Tune's default for a class is True, of use to none but PBT, which takes pointers.
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=pause is not None),
            ),
        )

    def _search(self) -> tuple[dict[str, Any], Any, int]:
        """Return Tune's space, its searcher if it has one, and how many samples to take."""
        plan = self._ledger.plan
        if plan.sweep.search.kind != "optuna":
            points = [point_of(entry)[SWEEP] for entry in self._ledger.in_start_order()]
            return {SWEEP: tune.grid_search(points)}, None, 1
        from aae_dist.tune.optuna import OptunaSearcher

        left = plan.num_trials - len(self._ledger.in_state(*FINAL))
        return {}, OptunaSearcher(self._ledger, lambda: self._stop.requested), left

    def _placement(self) -> Callable[[dict[str, Any]], tune.PlacementGroupFactory]:
        has_drivers = any(node.get(DRIVER) for node in all_nodes())

        def placement(config: dict[str, Any]) -> tune.PlacementGroupFactory:
            request = cluster.request_of(RunConfig.model_validate_json(config[SWEEP]["config"]))
            return placement_of(request, has_drivers)

        return placement


def requests_of(configs: Iterable[RunConfig]) -> list[ResourceRequest]:
    """Return the different requests of the trials; LaunchError if one can never fit."""
    requests: list[ResourceRequest] = []
    for config in configs:
        if (request := cluster.request_of(config)) not in requests:
            cluster.check_request(request)
            requests.append(request)
    return requests


def max_concurrent_trials(requests: Sequence[ResourceRequest], nodes: Sequence[Resources]) -> int:
    """Return how many trials of any of these requests fit at once on empty nodes.

    More would wait inside Ray, each holding what it has got so far.
    """
    drivers, capacities = int(sum(node.get(DRIVER, 0.0) for node in nodes)), []
    for request in requests:
        one = ResourceRequest(10**6, request.per_worker)
        capacity = sum(one.capacity_on(node) for node in nodes) // request.workers
        capacities.append(min(capacity, drivers or capacity) if request.workers > 1 else capacity)
    return min(capacities)


def all_nodes(most: int = 1000) -> list[Resources]:
    """Return the nodes that there are, or could be with the autoscaler."""
    groups = cluster.autoscaler_groups()
    grown = [resources for resources, count in groups for _ in range(min(count, most))]
    return [*cluster.nodes(), *grown] if groups else cluster.nodes()


def placement_of(request: ResourceRequest, has_drivers: bool) -> tune.PlacementGroupFactory:
    """Return the resources that Tune reserves for a trial.

    A trial of one worker trains in Tune's own process. Several workers are Ray Train's, which
    reserves their places itself, all or none; the trial's process must not take a CPU from them.
    """
    if request.workers == 1:
        return tune.PlacementGroupFactory([request.per_worker])
    return tune.PlacementGroupFactory([{DRIVER: 1} if has_drivers else {"memory": DRIVER_BYTES}])


def point_of(entry: Entry) -> dict[str, Any]:
    """Return a trial as its process gets it."""
    config = entry.plan.config.model_dump_json()
    return {SWEEP: {"id": entry.plan.id, "config": config, "values": entry.parameters}}


class LedgerCallback(tune.Callback):
    """Records trials, in the thread of `Tuner.fit`; one without a state was pruned."""

    def __init__(self, ledger: Ledger, scheduler: str) -> None:
        self._ledger, self._scheduler = ledger, scheduler

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing: Tune stores its callbacks, which are never read again."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._ledger.start(name_of(trial))

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Note which trials have released their places (PBT); Tune has no event for it."""
        for trial in trials:
            if trial.status == "PAUSED":
                self._ledger.pause(name_of(trial))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if LINEAGE in result:
            self._ledger.exploit(name_of(trial), result[LINEAGE])
        if "metrics" in result:
            values = trial.config[SWEEP]["values"]
            self._ledger.update(name_of(trial), result["metrics"], values)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        last = trial.last_result or {}
        state, cause = TrialState(last.get(STATE, TrialState.PRUNED)), last.get(CAUSE)
        if state == TrialState.PRUNED:
            cause = f"stopped by {self._scheduler} at step {last.get('step', 0)}"
        self._ledger.finish(name_of(trial), state, cause)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._ledger.finish(name_of(trial), TrialState.FAILED, f"crashed: {cause_of(trial)}")

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
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
