"""The lock of a run: one live writer, taken over when it is dead, fenced off when it only slept."""

import contextlib
import logging
import threading
import time
from collections.abc import Iterator
from typing import Self

from pydantic import ValidationError

from aae_dist.distributed.collectives import run_on_rank_zero
from aae_dist.distributed.world import World
from aae_dist.errors import LaunchError, RunBusyError
from aae_dist.storage import Storage, read_or_none
from aae_dist.training.run.lock_owner import KEY, Holder, this_process

logger = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 5.0
STALE_SECONDS = 30.0
_POLLS_PER_HEARTBEAT = 5
# A heartbeat that hangs in the network must not hold up the end of a run.
_JOIN_SECONDS = 10.0


class RunLock:
    """Held from `acquire` to `release`; also a context manager that releases.

    Attributes:
        attempt: fencing number, one more at each acquisition of the run's lock.
    """

    def __init__(self, run: Storage, holder: Holder, heartbeat_seconds: float) -> None:
        """Keep a lock that was just written alive; use `acquire` instead."""
        self._run, self._holder = run, holder
        self.attempt = holder.attempt
        self._guard, self._stop = threading.Lock(), threading.Event()
        self._thread = threading.Thread(
            target=self._beat_until_stopped, args=(heartbeat_seconds,), name="lock", daemon=True
        )
        self._thread.start()

    @classmethod
    def acquire(
        cls,
        run: Storage,
        launch_id: str,
        heartbeat_seconds: float = HEARTBEAT_SECONDS,
        stale_seconds: float = STALE_SECONDS,
    ) -> "RunLock":
        """Take the lock of a run.

        Args:
            run: the run's folder.
            launch_id: one per given command: its restarted processes take over at once.
            heartbeat_seconds: between two signs of life.
            stale_seconds: without a sign of life after which a holder elsewhere counts as dead.

        Raises:
            RunBusyError: another live process writes this run.
            LaunchError: the storage cannot be used.
        """
        while True:
            current = read_or_none(run, KEY)
            holder = this_process(_attempt_after(current), launch_id)
            if current is None:
                taken = run.create(KEY, holder.encoded())
            else:
                poll_seconds = heartbeat_seconds / _POLLS_PER_HEARTBEAT
                if not _is_free(run, current, launch_id, stale_seconds, poll_seconds):
                    continue
                taken = run.replace(KEY, holder.encoded(), expected=current)
            # A repeated request is refused because of its own first copy, so look again.
            if taken or holder.is_same(_parse(read_or_none(run, KEY))):
                return cls(run, holder, heartbeat_seconds)

    def check(self) -> None:
        """Raise LaunchError when another process has taken the run over."""
        self._check(read_or_none(self._run, KEY))

    def release(self) -> None:
        """Give the lock up if it is still ours; never raises."""
        self._stop.set()
        self._thread.join(_JOIN_SECONDS)
        try:
            # Marked, not removed: the next holder must get a higher attempt.
            self._rewrite(self._holder.model_copy(update={"released": True}))
        except (LaunchError, OSError) as error:
            logger.warning("the lock of %s is not released: %s", self._run.uri, error)

    def __enter__(self) -> Self:
        """Return the lock."""
        return self

    def __exit__(self, *error: object) -> None:
        """Release the lock."""
        self.release()

    def _check(self, lock: bytes | None) -> None:
        holder = _parse(lock)
        if not self._holder.is_same(holder):
            raise LaunchError(
                f"{self._run.uri} was taken over by {holder or 'somebody who removed the lock'}. "
                "This process stops writing; look for the newer one."
            )

    def _rewrite(self, newer: Holder) -> None:
        """Replace the lock, which is ours at whatever heartbeat; LaunchError when it is not."""
        with self._guard:
            current = read_or_none(self._run, KEY)
            self._check(current)
            if current and self._run.replace(KEY, newer.encoded(), expected=current):
                self._holder = newer
            else:
                self._check(read_or_none(self._run, KEY))

    def _beat_until_stopped(self, heartbeat_seconds: float) -> None:
        failing = False
        while not self._stop.wait(heartbeat_seconds):
            newer = self._holder.model_copy(update={"heartbeat": self._holder.heartbeat + 1})
            try:
                self._rewrite(newer)
                failing = False
            except (LaunchError, OSError) as error:
                # Training goes on: the fence decides at the next checkpoint, not this thread.
                if not failing:
                    logger.warning("no sign of life was left for %s: %s", self._run.uri, error)
                failing = True


@contextlib.contextmanager
def locked(run: Storage, world: World, launch_id: str) -> Iterator[RunLock | None]:
    """Hold the run's lock on rank 0; its LaunchError is every rank's."""
    held: list[RunLock] = []

    def acquire() -> None:
        run.check_writable()
        held.append(RunLock.acquire(run, launch_id))

    run_on_rank_zero(world, acquire)
    try:
        yield held[0] if held else None
    finally:
        for lock in held:
            lock.release()


def _parse(lock: bytes | None) -> Holder | None:
    """Return who holds the lock; None when nobody does or it cannot be read."""
    try:
        return None if lock is None else Holder.model_validate_json(lock)
    except ValidationError:
        return None


def _attempt_after(lock: bytes | None) -> int:
    holder = _parse(lock)
    return holder.attempt + 1 if holder else 1


def _is_free(
    run: Storage, lock: bytes, launch_id: str, stale_seconds: float, poll_seconds: float
) -> bool:
    """Return whether `lock` may be taken over; False when it changed and is to be read again."""
    holder = _parse(lock)
    if holder and (holder.released or holder.launch_id == launch_id):
        return True
    if holder and holder.is_of_this_kernel():
        if holder.is_alive():
            raise _busy(run, holder)
        return True
    return _is_stale(run, lock, holder, stale_seconds, poll_seconds)


def _is_stale(
    run: Storage, lock: bytes, holder: Holder | None, stale_seconds: float, poll_seconds: float
) -> bool:
    """Watch a holder whose process cannot be seen; RunBusyError when it gives a sign of life."""
    logger.warning(
        "%s is locked by %s; waiting up to %g s for a sign of life before taking over",
        run.uri,
        holder or "a damaged lock file",
        stale_seconds,
    )
    give_up = time.monotonic() + stale_seconds
    while time.monotonic() < give_up:
        time.sleep(poll_seconds)
        newer = read_or_none(run, KEY)
        if newer == lock:
            continue
        seen = _parse(newer)
        if holder and holder.is_same(seen) and seen and not seen.released:
            raise _busy(run, seen)
        return False
    return True


def _busy(run: Storage, holder: Holder) -> RunBusyError:
    return RunBusyError(
        f"{run.uri} is being written by {holder}. "
        "Wait until it ends, stop it, or choose another run.name."
    )
