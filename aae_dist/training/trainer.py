"""One run from start to end, on every rank: the same for every launcher."""

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from aae_dist.checkpoints.store import CheckpointStore, Saved
from aae_dist.config import RunConfig
from aae_dist.config.redaction import redacted
from aae_dist.distributed.collectives import run_on_all_ranks, run_on_rank_zero
from aae_dist.distributed.fingerprint import RankComparison
from aae_dist.distributed.world import World
from aae_dist.errors import AaeDistError, DataError, TrainingDivergedError
from aae_dist.priors import EmpiricalPrior
from aae_dist.tracking import MetricSink, OpenConsole
from aae_dist.training.goodput import Goodput
from aae_dist.training.health.gan_diagnostics import GameAlarms
from aae_dist.training.health.heartbeats import open_board
from aae_dist.training.health.rollback import GuardError, Rollbacks, good_checkpoint
from aae_dist.training.health.watchdog import RANK_0_SECONDS, Watchdog
from aae_dist.training.loop import Metrics, TrainLoop
from aae_dist.training.outcome import Outcome
from aae_dist.training.plan import Plan
from aae_dist.training.recorder import Recorder
from aae_dist.training.reporter import Reporter
from aae_dist.training.run.checkpointer import Saver, newest_checkpoint
from aae_dist.training.run.folder import RunFolder
from aae_dist.training.run.lock import RunLock, locked
from aae_dist.training.run.resume import finished_before, load_initial_weights
from aae_dist.training.run_data import open_data
from aae_dist.training.setup import augmented, build_engine, fit_memory, open_loader
from aae_dist.training.state import TrainState
from aae_dist.utils.progress import Advance, no_progress, progress


def train(
    config: RunConfig,
    world: World,
    reporter: Reporter,
    launch_id: str,
    sinks: Sequence[MetricSink] = (),
    console: OpenConsole | None = None,
) -> Outcome:
    """Train the run that `config` describes, from its newest checkpoint if there is one.

    Every rank calls this, with the thread count and the process group already set.

    Args:
        config: the run's configuration; `run.storage` is absolute.
        world: this process's place among the ranks.
        reporter: the launcher's ear and mouth.
        launch_id: the same for all ranks and restarts of one launch; it may take over its own lock.
        sinks: where rank 0's records go beside the console, the run's folder and W&B.
        console: makes what people watch; by default a bar on a terminal, lines anywhere else.

    Returns:
        How the run ended, alike on every rank.

    Raises:
        AaeDistError: the same on every rank, whichever rank met the problem.
    """
    folder = RunFolder(config)
    done = run_on_rank_zero(world, lambda: _as_json(finished_before(config)))
    if done:
        return Outcome(**done)
    limit = config.launch.hang_timeout_seconds
    with (
        Watchdog(world, limit, reporter.line, open_board(world, limit)) as watchdog,
        locked(folder.storage, world, launch_id) as lock,
    ):
        run = _Run(config, world, reporter, folder, lock, watchdog)
        run.sinks, run.console = sinks, console
        return run.run()


class _Run:
    """The stages of `train`, between taking the lock and giving it back."""

    sinks: Sequence[MetricSink] = ()
    console: OpenConsole | None = None

    def __init__(
        self,
        config: RunConfig,
        world: World,
        reporter: Reporter,
        folder: RunFolder,
        lock: RunLock | None,
        watchdog: Watchdog,
    ) -> None:
        adversary = config.method.adversary if config.method.kind == "adversarial" else "bce"
        self.watchdog, self.alarms = watchdog, GameAlarms(adversary)
        self.world, self.reporter, self.folder, self.lock = world, reporter, folder, lock
        self.recorder: Recorder | None = None
        self._bad_said = 0
        attempt = lock.attempt if lock else 0
        self.store = CheckpointStore(
            folder.storage, config.checkpoint.keep, self._before_commit, attempt, self._say
        )
        saved = newest_checkpoint(self.store, config, folder, world)
        self.goodput = Goodput(saved.documents.get("goodput") if saved else None)
        with watchdog.section("opening the data"):
            self.data = open_data(config, world, saved, folder.uri, self._counting)
        self.config = self.data.config
        self.engine = build_engine(self.data, world)
        prior = self.data.prior
        self.state = TrainState(
            self.engine.networks,
            self.engine.method.optimizers,
            self.engine.average,
            prior.vectors_MZ if isinstance(prior, EmpiricalPrior) else None,
        )
        run_on_all_ranks(world, lambda: self._load(saved))
        self.engine = fit_memory(self.engine, self.state, self.data, world)
        self.plan = Plan.of(self.config, self.data.order, self.state.step, self.state.position)

    def run(self) -> Outcome:
        """Train, save, and write down how it ended."""
        run_on_rank_zero(self.world, self._open_records)
        saver = self._saver()
        try:
            state = self._train(saver)
            with self.watchdog.section("saving", RANK_0_SECONDS):
                saver.finish()
        except TrainingDivergedError:
            self._close("diverged", saver)
            raise
        except BaseException as error:
            error.add_note(f"after step {self.state.step}")
            if self.recorder:
                if isinstance(error, DataError):
                    self._upload_last()
                self.recorder.abandon()
            raise
        return self._close(state, saver)

    @contextmanager
    def _counting(self, label: str, total: int, unit: str) -> Iterator[Advance]:
        """Show on rank 0 how far counting is; on every rank, each count is a sign of life."""
        show = partial(progress, write=self.reporter.line) if self.world.is_main else no_progress
        with show(label, total, unit) as advance:

            def counted(count: int) -> None:
                self.watchdog.alive()
                advance(count)

            yield counted

    def _load(self, saved: Saved | None) -> None:
        if saved is not None:
            self._restore(saved)
            self._say(f"resuming {self.folder.uri} at step {saved.step} with {self.world}")
            return
        source = self.config.run.init_from
        weights = f" from weights of {source}" if source else ""
        self._say(f"starting {self.folder.uri} with {self.world}{weights}")
        if source:
            load_initial_weights(self.state, source)

    def _restore(self, saved: Saved) -> None:
        self.state.load(saved.tensors, saved.documents["state"])
        other_shards = saved.documents["data"]["manifest"] != self.data.train.manifest.id
        if self.data.restart is not None and other_shards:
            self.data.restart.move(self.state, self.data.order)

    def _open_records(self) -> None:
        self.folder.write_config(self.config)
        self.recorder = Recorder(
            self.config,
            self.folder,
            self.state.step,
            self.plan.last_step,
            self.reporter.line,
            self.sinks,
            self.console,
        )
        self.recorder.list_bad(self.state.bad.lines())

    def _saver(self) -> Saver:
        config = redacted(self.config.model_dump(mode="json"))
        documents = {"config": config, "data": self.data.document}

        def goodput() -> dict[str, Any]:
            return self.goodput.document(finished=self.state.step == self.plan.last_step)

        return Saver(self.store, self.world, documents, self._still_ours, self._say, goodput)

    def _train(self, saver: Saver) -> str:
        """Train to the end, going back to a good checkpoint where a guard says so."""
        rollbacks = Rollbacks(self.config, self._say)
        while True:
            try:
                return self._loop(saver)
            except GuardError as error:
                self._go_back(error, rollbacks.allow(error))

    def _go_back(self, error: GuardError, factor: float) -> None:
        """Load the newest good checkpoint into the live networks; the process group stays."""
        self.goodput.start_again()
        with self.watchdog.section("going back to a checkpoint"):
            saved = good_checkpoint(self.store, self.world, error)
            factor *= self.state.lr_factor
            self._restore(saved)
            self.state.scale_lr(factor)
        if self.recorder:
            self.recorder.truncate(saved.step)
            self.recorder.list_bad(self.state.bad.lines())

    def _loop(self, saver: Saver) -> str:
        data, engine, state = self.data, self.engine, self.state
        state.judge_by(f"{self.config.train.best_metric} of {data.validation_id}")
        loop = TrainLoop(
            config=self.config,
            world=self.world,
            state=state,
            method=engine.method,
            inputs=engine.inputs,
            order=data.order,
            last_step=self.plan.last_step,
            planned_samples=self.plan.samples,
            evaluate=self._evaluate if data.evaluator else None,
            record=self.recorder.record if self.recorder else lambda record: None,
            checkpoints=saver,
            reporter=self.reporter,
            on_step=self.recorder.on_step if self.recorder else lambda step: None,
            bad_found=self._bad_found,
            goodput=self.goodput,
            watchdog=self.watchdog,
            comparison=RankComparison(engine.networks.named(), self.world),
            alarms=self.alarms,
        )
        num_steps = self.plan.last_step - state.step
        with open_loader(data, self.world, state.position, num_steps) as batches:
            return loop.run(augmented(data, self.world, batches))

    def _bad_found(self, num_new: int) -> None:
        bad = self.state.bad
        if self.recorder:
            self.recorder.list_more_bad(bad.lines(num_new))
        if bad.num_samples >= 2 * self._bad_said:  # a line a sample would bury everything else
            self._bad_said = bad.num_samples
            self._say(f"warning: {bad.num_samples} bad samples are left out: {bad.summary()}")

    def _evaluate(self) -> Metrics:
        assert self.data.evaluator is not None
        evaluation = self.data.evaluator.evaluate(self.engine.autoencoder)
        if self.recorder and evaluation.images:
            self.recorder.show(evaluation.images)
        if bad := int(evaluation.metrics["data/bad_validation_samples"]):
            self._say(f"warning: {bad} bad validation samples are left out of the scores")
        return evaluation.metrics

    def _close(self, state: str, saver: Saver) -> Outcome:
        """Write the last records; every rank returns rank 0's outcome."""

        def close() -> dict[str, Any]:
            assert self.recorder is not None
            how = self.reporter.stopped_as() if state == "interrupted" else state
            # The last evaluation and the last save came after the last log point.
            metrics = self.recorder.latest | self.goodput.metrics() | saver.costs()
            outcome = Outcome(how, self.state.step, metrics, self.folder.uri)
            alarms = self.recorder.alarms()
            self.recorder.close(how)
            self.folder.write_summary(outcome, self.config, alarms)
            return dataclasses.asdict(outcome)

        with self.watchdog.section("writing the summary", RANK_0_SECONDS):
            return Outcome(**run_on_rank_zero(self.world, close))

    def _before_commit(self) -> None:
        # In the thread that saves, before each write of a checkpoint: its metrics must be there
        # when its manifest is, or a resumed run would miss lines.
        self._still_ours()
        if self.recorder:
            self.recorder.upload()

    def _upload_last(self) -> None:
        """Let the folder tell which samples were bad, although no checkpoint follows."""
        try:
            self._before_commit()
        except (AaeDistError, OSError) as error:
            self._say(f"bad_samples.jsonl was not written: {error}")

    def _still_ours(self) -> None:
        if self.lock:
            self.lock.check()

    def _say(self, text: str) -> None:
        if self.world.is_main:
            self.reporter.line(text)


def _as_json(outcome: Outcome | None) -> dict[str, Any] | None:
    return dataclasses.asdict(outcome) if outcome else None
