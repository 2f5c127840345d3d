"""Ends a rank that hangs: reports which one and where, and prints the stacks of its threads.

Ranks exchange heartbeats outside of training: their progress, and where they are.
"""

import faulthandler
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from types import FrameType
from typing import Any, Protocol, Self

import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store

from aae_dist.distributed.world import World

LOST_FRACTION = 0.25
"""Of the hang timeout: without a new heartbeat for so long, a process is stopped or gone."""


@dataclass(frozen=True)
class Heartbeat:
    """The state of a rank, as it reports it."""

    rank: int
    step: int
    """Steps done."""
    stalled_seconds: float
    """Seconds since it finished a step, or left a section."""
    section: str = ""
    """Name of the declared long section that it is in."""
    section_left: float = 0.0
    """Seconds that the section may still take."""
    location: str = ""
    """Code that its main thread is in, once it is stalled."""
    in_collective: bool = False
    """Whether it may be waiting for other ranks."""
    age_seconds: float = 0.0
    """Seconds since this heartbeat was received."""
    is_lost: bool = False
    """Whether that is too long for a running process."""

    def __str__(self) -> str:
        """Describe what it is stuck in."""
        if self.is_lost:
            return f"no heartbeat for {self.age_seconds:.0f} s (stopped, or its machine is gone)"
        what = f" ({self.section} takes too long)" if self.section else ""
        return (
            f"no progress for {self.stalled_seconds:.0f} s after step {self.step}{what}, "
            f"at {self.location}"
        )


def is_in_section(beat: Heartbeat) -> bool:
    """Return whether the rank is alive in a declared section that has time left."""
    return bool(beat.section) and beat.section_left > 0 and not beat.is_lost


def find_straggler(ranks: dict[int, Heartbeat]) -> Heartbeat:
    """Return the heartbeat of the rank that blocks the others."""

    def order(beat: Heartbeat) -> tuple[Any, ...]:
        return not beat.is_lost, beat.step, beat.in_collective, not beat.section, beat.rank

    return min(ranks.values(), key=order)


class HeartbeatStore(Protocol):
    """The newest heartbeat of every rank."""

    def publish(self, mine: Heartbeat) -> None:
        """Publish the heartbeat of this rank."""

    def read(self, mine: Heartbeat) -> dict[int, Heartbeat]:
        """Return the newest of every rank, `mine` for this one."""


class NullHeartbeatStore:
    """The store of a single rank."""

    def publish(self, mine: Heartbeat) -> None:
        pass

    def read(self, mine: Heartbeat) -> dict[int, Heartbeat]:
        return {mine.rank: mine}


class TcpHeartbeatStore:
    """Heartbeats in torch's key-value store: one request to publish, and one to read all.

    One process serves the store to all ranks, so they read only when they have a reason to.
    """

    def __init__(self, world: World, limit: float, store: Any) -> None:
        """Use a store of torch over a connection of its own; `limit` is the hang timeout in s."""
        self._lost_seconds, self._store = limit * LOST_FRACTION, store
        self._unknown = [rank for rank in range(world.size) if rank != world.rank]
        self._known: list[int] = []
        self._received: dict[int, tuple[str, float]] = {}

    def publish(self, mine: Heartbeat) -> None:
        # The store ends with the process that serves it; collectives then fail by themselves.
        with suppress(dist.DistError, RuntimeError):
            self._store.set(_key(mine.rank), json.dumps(asdict(mine)))

    def read(self, mine: Heartbeat) -> dict[int, Heartbeat]:
        """Return the newest of every rank that has published one, `mine` for this one.

        A rank without a new one for a quarter of the limit, counted over these calls, is lost.
        """
        try:
            texts = self._texts()
        except (dist.DistError, RuntimeError):
            return {mine.rank: mine}
        found = {rank: self._with_age(rank, text.decode()) for rank, text in texts.items()}
        return {mine.rank: mine, **found}

    def _texts(self) -> dict[int, bytes]:
        # Getting a key that does not exist would wait for it.
        self._known += [rank for rank in self._unknown if self._store.check([_key(rank)])]
        self._unknown = [rank for rank in self._unknown if rank not in self._known]
        keys = [_key(rank) for rank in self._known]
        if keys and self._store.has_extended_api():
            return dict(zip(self._known, self._store.multi_get(keys), strict=True))
        return {rank: self._store.get(_key(rank)) for rank in self._known}

    def _with_age(self, rank: int, text: str) -> Heartbeat:
        now = time.monotonic()
        if self._received.get(rank, ("", 0.0))[0] != text:
            self._received[rank] = (text, now)
        age = now - self._received[rank][1]
        fields = json.loads(text) | {"age_seconds": age, "is_lost": age > self._lost_seconds}
        return Heartbeat(**fields)


def open_heartbeat_store(world: World, limit: float | None) -> HeartbeatStore:
    """Return the store of these ranks; without a limit nothing reads it."""
    if world.size == 1 or limit is None:
        return NullHeartbeatStore()
    # A connection of its own: a collective that waits for a key would block the other one.
    return TcpHeartbeatStore(world, limit, _get_default_store().clone())


def _key(rank: int) -> str:
    return f"aae_dist/heartbeat/{rank}"


SECTION_SECONDS = 600.0
"""Time limit of a declared long section; torch waits as long for an exchange of gradients."""
RANK_0_SECONDS = 3600.0
"""Time limit of a section in which all ranks wait for rank 0: evaluation and the last uploads. The
timeout of the process group that they wait in, `CONTROL_SECONDS`, is longer."""
READING_FRACTION = 0.125
"""Of the hang timeout: after so long without progress a rank starts to read other heartbeats.

No step comes near it, and at half the timeout it has seen enough of them to tell which are lost."""
TICK_SECONDS = 1.0
BACKSTOP_SECONDS = 10.0
EXIT_CODE = 1
_STDERR = 2  # the descriptor: Python's own sys.stderr may be a pipe without a reader
_LINE_SECONDS = 1.0  # time for the last line to reach the driver
_LIBRARIES = (f"{os.sep}torch{os.sep}", f"{os.sep}threading.py", "<frozen", "contextlib.py")


class Watchdog:
    """Watches this rank from a thread of its own; use it in a `with`.

    A rank that finishes no step for `limit` seconds, outside of a declared section, hangs. Ranks
    that wait for another one in a collective look the same, so they compare their heartbeats and
    name the one that blocks the others. Then the process exits, and its launcher restarts the ranks
    from the newest checkpoint. A step may always take ten times as long as the longest so far, for
    models whose steps take minutes.
    """

    def __init__(
        self,
        world: World,
        limit: float | None,
        line: Callable[[str], None],
        heartbeats: HeartbeatStore | None = None,
        end: Callable[[int], None] = os._exit,
        tick: float = TICK_SECONDS,
        backstop: float = BACKSTOP_SECONDS,
    ) -> None:
        """Watch from now on; the time until the first `beat` is a declared section.

        `limit` is in seconds, None to watch nothing; `tick` are the seconds between two checks.
        `backstop` seconds after `limit` a thread in C ends the process.
        """
        self._world, self._limit, self._line = world, limit, line
        self._heartbeats, self._end = heartbeats or open_heartbeat_store(world, limit), end
        self._tick, self._backstop = tick, backstop
        self._step, self._longest = 0, 0.0
        self._beat_at = self._section_since = time.monotonic()
        self._section, self._section_seconds = "starting", SECTION_SECONDS
        self._main, self._warned = threading.get_ident(), False
        self.busy: Callable[[], str] = str
        """Returns what other threads of this rank are at, such as a sample that takes long."""
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def beat(self, step: int) -> None:
        now = time.monotonic()
        if self._section == "starting":
            self._section = ""
        else:
            self._longest = max(self._longest, now - self._beat_at)
        self._step, self._beat_at, self._warned = step, now, False

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
        """Note progress within the section: its time limit restarts."""
        self._section_since = self._beat_at = time.monotonic()

    def __enter__(self) -> Self:
        if self._limit is not None:
            self._wind_backstop(self._limit)
            # A rank that is stopped before its first tick must be known to the others, too.
            self._heartbeats.publish(self._heartbeat())
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        assert self._limit is not None
        try:
            while not self._closed.wait(self._tick):
                self._wind_backstop(self._limit)
                self._check(max(self._limit, 10 * self._longest))
        finally:
            faulthandler.cancel_dump_traceback_later()

    def _wind_backstop(self, limit: float) -> None:
        # Backstop in C, in case another thread never releases the GIL: prints the stacks and exits.
        faulthandler.dump_traceback_later(limit + self._backstop, exit=True, file=_STDERR)

    def _check(self, limit: float) -> None:
        mine = self._heartbeat()
        self._heartbeats.publish(mine)
        if mine.stalled_seconds < limit * READING_FRACTION:
            return
        ranks = self._heartbeats.read(mine)
        if mine.stalled_seconds < limit / 2 or any(map(is_in_section, ranks.values())):
            return
        straggler = find_straggler(ranks)
        problem = f"rank {straggler.rank}: {straggler}"
        if mine.stalled_seconds < limit:
            if not self._warned:
                self._warned = True
                left = limit - mine.stalled_seconds
                self._log(f"{problem}; rank {mine.rank} exits in {left:.0f} s")
            return
        self._log(f"{problem}; rank {mine.rank} exits, to restart from the newest checkpoint")
        faulthandler.dump_traceback(_STDERR, all_threads=True)
        time.sleep(_LINE_SECONDS)
        self._end(EXIT_CODE)

    def _heartbeat(self) -> Heartbeat:
        now = time.monotonic()
        section = self._section
        left = self._section_seconds - (now - self._section_since) if section else 0.0
        frame = sys._current_frames().get(self._main)
        # The innermost Python code is torch's in a collective or a backward pass.
        in_torch = frame is not None and f"{os.sep}torch{os.sep}" in frame.f_code.co_filename
        return Heartbeat(
            rank=self._world.rank,
            step=self._step,
            stalled_seconds=now - self._beat_at,
            section=section,
            section_left=left,
            location=self._where(frame) if now - self._beat_at > self._tick else "",
            in_collective=in_torch,
        )

    def _where(self, frame: FrameType | None) -> str:
        busy = self.busy()
        return _location(frame) + (f", {busy}" if busy else "")

    def _log(self, text: str) -> None:
        try:
            self._line(text)
        except Exception as error:  # noqa: BLE001 - a broken pipe must not keep a hung rank alive
            os.write(_STDERR, f"{text} ({error})\n".encode())


def _location(frame: FrameType | None) -> str:
    """Return file, line and function of the innermost frame that is not of torch or Python."""
    inner = frame
    while frame is not None and any(w in frame.f_code.co_filename for w in _LIBRARIES):
        frame = frame.f_back
    frame = frame or inner
    if frame is None:
        return "an unknown location"
    code = frame.f_code
    return f"{os.sep.join(code.co_filename.split(os.sep)[-3:])}:{frame.f_lineno} in {code.co_name}"
