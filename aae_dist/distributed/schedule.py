"""Learning-rate factors as functions of progress = samples seen / samples planned, in [0, 1]."""

import math
from collections.abc import Callable

from aae_dist.config.sections import phases

Schedule = Callable[[float], float]


def build_schedule(config: phases.Schedule) -> Schedule:
    """Return the factor on the learning rate as a function of progress."""

    def factor(progress: float) -> float:
        warm = min(1.0, progress / config.warmup) if config.warmup else 1.0
        return warm * _decay(config, progress)

    return factor


def _decay(config: phases.Schedule, progress: float) -> float:
    match config:
        case phases.LinearSchedule():
            if progress <= config.decay_from:
                return 1.0
            part = (progress - config.decay_from) / (1.0 - config.decay_from)
            return 1.0 + (config.final - 1.0) * min(1.0, part)
        case phases.CosineSchedule():
            half = 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
            return config.final + (1.0 - config.final) * half
        case phases.StepSchedule():
            return float(config.factor ** sum(progress >= m for m in config.milestones))
        case phases.ConstantSchedule():
            return 1.0
