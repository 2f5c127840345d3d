"""Goodput: the part of a run's wall time that is spent in useful steps, and the rest."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

PARTS = ("useful", "data_wait", "checkpoint", "evaluation", "record", "stall", "restart")
"""Every second of a run counts as exactly one of these."""
STALL_FACTOR, STALL_SECONDS = 2.0, 1.0
"""Steps between two log points stall when they take this many times as long as usual, and this
much longer: a machine that sleeps or is paused, a rank that waits for another one."""

Clock = Callable[[], float]


class Goodput:
    """Divides the wall time since the run's first start into parts, over all of its attempts.

    The time between the checkpoint that an attempt starts from and its first finished step is
    `restart`: the steps that were lost, the time until the restart, and the start itself.
    """

    def __init__(
        self,
        saved: Mapping[str, Any] | None = None,
        clock: Clock = time.monotonic,
        wall: Clock = time.time,
    ) -> None:
        """Start the clock.

        Args:
            saved: `metadata` in the checkpoint that this attempt starts from.
            clock: monotonic seconds.
            wall: seconds since 1970, to compare with those of an earlier attempt.
        """
        self._clock, self._wall = clock, wall
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._current = "restart"  # until the first step is done
        self._mark = clock()
        # Steps since the last log point, their seconds, and the usual seconds per step.
        self._lap_steps, self._lap_seconds, self._usual = 0, 0.0, 0.0
        if saved:
            self._seconds |= {part: saved["seconds"].get(part, 0.0) for part in PARTS}
            if not saved["finished"]:  # a finished run lost no time until it was extended
                self._seconds["restart"] += max(0.0, wall() - saved["at"])

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the time inside as this part; of nested parts the innermost one."""
        self._account()
        outer, self._current = self._current, name
        try:
            yield
        finally:
            self._account()
            self._current = outer

    def step_done(self) -> None:
        """Count a finished step."""
        self._account()
        self._current = "useful"
        self._lap_steps += 1

    def restart(self) -> None:
        """Count as `restart` until the next step is done: the run rolled back to a checkpoint."""
        self._account()
        self._current = "restart"
        self._lap_steps, self._lap_seconds = 0, 0.0

    def metrics(self) -> dict[str, float]:
        """Return the metrics of a log point, and detect a stall since the one before."""
        self._account()
        self._detect_stall()
        wall = sum(self._seconds.values())
        parts = {f"goodput/{part}_seconds": round(s, 3) for part, s in self._seconds.items()}
        useful = self._seconds["useful"] / max(wall, 1e-9)
        return {
            "goodput/fraction": round(useful, 4),
            "goodput/wall_seconds": round(wall, 3),
        } | parts

    def metadata(self, finished: bool) -> dict[str, Any]:
        """Return the values for a checkpoint: an attempt that starts from it continues counting."""
        self._account()
        return {"seconds": dict(self._seconds), "at": self._wall(), "finished": finished}

    def _account(self) -> None:
        now = self._clock()
        passed, self._mark = now - self._mark, now
        self._seconds[self._current] += passed
        if self._current == "useful":
            self._lap_seconds += passed

    def _detect_stall(self) -> None:
        steps, took = self._lap_steps, self._lap_seconds
        self._lap_steps, self._lap_seconds = 0, 0.0
        if steps == 0:
            return
        excess = took - self._usual * steps
        if self._usual and took > STALL_FACTOR * self._usual * steps + STALL_SECONDS:
            self._seconds["stall"] += excess
            self._seconds["useful"] -= excess
        else:
            self._usual += (took / steps - self._usual) / (8 if self._usual else 1)
