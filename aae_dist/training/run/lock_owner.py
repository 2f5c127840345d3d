"""Who holds a run: a process told apart from all others, so that its death can be seen."""

import os
import secrets
import socket
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict

KEY = "lock.json"
_STARTED_FIELD = 22  # of /proc/<pid>/stat, counted from 1: clock ticks from boot to the start
_STATE_FIELD = 3


class Holder(BaseModel):
    """What stands in the lock of a run."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    attempt: int
    """Fencing number: one more than that of the holder before."""
    boot_id: str
    """Boot of the kernel and its namespace of process ids: where `pid` means this process."""
    heartbeat: int
    """Grows while the holder lives."""
    host: str
    launch_id: str
    """One per given command; its own restarts take over at once."""
    nonce: str
    """Random: tells apart two holders that took the same attempt."""
    pid: int
    released: bool = False
    since: str
    """When the lock was taken, UTC."""
    started: str
    """Start time of the process: a pid is used again, the pair is not."""

    def encoded(self) -> bytes:
        """Return the bytes of the lock."""
        return self.model_dump_json().encode()

    def is_same(self, other: "Holder | None") -> bool:
        """Return whether `other` is this holder, at any heartbeat."""
        return other is not None and (other.attempt, other.nonce) == (self.attempt, self.nonce)

    def is_of_this_kernel(self) -> bool:
        """Return whether this process could see the holder's process."""
        return bool(self.boot_id) and (self.host, self.boot_id) == (_host(), _boot_id())

    def is_alive(self) -> bool:
        """Return whether the process lives; only meaningful on the holder's own kernel."""
        return bool(self.started) and _started(self.pid) == self.started

    def __str__(self) -> str:
        """Name the process for a person."""
        return f"process {self.pid} on host {self.host}, since {self.since}"


def this_process(attempt: int, launch_id: str) -> Holder:
    """Return this process as a new holder."""
    return Holder(
        attempt=attempt,
        boot_id=_boot_id(),
        heartbeat=0,
        host=_host(),
        launch_id=launch_id,
        nonce=secrets.token_hex(8),
        pid=os.getpid(),
        since=datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
        started=_started(os.getpid()),
    )


def _host() -> str:
    return socket.gethostname()


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
