"""Ends a rank that hangs: says which one and where, and leaves the stacks of all its threads."""

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Self

from aae_dist.distributed.world import World
from aae_dist.training.health.heartbeats import Board, Heartbeat, culprit, is_declared

SECTION_SECONDS = 600.0
"""Longest time in a declared long section. Where ranks exchange gradients, torch waits as long."""
RANK_0_SECONDS = 3600.0
"""Longest time in one where all wait for what rank 0 does alone, evaluation and the last uploads;
the time-out of the group over which they wait, `CONTROL_SECONDS`, is longer."""
READING_PART = 0.125
"""Of the limit on hanging: so long without progress, a rank begins to read the others' heartbeats.

No step comes near it, and at half the limit it has seen enough of them to tell who is gone."""
TICK_SECONDS = 1.0
BACKSTOP_SECONDS = 10.0
EXIT_CODE = 1
_STDERR = 2  # the descriptor: Python's own sys.stderr may be a pipe that nobody reads any more
_LINE_SECONDS = 1.0  # time for the last line to reach the driver
_WAITS = (f"{os.sep}torch{os.sep}", f"{os.sep}threading.py", "<frozen", "contextlib.py")


class Watchdog:
    """Watches this rank from a thread of its own; use it in a `with`.

    A rank that finishes no step for `limit` seconds, outside of a declared section, hangs. Ranks
    that wait for another one in a collective look the same, so they compare their heartbeats and
    name the one that holds the others up. Then the process ends: its launcher starts the ranks
    again from the newest checkpoint. A step may always take ten times as long as the longest so
    far, for models whose steps take minutes.
    """

    def __init__(
        self,
        world: World,
        limit: float | None,
        line: Callable[[str], None],
        board: Board,
        end: Callable[[int], None] = os._exit,
        tick: float = TICK_SECONDS,
        backstop: float = BACKSTOP_SECONDS,
    ) -> None:
        """Watch from now on; the time until the first `beat` is a declared section.

        Args:
            world: this process's place among the ranks.
            limit: seconds; None to watch nothing.
            line: shows one line.
            board: where ranks leave their heartbeats for each other.
            end: ends the process with this exit code.
            tick: seconds between two looks.
            backstop: seconds after `limit` at which a thread without Python ends the process.
        """
        self._world, self._limit, self._line = world, limit, line
        self._board, self._end, self._tick = board, end, tick
        self._backstop = backstop
        self._step, self._longest = 0, 0.0
        self._beat_at = self._section_since = time.monotonic()
        self._section, self._section_seconds = "starting", SECTION_SECONDS
        self._main = threading.get_ident()
        self._warned = False
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def beat(self, step: int) -> None:
        """Note that `step` is done."""
        now = time.monotonic()
        if self._section == "starting":
            self._section = ""
        else:
            self._longest = max(self._longest, now - self._beat_at)
        self._step, self._beat_at = step, now
        self._warned = False

    @contextmanager
    def section(self, what: str, seconds: float = SECTION_SECONDS) -> Iterator[None]:
        """Declare that what runs inside may take up to `seconds`."""
        outer = self._section, self._section_seconds, self._section_since
        began = self._section_since = time.monotonic()
        self._section, self._section_seconds = what, seconds
        try:
            yield
        finally:
            self._beat_at = time.monotonic()
            # The section around this one has its time to itself.
            self._section_since = outer[2] + self._beat_at - began
            self._section, self._section_seconds = outer[:2]

    def alive(self) -> None:
        """Note that the section goes forward: its time begins anew."""
        self._section_since = self._beat_at = time.monotonic()

    def __enter__(self) -> Self:
        """Start to watch."""
        if self._limit is not None:
            self._wind_backstop(self._limit)
            # Whoever is stopped before the first tick must be known to the others, too.
            self._board.leave(self._heartbeat())
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Stop watching."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        assert self._limit is not None
        try:
            while not self._closed.wait(self._tick):
                self._wind_backstop(self._limit)
                self._look(max(self._limit, 10 * self._longest))
        finally:
            faulthandler.cancel_dump_traceback_later()

    def _wind_backstop(self, limit: float) -> None:
        # Should this thread itself not run any more, say because another one never gives the
        # interpreter back, a thread without Python prints the stacks and ends the process.
        faulthandler.dump_traceback_later(limit + self._backstop, exit=True, file=_STDERR)

    def _look(self, limit: float) -> None:
        mine = self._heartbeat()
        self._board.leave(mine)
        if mine.quiet < limit * READING_PART:
            return
        ranks = self._board.read(mine)
        if mine.quiet < limit / 2 or any(map(is_declared, ranks.values())):
            return
        held_up_by = culprit(ranks)
        who = f"rank {held_up_by.rank}: {held_up_by}"
        if mine.quiet < limit:
            if not self._warned:
                self._warned = True
                self._say(f"{who}; rank {mine.rank} ends itself in {limit - mine.quiet:.0f} s")
            return
        self._say(f"{who}; rank {mine.rank} ends, to start again from the newest checkpoint")
        faulthandler.dump_traceback(_STDERR, all_threads=True)
        time.sleep(_LINE_SECONDS)
        self._end(EXIT_CODE)

    def _heartbeat(self) -> Heartbeat:
        now = time.monotonic()
        section = self._section
        left = self._section_seconds - (now - self._section_since) if section else 0.0
        frame = sys._current_frames().get(self._main)
        return Heartbeat(
            rank=self._world.rank,
            step=self._step,
            quiet=now - self._beat_at,
            section=section,
            section_left=left,
            place=_place(frame) if now - self._beat_at > self._tick else "",
            waits=_waits(frame),
        )

    def _say(self, text: str) -> None:
        try:
            self._line(text)
        except Exception as error:  # noqa: BLE001 - a broken pipe must not keep a hung rank alive
            os.write(_STDERR, f"{text} ({error})\n".encode())


def _waits(frame: FrameType | None) -> bool:
    """Return whether the innermost Python code is torch's: a collective, or a backward pass."""
    return frame is not None and f"{os.sep}torch{os.sep}" in frame.f_code.co_filename


def _place(frame: FrameType | None) -> str:
    """Return file, line and function of the innermost frame that is not of torch or Python."""
    inner = frame
    while frame is not None and any(w in frame.f_code.co_filename for w in _WAITS):
        frame = frame.f_back
    frame = frame or inner
    if frame is None:
        return "an unknown place"
    code = frame.f_code
    return f"{os.sep.join(code.co_filename.split(os.sep)[-3:])}:{frame.f_lineno} in {code.co_name}"
