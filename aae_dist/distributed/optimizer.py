"""The only way a parameter changes: one optimizer per phase, synchronized over ranks.

Learning-rate schedules are functions of progress = samples seen / samples planned, in [0, 1].
"""

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from aae_dist.config.sections import method as sections
from aae_dist.distributed.wrappers import trainable_parameters, without_sync

Part = TypeVar("Part")
Schedule = Callable[[float], float]
"""Progress in [0, 1] -> factor on the learning rate."""
Terms = dict[str, Tensor]
"""Metric name -> this rank's share of it, a detached scalar; the mean over ranks is the metric."""
_FLOOR = "max_exp_avg_sq"


class SynchronizedOptimizer:
    """Updates the parameters of one phase's networks, and nothing else.

    `update` runs the backward pass into these parameters only, with gradients averaged over ranks
    (each network is its own DistributedDataParallel), and takes one step. Since every rank holds
    the same averaged gradient, all ranks decide the same when it is not finite: the update is
    skipped, moments and step count included, without synchronizing with the device.
    """

    def __init__(
        self,
        networks: Mapping[str, nn.Module],
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        clip_norm: float | None = None,
    ) -> None:
        """Wrap a fused `optimizer` of exactly the trainable parameters of `networks`, in one group.

        `clip_norm` is the largest L2 norm of the averaged gradient over all these parameters.
        """
        self.networks = dict(networks)
        self.named_parameters = {
            f"{name}.{key}": parameter
            for name, network in networks.items()
            for key, parameter in trainable_parameters(network).items()
        }
        self.parameters = list(self.named_parameters.values())
        self.optimizer = optimizer
        self.schedule = schedule
        self.clip_norm = clip_norm
        self.base_lr: float = optimizer.param_groups[0]["lr"]
        self.lr_factor = 1.0
        """Factor from rollbacks after non-finite updates."""
        device = self.parameters[0].device
        self.gradient_norm = torch.zeros((), device=device)
        self.skipped = torch.zeros((), dtype=torch.int64, device=device)
        """Updates skipped so far because a gradient was not finite."""
        self.skipped_in_a_row = torch.zeros((), dtype=torch.int64, device=device)
        """Updates skipped since the last one that was applied."""
        self.moments_of: SynchronizedOptimizer | None = None
        """Adam of another phase on the same parameters, whose second moments are a floor for those
        of this one: steps are then measured in that phase's units. Needs amsgrad."""
        self.norm_of: str | None = None
        """Name of the network whose own gradient norm `network_norm` holds."""
        self.network_norm = torch.zeros((), device=device)
        self._seconds, self._updates = 0.0, 0
        self._create_state()

    def set_progress(self, progress: float) -> None:
        self.optimizer.param_groups[0]["lr"] = (
            self.base_lr * self.lr_factor * self.schedule(progress)
        )

    @property
    def lr(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    def update(
        self, loss_of: Callable[[Part], Tensor], parts: Sequence[Part], norm: Tensor | None = None
    ) -> Tensor:
        """Minimise the sum of `loss_of(part)`, averaged over ranks, by one step.

        Gradients of the micro-batches add up locally; ranks exchange them once, with the last. The
        averaged gradient is scaled to the L2 norm `norm`, a scalar, if given. Returns the loss of
        this rank, a detached scalar: the sum over its parts.
        """
        started = time.perf_counter()
        total = torch.zeros((), device=self.skipped.device, dtype=self.parameters[0].dtype)
        for number, part in enumerate(parts, start=1):
            last = number == len(parts)
            with contextlib.nullcontext() if last else without_sync(self.networks.values()):
                loss = loss_of(part)
                loss.backward(inputs=self.parameters)
            total += loss.detach()
        self._step(norm)
        self._seconds += time.perf_counter() - started
        self._updates += 1
        return total

    def update_terms(
        self,
        loss_of: Callable[[Part], tuple[Tensor, Terms]],
        parts: Sequence[Part],
        norm: Tensor | None = None,
    ) -> Terms:
        """As `update`, for a loss that also returns its terms; return their sums over the parts."""
        sums: Terms = {}

        def loss_alone(part: Part) -> Tensor:
            loss, terms = loss_of(part)
            sums.update({n: sums[n] + term if n in sums else term for n, term in terms.items()})
            return loss

        self.update(loss_alone, parts, norm)
        return sums

    def take_seconds(self) -> float:
        """Return the mean time of an update since the last call, on this rank's clock."""
        # On a GPU this is the time to queue the work: nothing waits for the device.
        mean = self._seconds / max(self._updates, 1)
        self._seconds, self._updates = 0.0, 0
        return mean

    def _step(self, norm: Tensor | None) -> None:
        # Scale, measure and clip the averaged gradient.
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        if norm is not None:
            raw = torch.nn.utils.get_total_norm(gradients, foreach=True)
            torch._foreach_mul_(gradients, norm / (raw + 1e-12))
        self.gradient_norm = torch.nn.utils.get_total_norm(gradients, foreach=True)
        if self.norm_of is not None:
            own = [p.grad for p in self.networks[self.norm_of].parameters() if p.grad is not None]
            self.network_norm = torch.nn.utils.get_total_norm(own, foreach=True)
        skip = ~torch.isfinite(self.gradient_norm)
        if self.clip_norm is not None:
            factor = (self.clip_norm / (self.gradient_norm + 1e-6)).clamp(max=1.0)
            torch._foreach_mul_(gradients, factor)

        # amsgrad divides by the larger of its own second moments and these.
        if self.moments_of is not None:
            torch._foreach_copy_(
                [self.optimizer.state[p][_FLOOR] for p in self.parameters],
                [self.moments_of.optimizer.state[p]["exp_avg_sq"] for p in self.parameters],
            )

        # Skip on the device, as torch.amp.GradScaler does: fused kernels read the flag and return.
        self.optimizer.found_inf = skip.to(torch.float32)  # type: ignore[attr-defined]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.skipped += skip
        self.skipped_in_a_row = (self.skipped_in_a_row + 1) * skip

    def _create_state(self) -> None:
        # From the start, not at the first step: a skipped first step must leave no uninitialised
        # moments behind, and a checkpoint then has the same tensors at every step.
        for parameter in self.parameters:
            if isinstance(self.optimizer, torch.optim.SGD):
                state = {"momentum_buffer": torch.zeros_like(parameter)}
            else:
                step = torch.zeros((), dtype=torch.float32, device=parameter.device)
                moments = ["exp_avg", "exp_avg_sq"]
                moments += [_FLOOR] if self.optimizer.defaults["amsgrad"] else []
                state = {"step": step} | {m: torch.zeros_like(parameter) for m in moments}
            self.optimizer.state[parameter] = state

    def state_dict(self) -> dict[str, Tensor]:
        """Return moments, step counts and counters as `parameter:state` tensors."""
        state = {
            f"{name}:{key}": value
            for name, parameter in self.named_parameters.items()
            for key, value in self.optimizer.state[parameter].items()
            if key != _FLOOR  # set before each step
        }
        return state | {"skipped": self.skipped, "skipped_in_a_row": self.skipped_in_a_row}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copy what `state_dict` returned into this optimizer; KeyError if a tensor is missing."""
        for key, tensor in self.state_dict().items():
            tensor.copy_(state[key])


def build_schedule(config: sections.Schedule) -> Schedule:
    """Return the factor on the learning rate as a function of progress."""

    def factor(progress: float) -> float:
        warm = min(1.0, progress / config.warmup) if config.warmup else 1.0
        return warm * _decay(config, progress)

    return factor


def _decay(config: sections.Schedule, progress: float) -> float:
    match config:
        case sections.LinearSchedule():
            if progress <= config.decay_from:
                return 1.0
            part = (progress - config.decay_from) / (1.0 - config.decay_from)
            return 1.0 + (config.final - 1.0) * min(1.0, part)
        case sections.CosineSchedule():
            half = 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
            return config.final + (1.0 - config.final) * half
        case sections.StepSchedule():
            return float(config.factor ** sum(progress >= m for m in config.milestones))
        case sections.ConstantSchedule():
            return 1.0
