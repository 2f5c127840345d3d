"""Where a run's time goes: useful steps, or waiting, saving, evaluating, starting again."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

PARTS = ("useful", "data_wait", "checkpoint", "evaluation", "record", "stall", "restart")
"""Every second of a run belongs to exactly one of these."""
STALL_FACTOR, STALL_SECONDS = 2.0, 1.0
"""Steps between two log points stall when they take this many times as long as usual, and this
much longer: a machine that sleeps or is paused, a rank that waits for another one."""

Clock = Callable[[], float]


class Goodput:
    """Divides the wall time since the run's first start into parts, over all of its attempts.

    What lies between the checkpoint that an attempt starts from and its first finished step is
    `restart`: the steps that were lost, the time until somebody started again, and the start.
    """

    def __init__(
        self,
        saved: Mapping[str, Any] | None = None,
        clock: Clock = time.monotonic,
        wall: Clock = time.time,
    ) -> None:
        """Start the clock.

        Args:
            saved: `document` of the checkpoint that this attempt starts from.
            clock: seconds that only grow.
            wall: seconds since 1970, to compare with those of an earlier attempt.
        """
        self._clock, self._wall = clock, wall
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._now_in = "restart"  # until the first step is done
        self._mark = clock()
        # Of the steps since the last log point: how many, seconds; and the usual seconds a step.
        self._lap_steps, self._lap_seconds, self._usual = 0, 0.0, 0.0
        if saved:
            self._seconds |= {part: saved["seconds"].get(part, 0.0) for part in PARTS}
            if not saved["finished"]:  # a run that had ended lost no time until it was prolonged
                self._seconds["restart"] += max(0.0, wall() - saved["at"])

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the time inside as this part; of nested parts the inner one counts."""
        self._book()
        outer, self._now_in = self._now_in, name
        try:
            yield
        finally:
            self._book()
            self._now_in = outer

    def step_done(self) -> None:
        """Count a finished step."""
        self._book()
        self._now_in = "useful"
        self._lap_steps += 1

    def start_again(self) -> None:
        """Count as `restart` until the next step is done: the run went back to a checkpoint."""
        self._book()
        self._now_in = "restart"
        self._lap_steps, self._lap_seconds = 0, 0.0

    def metrics(self) -> dict[str, float]:
        """Return the metrics of a log point, and look for stalls since the one before."""
        self._book()
        self._find_stall()
        wall = sum(self._seconds.values())
        parts = {f"goodput/{part}_seconds": round(s, 3) for part, s in self._seconds.items()}
        useful = self._seconds["useful"] / max(wall, 1e-9)
        return {
            "goodput/fraction": round(useful, 4),
            "goodput/wall_seconds": round(wall, 3),
        } | parts

    def document(self, finished: bool) -> dict[str, Any]:
        """Return what a checkpoint keeps: an attempt that starts from it goes on counting."""
        self._book()
        return {"seconds": dict(self._seconds), "at": self._wall(), "finished": finished}

    def _book(self) -> None:
        now = self._clock()
        passed, self._mark = now - self._mark, now
        self._seconds[self._now_in] += passed
        if self._now_in == "useful":
            self._lap_seconds += passed

    def _find_stall(self) -> None:
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
