"""Runs under Ray: a Ray of their own, or a cluster of several node processes."""

import contextlib
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from helpers.ranks import free_port
from helpers.runs import TINY, descendants, kill_all, start


def on_ray(*items: str) -> list[str]:
    """Return the command of a run under Ray."""
    return [sys.executable, "-m", "aae_dist", "train", *TINY, *items]


def processes_named(words: str, parents: list[int] | None = None) -> list[int]:
    """Return the ids of processes whose command holds `words`, below `parents` if given."""
    pids = [int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit()]
    if parents is not None:
        pids = [d for parent in parents for d in descendants(parent)]
    found = []
    for pid in pids:
        with contextlib.suppress(OSError):
            if words in Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace"):
                found.append(pid)
    return found


@dataclass
class RayRun:
    """A run under Ray: its process and what it printed."""

    process: subprocess.Popen[bytes]
    log: Path
    started: float = field(default_factory=time.monotonic)

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def wait_for(self, pattern: str, timeout: float, after: int = 0) -> int:
        """Return where in the log the pattern ends, looking from `after` on."""
        until = time.monotonic() + timeout
        while True:
            if found := re.compile(pattern).search(self.text(), after):
                return found.end()
            assert time.monotonic() < until, f"no {pattern!r}:\n{self.text()[-3000:]}"
            assert self.process.poll() is None, f"ended before {pattern!r}:\n{self.text()[-3000:]}"
            time.sleep(0.05)

    def end(self, timeout: float) -> int:
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"no end after {timeout} s:\n{self.text()[-3000:]}") from None


@contextlib.contextmanager
def ray_run(folder: Path, *items: str, **environment: str) -> Iterator[RayRun]:
    """Start a run under Ray; nothing of it outlives the block."""
    log = folder / f"log-{time.monotonic_ns()}.txt"
    process = start(on_ray(*items), log, **{"RAY_ADDRESS": "", **environment})
    run = RayRun(process, log)
    try:
        yield run
    finally:
        kill_all(process)


class Nodes:
    """A head node without processors and worker nodes, each a `ray start` in its own session."""

    def __init__(self, folder: str) -> None:
        self.folder, self.port = folder, free_port()
        self.environment = {
            "RAY_ADDRESS": f"127.0.0.1:{self.port}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
        }
        self.started: list[subprocess.Popen[bytes]] = []

    def start_head(self) -> None:
        self._start("--head", f"--port={self.port}", "--num-cpus=0", "--include-dashboard=false")
        self.wait(0)

    def add(self, num_cpus: int = 1) -> subprocess.Popen[bytes]:
        """Start a worker node and wait for it: two that start at once end one another."""
        cpus = sum(self.ids().values()) + num_cpus
        node = self._start(f"--address=127.0.0.1:{self.port}", f"--num-cpus={num_cpus}")
        self.wait(cpus)
        return node

    def _start(self, *arguments: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *arguments]
        command += ["--num-gpus=0", "--disable-usage-stats"]
        if "--head" in arguments:
            command.append(f"--temp-dir={self.folder}")
        node = subprocess.Popen(
            command,
            env={**os.environ, **self.environment, "RAY_ADDRESS": ""},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.started.append(node)
        return node

    def kill(self, node: subprocess.Popen[bytes]) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(node.pid, signal.SIGKILL)
        node.wait()

    def ids(self) -> dict[str, float]:
        """Return the processors of each live node by its id, asked in a process of its own."""
        code = (
            "import ray, json; ray.init(log_to_driver=False, logging_level='ERROR');"
            "print(json.dumps({n['NodeID']: n['Resources'].get('CPU', 0.0)"
            " for n in ray.nodes() if n['Alive']}))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            timeout=120,
        )
        import json

        return dict(json.loads(done.stdout.splitlines()[-1])) if done.stdout else {}

    def wait(self, cpus: float, nodes: int = 1, timeout: float = 180.0) -> dict[str, float]:
        """Return the nodes when they are so many and have so many processors together."""
        until = time.monotonic() + timeout
        while time.monotonic() < until:
            found = self.ids()
            if len(found) >= nodes and sum(found.values()) >= cpus:
                return found
            time.sleep(1)
        raise AssertionError(f"no {cpus} processors after {timeout} s")


@contextlib.contextmanager
def nodes() -> Iterator[Nodes]:
    """Run a cluster for the length of the block."""
    # Sockets lie in this folder, and their paths may have 107 characters at most.
    with tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as folder:
        cluster = Nodes(folder)
        try:
            cluster.start_head()
            yield cluster
        finally:
            for node in reversed(cluster.started):
                cluster.kill(node)
