"""The life of a run, the same on every rank and for every launcher.

`train` takes the run's lock, opens the `TrainingSetup` and calls `Trainer.fit`. The training loop
is `Trainer._run_to_end`; the methods that it calls follow in its order.
"""

import dataclasses
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from aae_dist.checkpoints.store import OnCheckpoint
from aae_dist.config import RunConfig
from aae_dist.data import Batch
from aae_dist.data.bad_samples import Limits, sum_counts
from aae_dist.distributed.world import RankComparison, World, gather_json, run_on_rank_zero
from aae_dist.errors import AaeDistError, DataError, TrainingDivergedError
from aae_dist.evaluation import why_no_pca
from aae_dist.methods import Losses
from aae_dist.tracking import MetricSink, OpenConsole
from aae_dist.training import checkpointer, diagnostics, folder as run_folder, health
from aae_dist.training.folder import Outcome, Reporter, RunFolder, RunState, record_failure
from aae_dist.training.recorder import Recorder
from aae_dist.training.setup import TrainingSetup, run_lock
from aae_dist.training.watchdog import RANK_0_SECONDS, SECTION_SECONDS, Watchdog

Metrics = dict[str, float]


def train(
    config: RunConfig,
    world: World,
    reporter: Reporter,
    launch_id: str,
    sinks: Sequence[MetricSink] = (),
    console: OpenConsole | None = None,
    on_checkpoint: OnCheckpoint | None = None,
) -> Outcome:
    """Train a run to its end, from its newest checkpoint if there is one.

    Every rank calls this, with threads and process group set. The result, and an AaeDistError, is
    the same on every rank; a run that has finished gives its earlier result.

    Args:
        config: with an absolute `run.storage`.
        world: this process's place among the ranks.
        reporter: the launcher's callbacks.
        launch_id: the same for all ranks and restarts of one launch; it may take over its own lock.
        sinks: where rank 0 logs in addition to the console, the run's folder and W&B.
        console: opens the progress display; by default a bar on a terminal, lines elsewhere.
        on_checkpoint: called on rank 0 for each stored checkpoint, between two steps.
    """
    folder = RunFolder(config)
    if done := run_on_rank_zero(world, lambda: _as_json(checkpointer.finished_before(config))):
        return Outcome(**done)
    with (
        Watchdog(world, config.launch.hang_timeout_seconds, reporter.line) as watchdog,
        run_lock(folder.storage, world, launch_id) as lock,
    ):
        try:
            setup = TrainingSetup(config, world, reporter, folder, lock, watchdog)
        except BaseException as error:
            record_failure(folder, config, error, lock)
            raise
        setup.store.on_stored = on_checkpoint
        return Trainer(setup, sinks, console).fit()


class Trainer:
    """Trains one run. Every rank has one, and they take all decisions together."""

    def __init__(
        self, setup: TrainingSetup, sinks: Sequence[MetricSink], console: OpenConsole | None
    ) -> None:
        self.setup, self.config, self.world = setup, setup.config, setup.world
        self.state, self.method, self.inputs = setup.state, setup.method, setup.inputs
        self.order, self.log = setup.data.order, setup.log
        self.watchdog, self.goodput = setup.watchdog, setup.goodput
        # Health.
        self.rollbacks = health.RollbackPolicy(self.config, self.log)
        prior = setup.data.prior
        self.diagnostics = diagnostics.open_diagnostics(self.config, prior)
        self.codes = diagnostics.CodeStatistics(prior, self.world.device, self.inputs.dtype)
        self._num_codes = 0
        self._bad_samples_reported, self._unused_reported = 0, False
        # Records and checkpoints.
        self.recorder = self._open_recorder(sinks, console)
        self.checkpointer = checkpointer.Checkpointer(
            setup.store,
            self.world,
            self.log,
            metadata=setup.metadata,
            goodput=self.goodput,
            last_step=setup.last_step,
            # A resumed run would miss the metrics that are not stored before its checkpoint.
            before_commit=self.recorder.upload if self.recorder else lambda: None,
        )

    def fit(self) -> Outcome:
        """Train to the end, or until a stop is requested; roll back where health demands it."""
        with self._recording_failures():
            while True:
                try:
                    ending = self._run_to_end()
                    break
                except health.RollbackNeeded as error:  # non-finite updates, or ranks drifted apart
                    self._roll_back(error)
            with self.watchdog.section("saving", RANK_0_SECONDS):
                self.checkpointer.finish()
        return self._finish(ending)

    def _run_to_end(self) -> RunState:
        self._start_interval()
        with self.setup.open_batches() as batches:
            for batch in self._timed(batches):
                # Train on one global batch.
                losses = self.train_step(batch)
                self._step_done()
                # Check health; either may raise RollbackNeeded.
                self._check_skipped_updates()
                self._compare_ranks()
                # Log and evaluate where due.
                is_best = self._log_and_evaluate(losses)
                if self._ends_an_epoch(batch) or self.is_last_step:
                    self._report_unused()
                # Save or stop, decided by all ranks together.
                if self._save_or_stop(is_best):
                    return RunState.INTERRUPTED
        return RunState.FINISHED

    def _start_interval(self) -> None:
        """Reset everything that counts from the first step, after a start or a rollback."""
        self.state.set_best_metric(self.setup.data.best_metric_id(self.config.train.best_metric))
        self.comparison = RankComparison(self.setup.networks.named(), self.world)
        self.consensus = health.StopConsensus(self.world, self.state.step)
        self._saved_at = self._logged_at = time.monotonic()
        self._samples_logged = self.samples_seen

    def _timed(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the batches; the time that reading takes is no time of training."""
        iterator = iter(batches)
        while True:
            with self.goodput.part("data_wait"), self.watchdog.section("reading data"):
                batch = next(iterator, None)
            if batch is None:
                return
            yield batch

    # One step.

    def train_step(self, batch: Batch) -> Losses:
        """Run every phase on one global batch and advance the state."""
        # Progress counts samples of the plan, so that bad samples do not shift the learning rates.
        done = self.order.samples_seen(self.state.position)
        self.method.set_progress(done / self.setup.total_samples)
        self._note_bad_samples(batch)
        # A batch without one good sample on any rank has no losses, and networks, moments and
        # average stay as they are: with gradients of zero, Adam's momentum would still move the
        # weights.
        losses: Losses = {}
        self._num_codes = batch.num_valid
        if batch.num_valid:
            parts = self.inputs.parts(
                batch.images, batch.valid, batch.num_valid, self.state.step, batch.labels
            )
            losses = self.method.step(parts)
        self.state.step += 1
        if losses and self.state.average is not None:
            self.state.average.update(self.state.step)
        self.state.position = batch.plan.next_position
        return losses

    def _step_done(self) -> None:
        self.goodput.step_done()
        self.watchdog.beat(self.state.step)
        if self.recorder:
            self.recorder.on_step(self.state.step)

    def _note_bad_samples(self, batch: Batch) -> None:
        """List the batch's bad samples; every rank has all of them, so all stop at this step."""
        bad, data = self.state.bad, self.config.data
        num_new = bad.add(batch.bad, batch.plan.valid, self.state.step + 1, batch.plan.epoch)
        if num_new:
            self._report_bad_samples(num_new)
        if batch.bad:
            limits = data.max_bad_samples, data.max_bad_fraction, data.max_consecutive_bad_samples
            bad.check(Limits(self.order.num_samples, *limits))

    def _report_bad_samples(self, num_new: int) -> None:
        bad = self.state.bad
        if self.recorder:
            self.recorder.add_bad_samples(bad.lines(num_new))
        if bad.num_samples >= 2 * self._bad_samples_reported:  # one line per sample is too many
            self._bad_samples_reported = bad.num_samples
            self.log(f"warning: {bad.num_samples} bad samples are skipped: {bad.summary()}")

    # Health.

    def _check_skipped_updates(self) -> None:
        # Reading a counter waits for the device: free on the CPU, at log points only elsewhere.
        limit, step = self.config.train.max_skipped_updates, self.state.step
        if self.world.device.type != "cpu" and step % self.config.train.log_every_steps:
            return
        for phase, optimizer in self.method.optimizers.items():
            if int(optimizer.skipped_in_a_row) >= limit:
                raise health.UpdatesSkippedError(
                    f"the {phase} phase skipped {limit} consecutive updates up to step {step} "
                    "because its gradients were not finite; lower "
                    f"phases.{phase}.optimizer.lr or set phases.{phase}.clip_norm"
                )

    def _compare_ranks(self) -> None:
        if self.state.step % self.config.train.compare_ranks_every_steps == 0:
            self.comparison.ask(self.state.step)
            if self.world.device.type == "cpu":
                self._raise_if_drifted()  # elsewhere the answer is read at the next log point

    def _raise_if_drifted(self) -> None:
        if problem := self.comparison.answer():
            raise health.RanksDriftedError(problem)

    # Logging and evaluation.

    @property
    def samples_seen(self) -> int:
        """Samples trained on so far, over all ranks, without padding and bad samples."""
        seen = self.order.samples_seen(self.state.position) + self.state.samples_shift
        return seen - self.state.bad.num_holes

    @property
    def is_last_step(self) -> bool:
        return self.state.step == self.setup.last_step

    def _log_and_evaluate(self, losses: Losses) -> bool:
        """Record metrics where due; return whether an evaluation is the best so far."""
        metrics: Metrics = {}
        if self.is_last_step or self.state.step % self.config.train.log_every_steps == 0:
            metrics |= self._log_point(losses)
        evaluated = self._evaluate_if_due()
        if metrics | evaluated:
            epoch = round(self.state.position / self.order.lane_length, 4)
            progress = {"step": self.state.step, "epoch": epoch, "samples_seen": self.samples_seen}
            self._record({**progress, **metrics, **evaluated})
        return self._is_best(evaluated)

    def _log_point(self, losses: Losses) -> Metrics:
        self._raise_if_drifted()
        metrics: Metrics = {}
        # Losses and optimizers.
        if losses:
            is_due = self.codes.is_due(self.state.step, self.config.train.log_every_steps)
            codes = self.method.codes.values() if is_due else ()
            metrics = self.codes.metrics(losses, codes, self._num_codes, self.world)
        for phase, optimizer in self.method.optimizers.items():
            metrics[f"lr/{phase}"] = optimizer.lr
            if losses:
                metrics[f"gradient_norm/{phase}"] = float(optimizer.gradient_norm)
            metrics[f"skipped_updates/{phase}"] = int(optimizer.skipped)
            metrics[f"step_seconds/{phase}"] = round(optimizer.take_seconds(), 6)
        # Speed.
        now, samples = time.monotonic(), self.samples_seen
        speed = (samples - self._samples_logged) / max(now - self._logged_at, 1e-9)
        self._logged_at, self._samples_logged = now, samples
        metrics["data/bad_samples"] = self.state.bad.num_samples
        metrics["throughput/samples_per_second"] = round(speed, 1)
        return metrics | self.goodput.metrics() | self.checkpointer.metrics()

    def _evaluate_if_due(self) -> Metrics:
        every, evaluator = self.config.train.evaluate_every_steps, self.setup.data.evaluator
        is_due = self.is_last_step or (every and self.state.step % every == 0)
        if evaluator is None or not is_due:
            return {}
        started = time.monotonic()
        with self.goodput.part("evaluation"), self.watchdog.section("evaluating", RANK_0_SECONDS):
            evaluation = evaluator.evaluate(self.setup.autoencoder)
            if self.recorder and evaluation.images:
                self.recorder.show(evaluation.images)
            if bad := int(evaluation.metrics["data/bad_validation_samples"]):
                self.log(f"warning: {bad} bad validation samples are left out of the scores")
        self._logged_at += time.monotonic() - started  # samples/s is the speed of training
        return evaluation.metrics

    def _record(self, record: Metrics) -> None:
        done = self.order.samples_seen(self.state.position)
        alarms, lines = self.diagnostics.update(record, done / self.setup.total_samples)
        for line in lines:
            self.log(f"alarm at step {self.state.step}: {line}")
        with self.goodput.part("record"), self.watchdog.section("recording"):
            if self.recorder:
                self.recorder.record(record | alarms)
            self.setup.reporter.report(record | alarms)

    def _is_best(self, evaluated: Metrics) -> bool:
        name, state = self.config.train.best_metric, self.state
        value = evaluated.get(name)
        if value is None or not math.isfinite(value):
            return False
        if (num_samples := state.other_num_samples(name, evaluated)) is not None:
            self.log(
                f"{name} at step {state.step} is of {num_samples:g} samples, not of "
                f"{state.best_num_samples:g} as before, so it is not compared with the best"
            )
            return False
        if state.best is not None and value >= state.best:
            return False
        state.best = value
        return True

    def _ends_an_epoch(self, batch: Batch) -> bool:
        return self.state.position // self.order.lane_length > batch.plan.epoch

    def _report_unused(self) -> None:
        """Log once what of the data is not used as given, counted over all ranks; a collective."""
        if self._unused_reported:
            return
        self._unused_reported = True
        data = self.setup.data
        for key, each in (("data.train", data.train), ("data.validation", data.validation)):
            counts = sum_counts(gather_json(each.unused.counts if each else {}, self.world))
            if each is not None and self.world.is_main:
                for line in [*each.unused_lines(counts, len(each)), *each.unused_members()]:
                    self.log(f"warning: {key}: {line}")

    # Saving, stopping and rolling back.

    def _save_or_stop(self, is_best: bool) -> bool:
        """Save where due; return whether to stop before the last step."""
        reporter, step = self.setup.reporter, self.state.step
        decision = self.consensus.after(step, reporter.stop_requested, self._wants_save)
        is_end = self.is_last_step or decision.stop
        every = self.config.checkpoint.every_steps
        on_step = every is not None and step % every == 0
        if is_end or ((is_best or on_step or decision.save) and not self._is_skipping()):
            self._save(must=is_best or is_end, is_best=is_best, is_end=is_end)
        return decision.stop and not self.is_last_step

    def _save(self, must: bool, is_best: bool, is_end: bool) -> None:
        # At the end the other ranks have nothing left to do, and can wait for a slow storage.
        seconds = RANK_0_SECONDS if is_end else SECTION_SECONDS
        with self.goodput.part("checkpoint"), self.watchdog.section("saving", seconds):
            # A checkpoint must be healthy: rollbacks and restarts rely on it.
            self.comparison.ask(self.state.step)
            self._raise_if_drifted()
            self.checkpointer.save(self.state, is_best, must)
        self._saved_at = time.monotonic()

    def _wants_save(self) -> bool:
        seconds = self.config.checkpoint.every_seconds
        is_due = seconds is not None and time.monotonic() - self._saved_at >= seconds
        # Evaluate both: `save_requested()` clears its flag.
        return self.setup.reporter.save_requested() | is_due

    def _is_skipping(self) -> bool:
        """Return whether updates are being skipped: no state to restart from."""
        return any(int(o.skipped_in_a_row) for o in self.method.optimizers.values())

    def _roll_back(self, error: health.RollbackNeeded) -> None:
        """Load the newest healthy checkpoint into the live networks; the process group stays."""
        factor = self.rollbacks.lr_factor(error)
        self.goodput.restart()
        with self.watchdog.section("rolling back to a checkpoint"):
            checkpoint = health.healthy_checkpoint(self.setup.store, self.world, error)
            factor *= self.state.lr_factor
            self.setup.restore(checkpoint)
            self.state.scale_lr(factor)
        if self.recorder:
            self.recorder.truncate(checkpoint.step)
            self.recorder.set_bad_samples(self.state.bad.lines())

    # The records of the run, and its end.

    def _open_recorder(
        self, sinks: Sequence[MetricSink], console: OpenConsole | None
    ) -> Recorder | None:
        setup, opened = self.setup, list[Recorder]()

        def work() -> None:
            run_id = setup.folder.register(self.config, setup.last_step).id
            setup.folder.write_config(self.config)
            steps, line = (self.state.step, setup.last_step), setup.reporter.line
            classes = setup.data.train.manifest.classes
            recorder = Recorder(
                self.config, setup.folder, run_id, *steps, line, sinks, console, classes
            )
            recorder.set_bad_samples(self.state.bad.lines())
            opened.append(recorder)

        run_on_rank_zero(self.world, work)
        return opened[0] if opened else None

    @contextmanager
    def _recording_failures(self) -> Iterator[None]:
        try:
            yield
        except TrainingDivergedError:
            self._finish(RunState.DIVERGED)
            raise
        except BaseException as error:
            error.add_note(f"after step {self.state.step}")
            if self.recorder:
                if isinstance(error, DataError):
                    self._upload_bad_samples(self.recorder)
                metrics = self.recorder.latest
                outcome = Outcome(RunState.FAILED, self.state.step, metrics, self.setup.folder.uri)
                record_failure(self.setup.folder, self.config, error, self.setup.lock, outcome)
                self.recorder.abandon()
            raise

    def _upload_bad_samples(self, recorder: Recorder) -> None:
        """Upload the list of bad samples, although no checkpoint follows."""
        try:
            self.setup.store.check_fencing()
            recorder.upload()
        except (AaeDistError, OSError) as error:
            self.log(f"bad_samples.jsonl was not written: {error}")

    def _finish(self, ending: RunState) -> Outcome:
        """Write the last records; every rank returns rank 0's outcome."""
        num_values = math.prod(self.setup.data.train.image_shape)
        no_pca = why_no_pca(num_values, self.config.model.latent_dim)

        def close() -> dict[str, Any]:
            assert self.recorder is not None
            stopped = ending == RunState.INTERRUPTED
            state = RunState(self.setup.reporter.stopped_as()) if stopped else ending
            # The last evaluation and the last save came after the last log point.
            metrics = self.recorder.latest | self.goodput.metrics() | self.checkpointer.metrics()
            alarms = self.recorder.alarms()
            verdict = None
            if state == RunState.FINISHED:
                verdict = run_folder.give_verdict(metrics, self.config, alarms, no_pca)
            outcome = Outcome(state, self.state.step, metrics, self.setup.folder.uri, verdict)
            self.recorder.close(state, verdict)
            self.setup.folder.write_summary(outcome, self.config, alarms)
            return dataclasses.asdict(outcome)

        with self.watchdog.section("writing the summary", RANK_0_SECONDS):
            return Outcome(**run_on_rank_zero(self.world, close))


def _as_json(outcome: Outcome | None) -> dict[str, Any] | None:
    return dataclasses.asdict(outcome) if outcome else None
