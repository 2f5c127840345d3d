"""One Ray cluster for all tests of this folder, with token authentication on."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from aae_dist.config import RunConfig
from aae_dist.config.loading.load import load_config

START_SECONDS = 240.0


@dataclass(frozen=True)
class Cluster:
    """A head node of two CPUs: its addresses, and what a client's environment must hold."""

    address: str
    dashboard: str
    environment: dict[str, str]


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def wait_for_jobs_api(cluster: Cluster, head: subprocess.Popen[bytes]) -> None:
    request = urllib.request.Request(
        f"{cluster.dashboard}/api/jobs/",
        headers={"Authorization": f"Bearer {cluster.environment['RAY_AUTH_TOKEN']}"},
    )
    give_up = time.monotonic() + START_SECONDS
    while time.monotonic() < give_up and head.poll() is None:
        with contextlib.suppress(urllib.error.URLError, OSError):
            urllib.request.urlopen(request, timeout=5).close()
            return
        time.sleep(0.5)
    pytest.fail(f"the Ray head node did not start (exit code {head.poll()})")


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Start a head node of its own ports, folder and process group; end exactly that group."""
    gcs, dashboard, client, agent = free_ports(4)
    address = f"127.0.0.1:{gcs}"
    environment = {
        "RAY_ADDRESS": address,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": os.environ["RAY_AUTH_TOKEN"],  # Ray reads it once a process
    }
    # Sockets lie in this folder, and their paths may have 107 characters at most.
    with tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as folder:
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
        command += [f"--port={gcs}", "--num-cpus=2", "--num-gpus=0", "--disable-usage-stats"]
        command += [f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"]
        command += [f"--dashboard-agent-listen-port={agent}", f"--temp-dir={folder}"]
        head = subprocess.Popen(
            command,
            env={**os.environ, **environment, "RAY_ADDRESS": ""},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        found = Cluster(address, f"http://127.0.0.1:{dashboard}", environment)
        try:
            wait_for_jobs_api(found, head)
            yield found
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(head.pid, signal.SIGKILL)
            head.wait()


@pytest.fixture
def joined(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """Make this process a client of the cluster."""
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    return cluster


@pytest.fixture
def configure(tmp_path: Path) -> Callable[..., RunConfig]:
    """Return a function that gives a small run on the built-in digits, with overrides."""

    def make(*overrides: str) -> RunConfig:
        items = [
            "run.name=run",
            f"run.storage={tmp_path}",
            "data.train=builtin://digits/train",
            "model.latent_dim=2",
            "model.encoder_widths=[32]",
            "model.decoder_widths=[32]",
            "model.discriminator_widths=[32]",
            "train.global_batch_size=64",
            "train.log_every_steps=5",
            "wandb.mode=disabled",
            "launch.workers=2",
            *overrides,
        ]
        return load_config([], items).config

    return make
