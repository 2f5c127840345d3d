"""Asynchronous successive halving without a cluster's scheduler: rungs and what they decide.

Li et al., "A system for massively parallel hyperparameter tuning" (2020), with the decisions of
Ray Tune's ASHA: a test compares both.
"""

import math
from collections.abc import Sequence

from aae_dist.sweeps.objective import Mode


class Rungs:
    """Decides at the rungs `grace`, `grace` x `factor`, ... below `longest` who continues.

    At a rung a trial stops when it is worse than the best 1/`factor` of those that were there
    before. With constraints, a trial is never stopped while it is the only one, of those that run
    and those that have finished, whose newest scores keep them all.
    """

    def __init__(self, grace: int, longest: int, factor: int, mode: Mode) -> None:
        count = int(math.log(longest / grace) / math.log(factor) + 1)
        self._rungs = [(grace * factor**k, dict[str, float]()) for k in reversed(range(count))]
        self._factor, self._sign = factor, 1.0 if mode == "max" else -1.0
        self._keeping: set[str] = set()

    def stops(self, trial: str, time: float, score: float, is_kept: bool = True) -> bool:
        """Note a score of a trial, by `Objective.comparable_score`; return whether to stop it."""
        (self._keeping.add if is_kept else self._keeping.discard)(trial)
        if not self._is_behind(trial, time, self._sign * score) or self._keeping == {trial}:
            return False
        self.drop(trial)
        return True

    def drop(self, trial: str) -> None:
        """Note that a trial cannot be chosen any more: it was stopped, or has failed."""
        self._keeping.discard(trial)

    def _is_behind(self, trial: str, time: float, reward: float) -> bool:
        for milestone, recorded in self._rungs:
            if time < milestone:
                continue
            if trial in recorded:  # it was let through
                return False
            limit = _percentile(sorted(recorded.values()), 1 - 1 / self._factor)
            recorded[trial] = reward
            return limit is not None and reward < limit
        return False


def _percentile(values: Sequence[float], share: float) -> float | None:
    """Return the quantile of ascending values, interpolated linearly; None without values."""
    if not values:
        return None
    place = share * (len(values) - 1)
    low = math.floor(place)
    high = min(low + 1, len(values) - 1)
    return values[low] + (values[high] - values[low]) * (place - low)
