"""The training loop: knows nothing of methods, launchers, storage or trackers."""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import torch

from aae_dist.config import RunConfig
from aae_dist.data import Batch, Order
from aae_dist.data.bad_samples import Limits
from aae_dist.distributed.reductions import mean_over_ranks
from aae_dist.distributed.world import World
from aae_dist.errors import TrainingDivergedError
from aae_dist.methods import Losses, Method, StepInputs
from aae_dist.training.agreement import Agreement
from aae_dist.training.reporter import Reporter
from aae_dist.training.state import TrainState

Metrics = dict[str, float]


class Checkpoints(Protocol):
    """What the loop needs of checkpoints; every rank calls, rank 0 writes."""

    def save(self, state: TrainState, best: bool) -> None:
        """Save the state, without waiting for the storage."""


@dataclass
class TrainLoop:
    """Runs steps until the plan is done or somebody asks to stop."""

    config: RunConfig
    world: World
    state: TrainState
    method: Method
    inputs: StepInputs
    order: Order
    last_step: int
    planned_samples: int
    """Samples of the whole plan: learning rates are functions of samples seen over these."""
    evaluate: Callable[[], Metrics] | None
    record: Callable[[Metrics], None]
    checkpoints: Checkpoints
    reporter: Reporter
    bad_found: Callable[[], None] = lambda: None
    """Called on every rank when `state.bad` has something new."""

    def run(self, batches: Iterable[Batch]) -> str:
        """Train on `batches`; return finished or interrupted.

        Raises:
            TrainingDivergedError: too many updates in a row had non-finite gradients.
            DataError: more samples are bad than `data` allows.
        """
        self._agreement = Agreement(self.world)
        self._saved_at = self._logged_at = time.monotonic()
        self._samples_logged = self.samples_seen
        for batch in batches:
            losses = self.train_step(batch)
            self._check_divergence()
            if self._after_step(losses):
                return "interrupted"
        return "finished"

    @property
    def samples_seen(self) -> int:
        """Unmasked samples consumed so far, over all ranks; those that were bad do not count."""
        return self.order.samples_seen(self.state.position) - self.state.bad.num_holes

    def train_step(self, batch: Batch) -> Losses:
        """Run every phase on one global batch and move on to the next."""
        # Of the plan, so that bad samples do not shift the learning rates.
        done = self.order.samples_seen(self.state.position)
        self.method.set_progress(done / self.planned_samples)
        plan = batch.plan
        self._note_bad(batch)
        parts = self.inputs.parts(batch.images, batch.valid, batch.num_valid, self.state.step)
        losses = self.method.step(parts)
        self.state.step += 1
        if self.state.average is not None:
            self.state.average.update(self.state.step)
        self.state.position = plan.next_position
        return losses

    def _note_bad(self, batch: Batch) -> None:
        """List the batch's bad samples; every rank knows all of them, so all end at this step."""
        bad, data = self.state.bad, self.config.data
        if bad.add(batch.bad, batch.plan.valid, self.state.step + 1, batch.plan.epoch):
            self.bad_found()
        if batch.bad:
            bad.check(
                Limits(
                    num_samples=self.order.num_samples,
                    max_samples=data.max_bad_samples,
                    max_fraction=data.max_bad_fraction,
                    max_in_a_row=data.max_bad_in_a_row,
                )
            )

    def _after_step(self, losses: Losses) -> bool:
        """Log, evaluate and save where due; return whether to stop."""
        step, last = self.state.step, self.state.step == self.last_step
        metrics: Metrics = {}
        if last or step % self.config.train.log_every_steps == 0:
            metrics |= self._log_point(losses)
        evaluated = self._evaluate_if_due(step, last)
        if metrics | evaluated:
            record = {"step": step, **self._progress(), **metrics, **evaluated}
            self.record(record)
            self.reporter.report(record)
        decision = self._agreement.after(step, self.reporter.stop_requested, self._save_is_due())
        best = self._is_best(evaluated)
        every = self.config.checkpoint.every_steps
        on_step = every is not None and step % every == 0
        if best or last or on_step or decision.save or decision.stop:
            self.checkpoints.save(self.state, best)
            self._saved_at = time.monotonic()
        return decision.stop and not last

    def _progress(self) -> Metrics:
        epoch = self.state.position / self.order.lane_length
        return {"epoch": round(epoch, 4), "samples_seen": self.samples_seen}

    def _log_point(self, losses: Losses) -> Metrics:
        names = list(losses)
        values = mean_over_ranks(torch.stack([losses[name] for name in names]), self.world)
        metrics = dict(zip(names, values.tolist(), strict=True))
        for phase, optimizer in self.method.optimizers.items():
            metrics[f"lr/{phase}"] = optimizer.lr
            metrics[f"gradient_norm/{phase}"] = float(optimizer.gradient_norm)
            metrics[f"skipped_updates/{phase}"] = int(optimizer.skipped)
        now, samples = time.monotonic(), self.samples_seen
        speed = (samples - self._samples_logged) / max(now - self._logged_at, 1e-9)
        self._logged_at, self._samples_logged = now, samples
        metrics["data/bad_samples"] = self.state.bad.num_samples
        return metrics | {"throughput/samples_per_second": round(speed, 1)}

    def _evaluate_if_due(self, step: int, last: bool) -> Metrics:
        every = self.config.train.evaluate_every_steps
        if self.evaluate is None or not (last or (every and step % every == 0)):
            return {}
        started = time.monotonic()
        metrics = self.evaluate()
        self._logged_at += time.monotonic() - started  # samples/s is the speed of training
        return metrics

    def _is_best(self, evaluated: Metrics) -> bool:
        value = evaluated.get(self.config.train.best_metric)
        if value is None or not math.isfinite(value):
            return False
        if self.state.best is not None and value >= self.state.best:
            return False
        self.state.best = value
        return True

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
                raise TrainingDivergedError(
                    f"training diverged: the {phase} phase skipped {limit} updates in a row up to "
                    f"step {step} because its gradients were not finite; lower "
                    f"phases.{phase}.optimizer.lr or set phases.{phase}.clip_norm"
                )
