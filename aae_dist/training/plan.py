"""How long a run is, in steps and in samples."""

from dataclasses import dataclass

from aae_dist.config import RunConfig
from aae_dist.data import SampleOrder


@dataclass(frozen=True)
class Plan:
    """Where the run ends."""

    last_step: int
    samples: int
    """Samples seen at the end: learning rates are functions of samples seen over these."""

    @classmethod
    def of(cls, config: RunConfig, order: SampleOrder, step: int, position: int) -> "Plan":
        """Return the end of a run that stands at `step` and `position`.

        With `train.epochs` the position decides, with `train.steps` the number of steps; they
        differ only when the global batch size has changed on the way.
        """
        if config.train.epochs is not None:
            end = config.train.epochs * order.lane_length
            return cls(step + _steps_between(order, position, end), order.samples_seen(end))
        assert config.train.steps is not None
        end = _position_after(order, position, config.train.steps - step)
        return cls(config.train.steps, order.samples_seen(end))


def _slots(order: SampleOrder) -> int:
    return order.global_batch_size // order.lanes


def _steps_between(order: SampleOrder, position: int, end: int) -> int:
    """Return the steps from `position` to the epoch border `end`; a step never spans two epochs."""
    if position >= end:
        return 0
    epoch, offset = divmod(position, order.lane_length)
    first = -(-(order.lane_length - offset) // _slots(order))
    return first + (end // order.lane_length - epoch - 1) * order.steps_per_epoch


def _position_after(order: SampleOrder, position: int, num_steps: int) -> int:
    epoch, offset = divmod(position, order.lane_length)
    first = -(-(order.lane_length - offset) // _slots(order))
    if num_steps < first:
        return position + max(0, num_steps) * _slots(order)
    more_epochs, rest = divmod(num_steps - first, order.steps_per_epoch)
    return (epoch + 1 + more_epochs) * order.lane_length + rest * _slots(order)
