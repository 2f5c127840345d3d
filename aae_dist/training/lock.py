"""The lock of a run: one live writer, replaced when it is dead, fenced off when it only slept."""

import logging
import os
import secrets
import socket
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

from aae_dist.errors import LaunchError, RunBusyError
from aae_dist.storage import Storage, read_or_none, rereads

logger = logging.getLogger(__name__)

KEY = "lock.json"
HEARTBEAT_SECONDS = 5.0
STALE_SECONDS = 30.0
_POLLS_PER_HEARTBEAT = 5
_JOIN_SECONDS = 10.0  # a heartbeat that hangs in the network must not delay the end of a run
_STARTED_FIELD = 22  # of /proc/<pid>/stat, counted from 1: clock ticks from boot to the start
_STATE_FIELD = 3


class LockOwner(BaseModel):
    """The contents of the lock: identifies a process, so that its death can be detected."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    attempt: int
    """Fencing number: one more than that of the owner before."""
    boot_id: str
    """Boot of the kernel and its namespace of process ids: where `pid` means this process."""
    heartbeat: int
    """Increases while the owner lives."""
    host: str
    launch_id: str
    """One per launch; its own restarts take over at once."""
    nonce: str
    """Random: distinguishes two owners that took the same attempt."""
    pid: int
    released: bool = False
    since: str
    """When the lock was taken, UTC."""
    started: str
    """Start time of the process: a pid is reused, the pair is not."""

    def encoded(self) -> bytes:
        return self.model_dump_json().encode()

    def is_same(self, other: "LockOwner | None") -> bool:
        return other is not None and (other.attempt, other.nonce) == (self.attempt, self.nonce)

    def is_of_this_kernel(self) -> bool:
        """Return whether this process could see the owner's process."""
        return bool(self.boot_id) and (self.host, self.boot_id) == (
            socket.gethostname(),
            _boot_id(),
        )

    def is_alive(self) -> bool:
        """Return whether the process lives; only meaningful on the owner's own kernel."""
        return bool(self.started) and _started(self.pid) == self.started

    def __str__(self) -> str:
        return f"process {self.pid} on host {self.host}, since {self.since}"


class RunLock:
    """Held from `acquire` to `release`; also a context manager that releases."""

    def __init__(self, run: Storage, owner: LockOwner, heartbeat_seconds: float) -> None:
        """Keep a lock that was just written alive; use `acquire` instead."""
        self._run, self._owner = run, owner
        self.attempt = owner.attempt
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
        """Take the lock in a run's folder; RunBusyError if another live process writes this run.

        Restarted processes of one `launch_id` take over at once. An owner on another machine is
        dead without a heartbeat for `stale_seconds`.
        """
        while True:
            current = read_or_none(run, KEY)
            before = _parse(current)
            owner = this_process(before.attempt + 1 if before else 1, launch_id)
            if current is None:
                taken = run.create(KEY, owner.encoded())
            else:
                poll_seconds = heartbeat_seconds / _POLLS_PER_HEARTBEAT
                if not _is_free(run, current, launch_id, stale_seconds, poll_seconds):
                    continue
                taken = run.replace(KEY, owner.encoded(), expected=current)
            # A repeated request fails because of its own first copy, so read the lock again.
            if taken or owner.is_same(_parse(read_or_none(run, KEY))):
                return cls(run, owner, heartbeat_seconds)

    def check(self) -> None:
        """Raise LaunchError when another process has taken the run over."""
        # One wrong answer must not end a run: what is not ours is read again.
        for place in rereads(self._run):
            lock = read_or_none(place, KEY)
            if self._owner.is_same(_parse(lock)):
                return
        self._check(lock)

    def release(self) -> None:
        """Release the lock if it is still ours; never raises."""
        self._stop.set()
        self._thread.join(_JOIN_SECONDS)
        try:
            # Marked, not removed: the next owner must get a higher attempt.
            self._rewrite(self._owner.model_copy(update={"released": True}))
        except (LaunchError, OSError) as error:
            logger.warning("the lock of %s is not released: %s", self._run.uri, error)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def _check(self, lock: bytes | None) -> None:
        owner = _parse(lock)
        if not self._owner.is_same(owner):
            raise LaunchError(
                f"{self._run.uri} was taken over by {owner or 'a process that removed the lock'}. "
                "This process stops writing; look for the newer one."
            )

    def _rewrite(self, newer: LockOwner) -> None:
        """Replace the lock, which is ours at whatever heartbeat; LaunchError when it is not."""
        with self._guard:
            current = read_or_none(self._run, KEY)
            self._check(current)
            if current and self._run.replace(KEY, newer.encoded(), expected=current):
                self._owner = newer
            else:
                self._check(read_or_none(self._run, KEY))

    def _beat_until_stopped(self, heartbeat_seconds: float) -> None:
        failing = False
        while not self._stop.wait(heartbeat_seconds):
            newer = self._owner.model_copy(update={"heartbeat": self._owner.heartbeat + 1})
            try:
                self._rewrite(newer)
                failing = False
            except (LaunchError, OSError) as error:
                # Training continues: the next checkpoint checks the fencing, not this thread.
                if not failing:
                    logger.warning("no heartbeat was written for %s: %s", self._run.uri, error)
                failing = True


def _parse(lock: bytes | None) -> LockOwner | None:
    """Return the owner in the lock; None without a lock, or when it cannot be read."""
    try:
        return None if lock is None else LockOwner.model_validate_json(lock)
    except ValidationError:
        return None


def _is_free(
    run: Storage, lock: bytes, launch_id: str, stale_seconds: float, poll_seconds: float
) -> bool:
    """Return whether `lock` may be replaced; False when it changed and must be read again.

    RunBusyError when its owner is alive.
    """
    owner = _parse(lock)
    if owner and (owner.released or owner.launch_id == launch_id):
        return True
    if owner and owner.is_of_this_kernel():
        if owner.is_alive():
            raise _busy(run, owner)
        return True
    # Watch an owner whose process cannot be seen; it is alive when its heartbeat increases.
    logger.warning(
        "%s is locked by %s; waiting up to %g s for a heartbeat before taking over",
        run.uri,
        owner or "a damaged lock file",
        stale_seconds,
    )
    deadline = time.monotonic() + stale_seconds
    while time.monotonic() < deadline:
        time.sleep(poll_seconds)
        newer = read_or_none(run, KEY)
        if newer == lock:
            continue
        seen = _parse(newer)
        if owner and owner.is_same(seen) and seen and not seen.released:
            raise _busy(run, seen)
        return False
    return True


def _busy(run: Storage, owner: LockOwner) -> RunBusyError:
    return RunBusyError(
        f"{run.uri} is being written by {owner}. "
        "Wait until it ends, stop it, or choose another run.name."
    )


def this_process(attempt: int, launch_id: str) -> LockOwner:
    """Return this process as a new owner."""
    return LockOwner(
        attempt=attempt,
        boot_id=_boot_id(),
        heartbeat=0,
        host=socket.gethostname(),
        launch_id=launch_id,
        nonce=secrets.token_hex(8),
        pid=os.getpid(),
        since=datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
        started=_started(os.getpid()),
    )


def _boot_id() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        # Containers of one machine share its boot; a pid of one says nothing in another.
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _started(pid: int) -> str:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    # The second field is the program's name in brackets and may hold blanks and brackets.
    fields = text[text.rindex(")") + 2 :].split()
    dead = fields[_STATE_FIELD - 3] in "ZX"
    return "" if dead else fields[_STARTED_FIELD - 3]
