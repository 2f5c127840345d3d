"""Parts of sweeps that all launchers share: checks, progress, added seeds, reports, the end."""

import contextlib
import hashlib
import secrets
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich import console, live, table, text

from aae_dist import errors
from aae_dist.config.metric_names import NUM_FEATURED, NUM_SAMPLES
from aae_dist.launch.ending import WorkersFailedError
from aae_dist.launch.ray.cluster import check_data
from aae_dist.storage import open_storage
from aae_dist.sweeps import FINAL, Entry, Ledger, SweepPlan, TrialPlan, describe
from aae_dist.sweeps.folder import READERS, SweepState, TrialState
from aae_dist.sweeps.recommendation import size_of
from aae_dist.tracking import open_wandb
from aae_dist.training import checkpointer, lock
from aae_dist.utils.text import clock, echo

RunTrials = Callable[[Ledger, str, Callable[[], None]], bool]
"""Runs the trials of a ledger, with the launch's id; returns whether it was asked to stop. The
function that it gets has the report written soon."""
POLL_SECONDS = 0.5
STOP_SECONDS = 120.0  # how long trials may take to save and end after a signal
STOPPING = "stopping: running trials save a checkpoint first; a second signal ends at once"
REPORT_SECONDS = 60.0  # least time between two reports while the sweep runs
LINE_SECONDS = 30.0
"""Time between two lines on how far the sweep is; ends of trials are shown at once."""
SHOWN = 12  # running trials that the live table shows


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
    with lock.RunLock.acquire(folder, launch_id):
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
            raise errors.Interrupted(
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
        with contextlib.suppress(errors.TrainingDivergedError, errors.DataError):
            checkpointer.finished_before(trial.config)

    with ThreadPoolExecutor(READERS, thread_name_prefix="check-trials") as pool:
        list(pool.map(check, trials))


def add_more(ledger: Ledger) -> None:
    """Add the seeds that the recommendation asks for, once all other trials have ended."""
    if ledger.plan.sweep.scheduler.kind == "pbt":
        text = (
            "changes parameters while trials run, so there is no trial to repeat with other seeds"
        )
        raise errors.ConfigError(f"--more: pbt {text}; leave --more out")
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
    kinds = {WorkersFailedError if name == "crashed" else errors.by_name(name) for name in names}
    error = kinds.pop() if len(kinds) == 1 else errors.LaunchError
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


class SweepProgress:
    """Shows a sweep as a live table, or as lines without a terminal; see `bookkeeping`."""

    def __init__(
        self,
        ledger: Ledger,
        concurrent: int,
        clock: Callable[[], float] = time.monotonic,
        terminal: console.Console | None = None,
    ) -> None:
        self._ledger, self._concurrent, self._clock = ledger, concurrent, clock
        self._reported = {entry.plan.id for entry in ledger.in_state(*FINAL)}
        self._restarts = {entry.plan.id: entry.restarts for entry in ledger.entries.values()}
        self._next_line = clock() + LINE_SECONDS
        if terminal is None and sys.stdout.isatty():
            terminal = console.Console()
        self._live = live.Live(console=terminal, auto_refresh=False) if terminal else None

    def __enter__(self) -> "SweepProgress":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.update()
        if self._live is not None:
            self._live.stop()

    def update(self) -> None:
        for line in self._new_lines():
            self._print(line)
        if self._live is not None:
            self._live.update(console.Group(self._table(), text.Text(self.status())), refresh=True)
        elif self._clock() >= self._next_line:
            self._next_line = self._clock() + LINE_SECONDS
            echo(self.status())

    def status(self) -> str:
        counts = self._ledger.counts()
        parts = [f"{count} {state}" for state, count in counts.items() if count]
        for best in self._ledger.ranked()[:1]:
            parts.append(f"best {self.score(best)} ({describe(best.parameters)})")
        if (left := self.seconds_left()) is not None:
            parts.append(f"about {clock(left)} left")
        return f"sweep {self._ledger.plan.sweep.name}: " + " | ".join(parts)

    def seconds_left(self) -> float | None:
        """Return an estimate from the mean cost of ended trials, None before the first one."""
        ended = self._ledger.in_state(TrialState.FINISHED, TrialState.PRUNED)
        costs, counts = [e.seconds for e in ended if e.seconds > 0], self._ledger.counts()
        running = self._ledger.in_state(TrialState.RUNNING)
        to_start = counts[TrialState.WAITING] + counts[TrialState.INTERRUPTED]
        if not costs or not running and not to_start:
            return None
        mean = sum(costs) / len(costs)
        left = sum(max(mean - entry.cost(), 0.0) for entry in running) + to_start * mean
        return left / self._concurrent

    def score(self, entry: Entry) -> str:
        values = self._ledger.objective.values(entry.metrics)
        return "no score" if values is None else ", ".join(f"{value:.4g}" for value in values)

    def _new_lines(self) -> list[str]:
        lines = []
        for entry in self._ledger.in_state(TrialState.RUNNING, TrialState.INTERRUPTED, *FINAL):
            name = entry.plan.id
            if entry.restarts > self._restarts.get(name, 0):
                self._restarts[name] = entry.restarts
                lines.append(f"{self._title(entry)} starts again: {entry.cause or 'it crashed'}")
            if entry.state in FINAL and name not in self._reported:
                self._reported.add(name)
                lines.append(self._end_line(entry))
        return lines

    def _title(self, entry: Entry) -> str:
        trials = self._ledger.plan.num_trials
        return f"trial {entry.plan.label} of {trials} ({describe(entry.parameters)})"

    def _end_line(self, entry: Entry) -> str:
        took = clock(entry.seconds)
        if entry.state == TrialState.FINISHED:
            cause = f"; {entry.cause}" if entry.cause else ""
            if not self._ledger.is_comparable(entry.metrics):
                n = entry.metrics.get(NUM_SAMPLES) or entry.metrics[NUM_FEATURED]
                cause += f"; of {n:g} samples, other trials of another number or other features: "
                cause += "not compared"
            return f"{self._title(entry)} finished: {self.score(entry)}, {took}{cause}"
        return f"{self._title(entry)} {entry.state}: {entry.cause}, {took}"

    def _table(self) -> table.Table:
        rows = table.Table("trial", "parameters", "step", str(self._ledger.objective), "time")
        for entry in self._ledger.in_state(TrialState.RUNNING)[:SHOWN]:
            score, time = self.score(entry), clock(entry.cost())
            rows.add_row(
                entry.plan.label, describe(entry.parameters), f"{entry.step:,}", score, time
            )
        return rows

    def _print(self, line: str) -> None:
        if self._live is not None:
            self._live.console.print(line, markup=False, highlight=False)
        else:
            echo(line)
