"""Runs a sweep with Ray Tune: finished trials of its folder stay so, all others run or resume.

Tune's own record of an experiment is not used: it is a pickle, it knows nothing of trials that
started since its last save, and it would not let the space grow.
"""

import contextlib
import os
import secrets
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from aae_dist.errors import DataError, Interrupted, LaunchError, TrainingDivergedError, by_name
from aae_dist.launch.ending import StopSignals, WorkersFailedError
from aae_dist.launch.ray import cluster
from aae_dist.storage import open_storage
from aae_dist.sweeps.folder import READERS, SweepState, TrialState
from aae_dist.sweeps.ledger import Ledger
from aae_dist.sweeps.plan import SweepPlan, TrialPlan
from aae_dist.training.checkpointer import finished_before
from aae_dist.training.lock import RunLock
from aae_dist.utils.text import echo

POLL_SECONDS = 0.5
REPORT_SECONDS = 60.0  # least time between two reports while the sweep runs
ENVIRONMENT = {
    # Trials lie in folders of their own: no CSV, JSON and TensorBoard copies of every result.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # Progress between evaluations holds no score.
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    # Of no use to us: see above.
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_MAX_LEN_IDENTIFIER": "40",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}


def launch_sweep(plan: SweepPlan, write_report: Callable[[str], None] | None = None) -> Ledger:
    """Run the trials that are not finished yet; return the ledger of all.

    `write_report` is called with the sweep's folder now and then, and at the end.

    Raises:
        Interrupted: the sweep was asked to stop; running trials have saved.
        AaeDistError: the sweep cannot start, or no trial has finished.
    """
    configs = plan.configs
    cluster.check_storage(configs[0])
    for config in configs:
        cluster.check_machine(config)
    for line in cluster.advice(configs[0]):
        echo(line)
    folder = open_storage(plan.uri)
    folder.check_writable()
    launch_id = secrets.token_hex(8)
    with RunLock.acquire(folder, launch_id):
        check_same(plan.trials)
        ledger = Ledger(plan, folder)
        if len(ledger.entries) >= plan.num_trials and not ledger.pending():
            echo(f"This sweep had already finished: {plan.uri}")
            ledger.write("finished")
            return ledger
        cluster.check_data(configs)
        with _reports(plan.uri, write_report) as changed:
            _run(ledger, launch_id, changed)
    return ledger


def check_same(trials: Sequence[TrialPlan]) -> None:
    """Raise CheckpointError when a trial's folder holds another configuration's run."""

    def check(trial: TrialPlan) -> None:
        # One that diverged, or whose files are damaged, stays as the ledger has it.
        with contextlib.suppress(TrainingDivergedError, DataError):
            finished_before(trial.config)

    with ThreadPoolExecutor(READERS, thread_name_prefix="check-trials") as pool:
        list(pool.map(check, trials))


def _run(ledger: Ledger, launch_id: str, changed: Callable[[], None]) -> None:
    state: SweepState = "interrupted"
    ledger.write()
    try:
        os.environ.update(ENVIRONMENT)
        plan = ledger.plan
        # Handlers for signals come last: Ray's start replaces them.
        with cluster.connected(plan.configs[0]), tune_folder() as place, StopSignals() as stop:
            from aae_dist.tune.driver import SweepDriver

            SweepDriver(ledger, launch_id, place, stop, changed).run()
        if stop.requested:
            raise Interrupted(
                f"{ledger.plan.uri}: stopped as asked, each running trial with a checkpoint. "
                "The same command resumes from there."
            )
        state = "finished"
    finally:
        for entry in ledger.in_state(TrialState.RUNNING):
            ledger.finish(entry.plan.id, TrialState.INTERRUPTED)
        ledger.write(state)
    check_any_finished(ledger)


def tune_folder() -> tempfile.TemporaryDirectory[str]:
    """Return a folder for Tune's own files, the driver's alone: no other node sees it."""
    return tempfile.TemporaryDirectory(prefix="aae_dist-tune-", ignore_cleanup_errors=True)


def check_any_finished(ledger: Ledger) -> None:
    """Raise an error of the trials' own class when none has finished: it decides the exit code."""
    if ledger.in_state(TrialState.FINISHED, TrialState.PRUNED):
        return
    causes = [entry.cause or "" for entry in ledger.in_state(TrialState.FAILED)]
    # A cause begins with the class of its error.
    names = {cause.partition(":")[0] for cause in causes}
    kinds = {WorkersFailedError if name == "crashed" else by_name(name) for name in names}
    error = kinds.pop() if len(kinds) == 1 else LaunchError
    cause = causes[0] if causes else "no trial was started"
    raise error(f"{ledger.plan.uri}: no trial has finished; the first one: {cause}")


@contextlib.contextmanager
def _reports(uri: str, write: Callable[[str], None] | None) -> Iterator[Callable[[], None]]:
    """Yield a function that has the report written soon, in a thread that can stop nothing."""
    wanted, closed = threading.Event(), threading.Event()
    if write is None:
        yield wanted.set
        return

    def serve() -> None:
        while not closed.is_set():
            if wanted.wait(POLL_SECONDS):
                wanted.clear()
                _write(uri, write)
                closed.wait(REPORT_SECONDS)

    thread = threading.Thread(target=serve, name="report", daemon=True)
    thread.start()
    try:
        yield wanted.set
    finally:
        closed.set()
        thread.join(REPORT_SECONDS)
        _write(uri, write)


def _write(uri: str, write: Callable[[str], None]) -> None:
    try:
        write(uri)
    except Exception as error:  # A report is worth less than the sweep.
        echo(f"the report was not written: {type(error).__name__}: {error}")
