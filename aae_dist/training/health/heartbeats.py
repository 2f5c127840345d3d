"""Heartbeats that ranks exchange outside of training: their progress, and where they are."""

import contextlib
import json
import time
from dataclasses import asdict, dataclass
from typing import Any, Protocol

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
    return min(
        ranks.values(),
        key=lambda b: (not b.is_lost, b.step, b.in_collective, not b.section, b.rank),
    )


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
        with contextlib.suppress(dist.DistError, RuntimeError):
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
