"""What ranks tell each other beside training: how far they are, and where they stand."""

import contextlib
import json
import time
from dataclasses import asdict, dataclass
from typing import Any, Protocol

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

    def leave(self, mine: Heartbeat) -> None:
        """Leave one for the others."""

    def read(self, mine: Heartbeat) -> dict[int, Heartbeat]:
        """Return the newest of every rank, `mine` for this one."""


class NoBoard:
    """The board of a rank that is alone."""

    def leave(self, mine: Heartbeat) -> None:
        """Nothing: nobody reads it."""

    def read(self, mine: Heartbeat) -> dict[int, Heartbeat]:
        """Return its own."""
        return {mine.rank: mine}


class StoreBoard:
    """Heartbeats in a key-value store: one request to leave one, and one to read all.

    One process serves the store to all ranks, so they read only when they have a reason to.
    """

    def __init__(self, world: World, limit: float, store: Any) -> None:
        """Use a store of torch over a connection of its own; `limit` is that on hanging, in s."""
        self._silence, self._store = limit * SILENT_PART, store
        self._unknown = [rank for rank in range(world.size) if rank != world.rank]
        self._known: list[int] = []
        self._seen: dict[int, tuple[str, float]] = {}

    def leave(self, mine: Heartbeat) -> None:
        """Leave one for the others."""
        # The store goes with the process that serves it; collectives fail by themselves then.
        with contextlib.suppress(dist.DistError, RuntimeError):
            self._store.set(_key(mine.rank), json.dumps(asdict(mine)))

    def read(self, mine: Heartbeat) -> dict[int, Heartbeat]:
        """Return the newest of every rank that has left one, `mine` for this one.

        Without a word from a rank for a quarter of the limit, counted over these calls, it is gone.
        """
        try:
            texts = self._texts()
        except (dist.DistError, RuntimeError):
            return {mine.rank: mine}
        found = {rank: self._with_silence(rank, text.decode()) for rank, text in texts.items()}
        return {mine.rank: mine, **found}

    def _texts(self) -> dict[int, bytes]:
        # To get what is not there would wait for it.
        self._known += [rank for rank in self._unknown if self._store.check([_key(rank)])]
        self._unknown = [rank for rank in self._unknown if rank not in self._known]
        keys = [_key(rank) for rank in self._known]
        if keys and self._store.has_extended_api():
            return dict(zip(self._known, self._store.multi_get(keys), strict=True))
        return {rank: self._store.get(_key(rank)) for rank in self._known}

    def _with_silence(self, rank: int, text: str) -> Heartbeat:
        now = time.monotonic()
        if self._seen.get(rank, ("", 0.0))[0] != text:
            self._seen[rank] = (text, now)
        fields = json.loads(text)
        silent = now - self._seen[rank][1]
        return Heartbeat(**{**fields, "silent": silent, "gone": silent > self._silence})


def open_board(world: World, limit: float | None) -> Board:
    """Return the board of these ranks; nobody looks at one without a limit."""
    if world.size == 1 or limit is None:
        return NoBoard()
    # A connection of its own: a collective that waits for a key would hold the other one.
    return StoreBoard(world, limit, _get_default_store().clone())


def _key(rank: int) -> str:
    return f"aae_dist/heartbeat/{rank}"
