"""Real gloo ranks of the real command line, started in a tenth of a second from a warm process.

What torchrun does, without its 10 s of imports: processes forked from one that has imported torch,
with the variables of torchrun's world. `Fleet.end` waits as an agent does: when a rank fails, the
others get a few seconds, then SIGTERM and SIGKILL, and who had to be killed is told.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from helpers.faulty import VARIABLE, Fault
from helpers.ranks import CONTEXT, free_port
from helpers.runs import TINY

GRACE_SECONDS = 20.0


@dataclass
class Fleet:
    """Ranks of one attempt."""

    processes: list[multiprocessing.Process]
    log: Path
    started: float = field(default_factory=time.monotonic)
    killed: list[int] = field(default_factory=list)

    def signal(self, number: int, *ranks: int) -> None:
        """Send a signal to these ranks, or to all."""
        for rank in ranks or range(len(self.processes)):
            pid = self.processes[rank].pid
            assert pid is not None
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def end(self, timeout: float = 100.0, grace: float = GRACE_SECONDS) -> list[int]:
        """Return the exit codes when all ranks have ended."""
        until = time.monotonic() + timeout
        failed_at: float | None = None
        while any(p.is_alive() for p in self.processes):
            now = time.monotonic()
            assert now < until, self._stop(f"no end after {timeout} s")
            codes = [p.exitcode for p in self.processes]
            if failed_at is None and any(code not in (None, 0, 4) for code in codes):
                failed_at = now
            if failed_at is not None and now > failed_at + grace:
                self.killed = [r for r, p in enumerate(self.processes) if p.is_alive()]
                self.signal(signal.SIGKILL)
            time.sleep(0.02)
        for process in self.processes:
            process.join()
        return [int(p.exitcode or 0) for p in self.processes]

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def wait_for(self, words: str, timeout: float = 60.0) -> None:
        """Return when the log has these words."""
        until = time.monotonic() + timeout
        while words not in self.text():
            assert time.monotonic() < until, self._stop(f"no {words!r}")
            assert any(p.is_alive() for p in self.processes), self._stop(f"ended without {words!r}")
            time.sleep(0.02)

    def _stop(self, why: str) -> str:
        self.signal(signal.SIGKILL)
        return f"{why}:\n{self.text()[-4000:]}"


@contextlib.contextmanager
def fleet(
    folder: Path, *items: str, ranks: int = 2, fault: Fault | None = None, **environment: str
) -> Iterator[Fleet]:
    """Start the ranks of a run of these overrides; none outlives the block."""
    log = folder / f"log-{time.monotonic_ns()}.txt"
    log.touch()
    port = free_port()
    if fault is not None:
        environment[VARIABLE] = fault.encoded()
    arguments = ["train", *TINY, *items, "launch.kind=local"]
    processes = [
        CONTEXT.Process(target=_rank, args=(rank, ranks, port, str(log), arguments, environment))
        for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    started = Fleet(processes, log)
    try:
        yield started
    finally:
        started.signal(signal.SIGCONT)
        started.signal(signal.SIGKILL)
        for process in processes:
            process.join()


def finish(folder: Path, *items: str, ranks: int = 2, **environment: str) -> str:
    """Run to the end, which must go well, and return the log."""
    with fleet(folder, *items, ranks=ranks, **environment) as started:
        codes = started.end(200)
        assert codes == [0] * ranks, started.text()[-4000:]
        return started.text()


def _rank(
    rank: int, ranks: int, port: int, log: str, arguments: list[str], environment: dict[str, str]
) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in world.items()})
    os.environ.update({"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"})
    os.environ.update(environment)
    tempfile.tempdir = None  # so that TMPDIR counts, which the warm process may have read before
    if ranks == 1:
        del os.environ["WORLD_SIZE"]
    from helpers import faulty

    from aae_dist.cli import main

    faulty.install()
    code = main(arguments)
    sys.stdout.flush()
    os._exit(code)
