"""The training loop: knows nothing of methods, launchers, storage or trackers."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch

from aae_dist.config import RunConfig
from aae_dist.config.metric_names import NUM_SAMPLES, is_comparable
from aae_dist.data import Batch, SampleOrder
from aae_dist.data.bad_samples import Limits
from aae_dist.distributed.collectives import mean_over_ranks
from aae_dist.distributed.fingerprint import RankComparison
from aae_dist.distributed.world import World
from aae_dist.methods import Losses, Method, StepInputs
from aae_dist.training.goodput import Goodput
from aae_dist.training.health.consensus import Agreement, Decision
from aae_dist.training.health.gan_diagnostics import GameAlarms
from aae_dist.training.health.rollback import RanksDriftedError, UpdatesSkippedError
from aae_dist.training.health.watchdog import RANK_0_SECONDS, SECTION_SECONDS, Watchdog
from aae_dist.training.reporter import Reporter
from aae_dist.training.state import TrainState

Metrics = dict[str, float]


class Checkpoints(Protocol):
    """What the loop needs of checkpoints; every rank calls, rank 0 writes."""

    def save(self, state: TrainState, best: bool, must: bool) -> None:
        """Save the state in the background; unless it `must`, not while another save runs."""

    def costs(self) -> Metrics:
        """Return what saving has cost this rank so far."""


@dataclass
class TrainLoop:
    """Runs steps until the plan is done or somebody asks to stop."""

    config: RunConfig
    world: World
    state: TrainState
    method: Method
    inputs: StepInputs
    order: SampleOrder
    last_step: int
    planned_samples: int
    """Samples of the whole plan: learning rates are functions of samples seen over these."""
    evaluate: Callable[[], Metrics] | None
    record: Callable[[Metrics], None]
    checkpoints: Checkpoints
    reporter: Reporter
    goodput: Goodput
    watchdog: Watchdog
    comparison: RankComparison
    alarms: GameAlarms
    on_step: Callable[[int], None] = lambda step: None
    """Called after each step, with its number; must be cheap."""
    bad_found: Callable[[int], None] = lambda num_new: None
    """Called on every rank with the number of entries that `state.bad` has more."""

    def run(self, batches: Iterable[Batch]) -> str:
        """Train on `batches`; return finished or interrupted.

        Raises:
            UpdatesSkippedError: too many updates in a row had non-finite gradients.
            RanksDriftedError: the networks of the ranks are no longer equal.
            DataError: more samples are bad than `data` allows.
        """
        self._agreement = Agreement(self.world, self.state.step)
        self._saved_at = self._logged_at = time.monotonic()
        self._samples_logged = self.samples_seen
        for batch in self._timed(batches):
            losses = self.train_step(batch)
            self.goodput.step_done()
            self.watchdog.beat(self.state.step)
            self.on_step(self.state.step)
            self._check_divergence()
            if self._after_step(losses):
                return "interrupted"
        return "finished"

    def _timed(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        iterator = iter(batches)
        while True:
            with self.goodput.part("data_wait"), self.watchdog.section("reading data"):
                batch = next(iterator, None)
            if batch is None:
                return
            yield batch

    @property
    def samples_seen(self) -> int:
        """Unmasked samples consumed so far, over all ranks; those that were bad do not count."""
        seen = self.order.samples_seen(self.state.position) + self.state.samples_shift
        return seen - self.state.bad.num_holes

    def train_step(self, batch: Batch) -> Losses:
        """Run every phase on one global batch and move on to the next.

        A batch without one good sample on any rank teaches nothing: networks, moments and average
        stay as they are (with gradients of zero, Adam's momentum would go on), and no losses come.
        """
        # Of the plan, so that bad samples do not shift the learning rates.
        done = self.order.samples_seen(self.state.position)
        self.method.set_progress(done / self.planned_samples)
        plan = batch.plan
        self._note_bad(batch)
        losses: Losses = {}
        if batch.num_valid:
            parts = self.inputs.parts(batch.images, batch.valid, batch.num_valid, self.state.step)
            losses = self.method.step(parts)
        self.state.step += 1
        if losses and self.state.average is not None:
            self.state.average.update(self.state.step)
        self.state.position = plan.next_position
        return losses

    def _note_bad(self, batch: Batch) -> None:
        """List the batch's bad samples; every rank knows all of them, so all end at this step."""
        bad, data = self.state.bad, self.config.data
        new = bad.add(batch.bad, batch.plan.valid, self.state.step + 1, batch.plan.epoch)
        if new:
            self.bad_found(new)
        if batch.bad:
            bad.check(
                Limits(
                    num_samples=self.order.num_samples,
                    max_samples=data.max_bad_samples,
                    max_fraction=data.max_bad_fraction,
                    max_consecutive=data.max_consecutive_bad_samples,
                )
            )

    def _after_step(self, losses: Losses) -> bool:
        """Log, evaluate and save where due; return whether to stop."""
        step, last = self.state.step, self.state.step == self.last_step
        self._compare_if_due(step)
        metrics: Metrics = {}
        if last or step % self.config.train.log_every_steps == 0:
            metrics |= self._log_point(losses)
        evaluated = self._evaluate_if_due(step, last)
        if metrics | evaluated:
            self._record({"step": step, **self._progress(), **metrics, **evaluated})
        decision = self._agreement.after(step, self.reporter.stop_requested, self._wants_save)
        self._save_if_due(decision, self._is_best(evaluated), last)
        return decision.stop and not last

    def _record(self, record: Metrics) -> None:
        alarms, lines = self.alarms.update(record)
        for line in lines:
            self._say(f"alarm at step {self.state.step}: {line}")
        with self.goodput.part("record"), self.watchdog.section("recording"):
            self.record(record | alarms)
            self.reporter.report(record | alarms)

    def _save_if_due(self, decision: Decision, best: bool, last: bool) -> None:
        every, step = self.config.checkpoint.every_steps, self.state.step
        on_step = every is not None and step % every == 0
        must = best or last or decision.stop
        if not (must or on_step or decision.save):
            return
        if not (last or decision.stop) and self._is_skipping():
            return  # amid skipped updates is no place to start from
        # Nobody but rank 0 has anything to do any more: it may wait longer for a slow storage.
        seconds = RANK_0_SECONDS if last or decision.stop else SECTION_SECONDS
        with self.goodput.part("checkpoint"), self.watchdog.section("saving", seconds):
            # What is saved must be good: whoever rolls back, or starts again, relies on it.
            self.comparison.ask(step)
            self._raise_if_drifted()
            self.checkpoints.save(self.state, best, must)
        self._saved_at = time.monotonic()

    def _is_skipping(self) -> bool:
        return any(int(o.skipped_in_a_row) for o in self.method.optimizers.values())

    def _compare_if_due(self, step: int) -> None:
        if step % self.config.train.compare_ranks_every_steps == 0:
            self.comparison.ask(step)
            if self.world.device.type == "cpu":
                self._raise_if_drifted()  # elsewhere the answer is read at the next log point

    def _raise_if_drifted(self) -> None:
        if problem := self.comparison.answer():
            raise RanksDriftedError(problem)

    def _progress(self) -> Metrics:
        epoch = self.state.position / self.order.lane_length
        return {"epoch": round(epoch, 4), "samples_seen": self.samples_seen}

    def _log_point(self, losses: Losses) -> Metrics:
        self._raise_if_drifted()
        metrics: Metrics = {}
        if losses:
            values = mean_over_ranks(torch.stack(list(losses.values())), self.world)
            metrics = dict(zip(losses, values.tolist(), strict=True))
        for phase, optimizer in self.method.optimizers.items():
            metrics[f"lr/{phase}"] = optimizer.lr
            if losses:
                metrics[f"gradient_norm/{phase}"] = float(optimizer.gradient_norm)
            metrics[f"skipped_updates/{phase}"] = int(optimizer.skipped)
            metrics[f"step_seconds/{phase}"] = round(optimizer.take_seconds(), 6)
        now, samples = time.monotonic(), self.samples_seen
        speed = (samples - self._samples_logged) / max(now - self._logged_at, 1e-9)
        self._logged_at, self._samples_logged = now, samples
        metrics["data/bad_samples"] = self.state.bad.num_samples
        metrics["throughput/samples_per_second"] = round(speed, 1)
        return metrics | self.goodput.metrics() | self.checkpoints.costs()

    def _evaluate_if_due(self, step: int, last: bool) -> Metrics:
        every = self.config.train.evaluate_every_steps
        if self.evaluate is None or not (last or (every and step % every == 0)):
            return {}
        started = time.monotonic()
        with (
            self.goodput.part("evaluation"),
            self.watchdog.section("evaluating", RANK_0_SECONDS),
        ):
            metrics = self.evaluate()
        self._logged_at += time.monotonic() - started  # samples/s is the speed of training
        return metrics

    def _is_best(self, evaluated: Metrics) -> bool:
        name = self.config.train.best_metric
        value = evaluated.get(name)
        if value is None or not math.isfinite(value):
            return False
        if self.state.best_num_samples is None:
            self.state.best_num_samples = evaluated.get(NUM_SAMPLES)
        if not is_comparable((name,), evaluated, self.state.best_num_samples):
            self._say(
                f"{name} at step {self.state.step} is of {evaluated[NUM_SAMPLES]:g} samples, not "
                f"of {self.state.best_num_samples:g} as before, so it is not compared with the best"
            )
            return False
        if self.state.best is not None and value >= self.state.best:
            return False
        self.state.best = value
        return True

    def _say(self, text: str) -> None:
        if self.world.is_main:
            self.reporter.line(text)

    def _wants_save(self) -> bool:
        # Both are asked, as a request is told of once.
        return self.reporter.save_requested() | self._save_is_due()

    def _save_is_due(self) -> bool:
        seconds = self.config.checkpoint.every_seconds
        return seconds is not None and time.monotonic() - self._saved_at >= seconds

    def _check_divergence(self) -> None:
        # Reading a counter waits for the device: free on the CPU, at log points only elsewhere.
        limit, step = self.config.train.max_skipped_updates, self.state.step
        if self.world.device.type != "cpu" and step % self.config.train.log_every_steps:
            return
        for phase, optimizer in self.method.optimizers.items():
            if int(optimizer.skipped_in_a_row) >= limit:
                raise UpdatesSkippedError(
                    f"the {phase} phase skipped {limit} updates in a row up to step {step} because "
                    f"its gradients were not finite; lower phases.{phase}.optimizer.lr or set "
                    f"phases.{phase}.clip_norm"
                )
