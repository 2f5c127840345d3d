"""Parts of sweeps that all launchers share: checks, added seeds, reports, the end."""

import contextlib
import hashlib
import secrets
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from aae_dist.errors import (
    ConfigError,
    DataError,
    Interrupted,
    LaunchError,
    TrainingDivergedError,
    by_name,
)
from aae_dist.launch.ending import WorkersFailedError
from aae_dist.launch.ray.cluster import check_data
from aae_dist.launch.sweep_progress import SweepProgress
from aae_dist.storage import open_storage
from aae_dist.sweeps.folder import READERS, SweepState, TrialState
from aae_dist.sweeps.ledger import FINAL, Ledger
from aae_dist.sweeps.plan import SweepPlan, TrialPlan, describe
from aae_dist.sweeps.recommendation import size_of
from aae_dist.tracking import open_wandb
from aae_dist.training.checkpointer import finished_before
from aae_dist.training.lock import RunLock
from aae_dist.utils.text import echo

RunTrials = Callable[[Ledger, str, Callable[[], None]], bool]
"""Runs the trials of a ledger, with the launch's id; returns whether it was asked to stop. The
function that it gets has the report written soon."""
POLL_SECONDS = 0.5
STOP_SECONDS = 120.0  # how long trials may take to save and end after a signal
STOPPING = "stopping: running trials save a checkpoint first; a second signal ends at once"
REPORT_SECONDS = 60.0  # least time between two reports while the sweep runs


def run_sweep(
    plan: SweepPlan,
    run: RunTrials,
    write_report: Callable[[str], None] | None = None,
    more: bool = False,
) -> Ledger:
    """Run the trials that are not finished yet; return the ledger of all.

    `run` runs them and returns whether it was asked to stop. `write_report` is called with the
    sweep's folder now and then, and at the end. With `more`, a sweep that has ended gets the seeds
    that its recommendation asks for.

    Raises:
        Interrupted: the sweep was asked to stop; running trials have saved.
        AaeDistError: the sweep cannot start, or no trial has finished.
    """
    folder = open_storage(plan.uri)
    folder.check_writable()
    launch_id = secrets.token_hex(8)
    with RunLock.acquire(folder, launch_id):
        check_same(plan.trials)
        ledger = Ledger(plan, folder)
        if more:
            add_more(ledger)
        if len(ledger.entries) >= ledger.plan.num_trials and not ledger.pending():
            echo(f"This sweep had already finished: {plan.uri}")
            ledger.write("finished")
            return ledger
        check_data(plan.configs)
        with reports(plan.uri, write_report) as changed:
            _run_to_end(ledger, run, launch_id, changed)
    return ledger


def _run_to_end(
    ledger: Ledger, run: RunTrials, launch_id: str, changed: Callable[[], None]
) -> None:
    state: SweepState = "interrupted"
    ledger.write()
    try:
        if run(ledger, launch_id, changed):
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
    log_recommendation(ledger)


def announce(ledger: Ledger, how: str) -> None:
    """Print how many trials are to run; `how` says how many at once, and where."""
    counts, plan = ledger.counts(), ledger.plan
    waiting = counts[TrialState.WAITING] + counts[TrialState.INTERRUPTED]
    echo(f"sweep {plan.uri}: {waiting} of {plan.num_trials} trials to run, {how}")


@contextlib.contextmanager
def bookkeeping(
    ledger: Ledger, concurrent: int, changed: Callable[[], None]
) -> Iterator[Callable[[], None]]:
    """Yield a function to call twice per second while trials run.

    It shows progress, writes the ledger, and calls `changed` when a trial has ended.
    """
    num_ended = 0
    with SweepProgress(ledger, concurrent) as progress:

        def update() -> None:
            nonlocal num_ended
            progress.update()
            ledger.write(force=False)
            if problem := ledger.pop_error():
                echo(f"the sweep's folder was not written, trying again: {problem}")
            if (now_ended := len(ledger.in_state(*FINAL))) > num_ended:
                num_ended = now_ended
                changed()

        yield update


def check_same(trials: Sequence[TrialPlan]) -> None:
    """Raise CheckpointError when a trial's folder holds another configuration's run."""

    def check(trial: TrialPlan) -> None:
        # One that diverged, or whose files are damaged, stays as the ledger has it.
        with contextlib.suppress(TrainingDivergedError, DataError):
            finished_before(trial.config)

    with ThreadPoolExecutor(READERS, thread_name_prefix="check-trials") as pool:
        list(pool.map(check, trials))


def add_more(ledger: Ledger) -> None:
    """Add the seeds that the recommendation asks for, once all other trials have ended."""
    if ledger.plan.sweep.scheduler.kind == "pbt":
        text = (
            "changes parameters while trials run, so there is no trial to repeat with other seeds"
        )
        raise ConfigError(f"--more: pbt {text}; leave --more out")
    if ledger.pending() or len(ledger.entries) < ledger.plan.num_trials:
        echo("note: the sweep has trials left, which run first; give --more again afterwards")
        return
    recommendation = ledger.recommendation()
    added = ledger.add_seeds(recommendation.add)
    for entry in added:
        echo(f"added: trial {entry.plan.label} ({describe(entry.parameters)})")
    if not added:
        echo("--more adds nothing: more seeds are not needed to choose")


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
def reports(uri: str, write: Callable[[str], None] | None) -> Iterator[Callable[[], None]]:
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


def log_recommendation(ledger: Ledger) -> None:
    """Write the recommendation of a finished sweep to the summary of a W&B run of the sweep's own.

    Where W&B is off it does nothing, and no failure of W&B is one of the sweep.
    """
    plan, found = ledger.plan, ledger.recommendation()
    config = plan.configs[0]
    if config.wandb.mode == "disabled" or found.chosen is None:
        return
    run = config.run.model_copy(update={"title": f"{plan.sweep.name}: recommendation"[:100]})
    named = config.model_copy(update={"run": run})
    with tempfile.TemporaryDirectory(prefix="aae_dist-wandb-") as place:
        run_id = hashlib.sha256(ledger.folder.uri.encode()).hexdigest()[:16]
        sink = open_wandb(named, run_id, ledger.folder, Path(place), echo)
        if sink is None:
            return
        summary: dict[str, float | str] = {
            "recommendation": found.sentence,
            "recommendation/score": found.chosen.score[0],
            "recommendation/seeds": float(found.chosen.num_seeds),
        }
        if (size := size_of(found.chosen.parameters)) is not None:
            summary["recommendation/latent_dim"] = size
        summary |= {f"recommendation/{n}_upper": v for n, v in found.chosen.bounds.items()}
        sink.close(summary, "finished")
