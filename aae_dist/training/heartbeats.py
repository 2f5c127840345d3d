"""What ranks tell each other beside training: how far they are, and where they stand."""

import json
import time
from dataclasses import asdict, dataclass
from typing import Protocol

import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store

from aae_dist.distributed.world import World

SILENT_PART = 0.25
"""Of the limit on hanging: without a new heartbeat for so long, a process is stopped or gone."""


@dataclass(frozen=True)
class Heartbeat:
    """A rank's state, as it sees itself."""

    rank: int
    step: int
    """Steps done."""
    quiet: float
    """Seconds since it finished one, or left a section."""
    section: str = ""
    """Name of the declared long section that it is in."""
    section_left: float = 0.0
    """Seconds that the section may still take."""
    place: str = ""
    """Where its main thread stands, once it is quiet."""
    waits: bool = False
    """Whether it may be waiting for other ranks."""
    silent: float = 0.0
    """Seconds since this heartbeat came."""
    gone: bool = False
    """Whether that is too long for a process that runs."""

    def __str__(self) -> str:
        """Say what holds it up."""
        if self.gone:
            return f"no sign of life for {self.silent:.0f} s (stopped, or its machine is gone)"
        what = f" ({self.section} takes too long)" if self.section else ""
        return f"no progress for {self.quiet:.0f} s after step {self.step}{what}, at {self.place}"


def is_declared(beat: Heartbeat) -> bool:
    """Return whether the rank is alive in a section that may still go on."""
    return bool(beat.section) and beat.section_left > 0 and not beat.gone


def culprit(ranks: dict[int, Heartbeat]) -> Heartbeat:
    """Return the rank that holds the others up."""
    return min(
        ranks.values(),
        key=lambda b: (not b.gone, b.step, b.waits, not b.section, b.rank),
    )


class Board(Protocol):
    """Where ranks leave their heartbeats."""

    def exchange(self, mine: Heartbeat) -> dict[int, Heartbeat]:
        """Leave one, and return the newest of every rank, this one's included."""


class NoBoard:
    """The board of a rank that is alone."""

    def exchange(self, mine: Heartbeat) -> dict[int, Heartbeat]:
        """Return its own."""
        return {mine.rank: mine}


class StoreBoard:
    """Heartbeats in the key-value store of the process group, over a connection of their own."""

    def __init__(self, world: World, limit: float) -> None:
        """Connect, the process group exists; `limit` is that on hanging, in seconds."""
        self._world, self._silence = world, limit * SILENT_PART
        # A connection of its own: a collective that waits for a key would hold the other one.
        self._store = _get_default_store().clone()
        self._seen: dict[int, tuple[str, float]] = {}

    def exchange(self, mine: Heartbeat) -> dict[int, Heartbeat]:
        """Leave one, and return the newest of every rank that has left one."""
        found = {mine.rank: mine}
        try:
            self._store.set(_key(mine.rank), json.dumps(asdict(mine)))
            for rank in range(self._world.size):
                if rank != mine.rank and self._store.check([_key(rank)]):
                    found[rank] = self._with_silence(rank, self._store.get(_key(rank)).decode())
        except (dist.DistError, RuntimeError):
            # The store went with the process that served it; collectives fail by themselves then.
            return {mine.rank: mine}
        return found

    def _with_silence(self, rank: int, text: str) -> Heartbeat:
        now = time.monotonic()
        if self._seen.get(rank, ("", 0.0))[0] != text:
            self._seen[rank] = (text, now)
        fields = json.loads(text)
        silent = now - self._seen[rank][1]
        return Heartbeat(**{**fields, "silent": silent, "gone": silent > self._silence})


def open_board(world: World, limit: float | None) -> Board:
    """Return the board of these ranks; nobody looks at one without a limit."""
    return StoreBoard(world, limit) if world.size > 1 and limit is not None else NoBoard()


def _key(rank: int) -> str:
    return f"aae_dist/heartbeat/{rank}"
