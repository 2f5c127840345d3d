"""Runs a sweep on this machine without Ray: trials in worker processes, one folder, one ledger."""

import contextlib
import json
import math
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from aae_dist.config import AshaScheduler, RunConfig, usable_cores
from aae_dist.errors import LaunchError
from aae_dist.launch import ending, sweep
from aae_dist.sweeps import FINAL, Entry, Ledger, Mode, SweepPlan, TrialState, read_sweep
from aae_dist.sweeps.checks import asha_key, asha_longest
from aae_dist.training.folder import RunState
from aae_dist.utils.text import echo

Message = dict[str, Any]


class Worker:
    """A worker process and the trial that it trains; `inbox` gets (worker, message or None)."""

    def __init__(
        self,
        number: int,
        gpu: int | None,
        threads: int,
        log: Path,
        inbox: "queue.Queue[tuple[Worker, Message]]",
    ) -> None:
        self.entry: Entry | None = None
        self.log = log
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        if gpu is not None:
            environment["CUDA_VISIBLE_DEVICES"] = str(gpu)
        with log.open("ab") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "aae_dist.launch.local_trial"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
                start_new_session=True,  # Ctrl-C is the driver's, which lets trials save
            )
        name = f"trial-worker-{number}"
        self._reader = threading.Thread(target=self._read, args=(inbox,), name=name, daemon=True)
        self._reader.start()

    def send(self, message: Message) -> None:
        assert self.process.stdin is not None
        # A process that has just died is noticed by its reader.
        with contextlib.suppress(OSError):
            self.process.stdin.write(json.dumps(message).encode() + b"\n")
            self.process.stdin.flush()

    def close(self) -> None:
        """End the process: at once where it trains, which its trial survives."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        self.process.wait()
        self._reader.join()

    def last_words(self) -> str:
        """Return in one line why the process died, as its log says."""
        text = self.log.read_text(errors="replace")[-10_000:].strip()
        number = self.process.wait()
        how = f"signal {-number}" if number < 0 else f"exit status {number}"
        return f"{ending.PROCESS_DIED} ({how})" + (
            f": {ending.condensed(text)}" if number > 0 and text else ""
        )

    def _read(self, inbox: "queue.Queue[tuple[Worker, Message]]") -> None:
        assert self.process.stdout is not None
        stream: IO[bytes] = self.process.stdout
        with stream:
            for line in stream:
                if line.endswith(b"\n"):
                    inbox.put((self, json.loads(line)))
        inbox.put((self, {"gone": True}))


class LocalSweep:
    """Hands trials to worker processes, takes their results, keeps the ledger."""

    def __init__(
        self,
        ledger: Ledger,
        launch_id: str,
        stop: ending.StopToken,
        changed: Callable[[], None],
        place: Path,
    ) -> None:
        self._ledger, self._launch_id, self._stop = ledger, launch_id, stop
        self._changed, self._place = changed, place
        self._objective = ledger.objective
        self._inbox: queue.Queue[tuple[Worker, Message]] = queue.Queue()
        self._again: list[Entry] = []  # trials whose process died
        self._optuna = _optuna_study(ledger)
        waiting = iter(ledger.in_start_order())
        self._next: Callable[[], Entry | None] = (
            self._optuna.next if self._optuna else lambda: next(waiting, None)
        )
        self._rungs = _rungs(ledger)
        self._gpus = gpu_slots(ledger.plan.configs)
        wanted = ledger.plan.sweep.max_concurrent
        self._slots = num_slots(ledger.plan.configs, len(self._gpus), wanted)
        self._workers: list[Worker] = []
        self._started = 0

    def run(self) -> None:
        """Return when every trial has ended, or all have stopped after a request."""
        sweep.announce(self._ledger, f"{self._slots} at once in processes of this machine")
        stop_by = 0.0
        try:
            with sweep.bookkeeping(self._ledger, self._slots, self._changed) as update:
                while self._fill() or self._busy():
                    self._take()
                    update()
                    if self._stop.requested and not stop_by:
                        echo(sweep.STOPPING)
                        stop_by = time.monotonic() + sweep.STOP_SECONDS
                        for worker in self._workers:
                            worker.process.send_signal(signal.SIGTERM)
                    if stop_by and time.monotonic() > stop_by:
                        break
        finally:
            for worker in self._workers:
                worker.close()

    def _busy(self) -> list[Worker]:
        return [worker for worker in self._workers if worker.entry is not None]

    def _fill(self) -> bool:
        """Give free slots the next trials; return whether any was given."""
        given = False
        while not self._stop.requested and len(self._busy()) < self._slots:
            entry = self._again.pop(0) if self._again else self._next()
            if entry is None:
                break
            idle = next((worker for worker in self._workers if worker.entry is None), None)
            self._give(idle or self._new_worker(), entry)
            given = True
        return given

    def _new_worker(self) -> Worker:
        number, self._started = self._started, self._started + 1
        gpu = self._gpus[len(self._workers) % len(self._gpus)] if self._gpus else None
        threads = max(config.launch.cpus for config in self._ledger.plan.configs)
        log = self._place / f"worker-{number}.log"
        worker = Worker(number, gpu, threads, log, self._inbox)
        self._workers.append(worker)
        return worker

    def _give(self, worker: Worker, entry: Entry) -> None:
        worker.entry = entry
        self._ledger.start(entry.plan.id)
        worker.send(
            {
                "trial": entry.plan.id,
                "config": entry.plan.config.model_dump_json(),
                "scores": self._objective.inputs,
                "launch_id": self._launch_id,
            }
        )

    def _take(self) -> None:
        """Take what workers have sent, waiting a moment for the first."""
        with contextlib.suppress(queue.Empty):
            worker, message = self._inbox.get(timeout=sweep.POLL_SECONDS)
            while True:
                self._handle(worker, message)
                worker, message = self._inbox.get_nowait()

    def _handle(self, worker: Worker, message: Message) -> None:
        entry = worker.entry
        if "gone" in message:
            self._workers.remove(worker)
            worker.close()
            if entry is not None:
                self._restart(entry, worker.last_words())
        elif entry is None or "ready" in message:
            return
        elif "crash" in message:
            worker.entry = None
            self._restart(entry, message["crash"])
        elif "mistake" in message:
            self._conclude(worker, entry, TrialState.FAILED, message["mistake"])
        elif "state" in message:
            self._ledger.update(entry.plan.id, message["metrics"], entry.parameters)
            self._finish(worker, entry, message)
        else:
            self._ledger.update(entry.plan.id, message["metrics"], entry.parameters)
            worker.send({"stop": self._is_pruned(entry, message["metrics"])})

    def _finish(self, worker: Worker, entry: Entry, message: Message) -> None:
        metrics, state = message["metrics"], message["state"]
        if state in (RunState.FINISHED, RunState.ALREADY_FINISHED):
            self._is_pruned(entry, metrics)  # its scores count for others
            cause = self._objective.no_score(metrics)
            self._conclude(worker, entry, TrialState.FINISHED, cause)
        elif state == ending.StopReason.PRUNED:
            cause = f"stopped by asha at step {int(metrics.get('step', 0))}"
            self._conclude(worker, entry, TrialState.PRUNED, cause)
        else:
            self._conclude(worker, entry, TrialState.INTERRUPTED)

    def _conclude(
        self, worker: Worker, entry: Entry, state: TrialState, cause: str | None = None
    ) -> None:
        worker.entry = None
        self._close_trial(entry, state, cause)

    def _close_trial(self, entry: Entry, state: TrialState, cause: str | None) -> None:
        self._ledger.finish(entry.plan.id, state, cause)
        if self._rungs is not None and state == TrialState.FAILED:
            self._rungs.drop(entry.plan.id)
        if self._optuna is not None:
            compares = self._ledger.is_comparable(entry.metrics)
            violations = self._objective.violations(entry.metrics)
            values = self._objective.values(entry.metrics)
            known = values if compares and violations is not None else None
            self._optuna.ended(entry.plan.id, state, known, violations or ())

    def _restart(self, entry: Entry, cause: str) -> None:
        if self._stop.requested:
            self._close_trial(entry, TrialState.INTERRUPTED, None)
        elif entry.restarts < self._ledger.plan.sweep.max_failures:
            self._ledger.crashed(entry.plan.id, cause)
            self._again.append(entry)
        else:
            self._close_trial(entry, TrialState.FAILED, f"crashed: {cause}")

    def _is_pruned(self, entry: Entry, metrics: dict[str, float]) -> bool:
        scheduler = self._ledger.plan.sweep.scheduler
        if self._rungs is None or not isinstance(scheduler, AshaScheduler):
            return False
        score = self._objective.comparable_score(metrics)
        unit = asha_key(scheduler, self._ledger.plan.configs)
        if score is None or unit not in metrics or not self._ledger.is_comparable(metrics):
            return False
        kept = self._objective.is_kept(metrics)
        return self._rungs.stops(entry.plan.id, metrics[unit], score, kept)


def _optuna_study(ledger: Ledger) -> Any:
    if ledger.plan.sweep.search.kind != "optuna":
        return None
    try:
        from aae_dist.launch.optuna_study import OptunaStudy
    except ImportError:
        raise LaunchError(
            "sweep.search=optuna needs Optuna, which is not installed: pip install optuna"
        ) from None
    return OptunaStudy(ledger)


class Rungs:
    """Decides at the rungs `grace`, `grace` x `factor`, ... below `longest` who continues.

    Asynchronous successive halving (Li et al., "A system for massively parallel hyperparameter
    tuning", 2020), with the decisions of Ray Tune's ASHA: a test compares both.

    At a rung a trial stops when it is worse than the best 1/`factor` of those that were there
    before. With constraints, a trial is never stopped while it is the only one, of those that run
    and those that have finished, whose newest scores keep them all.
    """

    def __init__(self, grace: int, longest: int, factor: int, mode: Mode) -> None:
        count = int(math.log(longest / grace) / math.log(factor) + 1)
        self._rungs = [(grace * factor**k, dict[str, float]()) for k in reversed(range(count))]
        self._factor, self._sign = factor, 1.0 if mode == "max" else -1.0
        self._keeping: set[str] = set()

    def stops(self, trial: str, time: float, score: float, is_kept: bool = True) -> bool:
        """Note a score of a trial, by `Objective.comparable_score`; return whether to stop it."""
        (self._keeping.add if is_kept else self._keeping.discard)(trial)
        if not self._is_behind(trial, time, self._sign * score) or self._keeping == {trial}:
            return False
        self.drop(trial)
        return True

    def drop(self, trial: str) -> None:
        """Note that a trial cannot be chosen any more: it was stopped, or has failed."""
        self._keeping.discard(trial)

    def _is_behind(self, trial: str, time: float, reward: float) -> bool:
        for milestone, recorded in self._rungs:
            if time < milestone:
                continue
            if trial in recorded:  # it was let through
                return False
            earlier, recorded[trial] = list(recorded.values()), reward
            percent = (1 - 1 / self._factor) * 100
            return bool(earlier) and reward < float(np.percentile(earlier, percent))
        return False


def _rungs(ledger: Ledger) -> Rungs | None:
    """Return the rungs of ASHA with the scores of earlier starts, None without that scheduler."""
    plan, objective = ledger.plan, ledger.objective
    asha = plan.sweep.scheduler
    if not isinstance(asha, AshaScheduler):
        return None
    longest = asha_longest(asha, plan.configs)
    assert longest is not None  # checked with the configuration
    rungs = Rungs(asha.grace, longest, asha.reduction_factor, objective.modes[0])
    unit = asha_key(asha, plan.configs)
    earlier = read_sweep(plan.uri).trials if ledger.in_state(*FINAL) else ()
    for trial in earlier:
        for record in trial.history if trial.state in FINAL else ():
            score = objective.comparable_score(record)
            if score is not None and unit in record:
                rungs.stops(trial.id, record[unit], score, objective.is_kept(record))
        if trial.state in (TrialState.PRUNED, TrialState.FAILED):
            rungs.drop(trial.id)
    return rungs


def gpu_slots(configs: Sequence[RunConfig]) -> list[int]:
    """Return the GPU of each slot, fractions sharing one; none where trials take no GPU."""
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    wanted = [1.0 if g == "auto" else g for g in (c.launch.gpus_per_worker for c in configs)]
    on_cpu = all(c.train.device == "cpu" or c.launch.gpus_per_worker == 0 for c in configs)
    if num_gpus == 0 or on_cpu or not wanted:
        return []
    per_gpu = max(1, int(1 / max(*wanted, 1e-3)))
    return [gpu for _ in range(per_gpu) for gpu in range(num_gpus)]


def num_slots(configs: Sequence[RunConfig], num_gpu_slots: int, wanted: int | None) -> int:
    """Return how many trials run at once: as many as cores and GPUs allow, or `wanted`."""
    fit = max(1, usable_cores() // max(config.launch.cpus for config in configs))
    if num_gpu_slots:
        fit = min(fit, num_gpu_slots)
    return wanted or fit


def launch_local_sweep(
    plan: SweepPlan, write_report: Callable[[str], None] | None = None, more: bool = False
) -> Ledger:
    """Run the trials that are not finished yet in processes of this machine.

    Arguments, result and errors are those of `run_sweep`.
    """

    def run(ledger: Ledger, launch_id: str, changed: Callable[[], None]) -> bool:
        folder = tempfile.TemporaryDirectory(prefix="aae_dist-tune-")
        with ending.StopSignals() as stop, folder as place:
            LocalSweep(ledger, launch_id, stop, changed, Path(place)).run()
        return stop.requested

    return sweep.run_sweep(plan, run, write_report, more)
