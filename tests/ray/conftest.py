"""One Ray cluster for all tests of this folder, as the rendered manifests start it.

Environment variables and options of `ray start` are read from the rendering, token authentication
is on, and nothing that trains runs on the head. One worker node has the two CPUs of its two pods.
"""

import contextlib
import json
import os
import shlex
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
from helpers.manifests import job_environment, pod_environment, ray_start_command, rendered

from aae_dist.config import RunConfig
from aae_dist.config.load import load_config

START_SECONDS = 240.0
STARTS = 4
WORKERS = "on-demand"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let tests come last that join the cluster in this process.

    A process that had left a cluster crashed in Ray's code later on, when it used Ray again.
    """
    items.sort(key=lambda item: "joined" in getattr(item, "fixturenames", ()))


@dataclass(frozen=True)
class Cluster:
    """A head and a worker node of two CPUs: their addresses, and the environment of a driver."""

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
    """Start nodes with ports, folders and process groups of their own; end exactly those groups."""
    job = next(found for found in rendered()["kind-cpu-train"] if found["kind"] == "RayJob")
    gcs, dashboard, client, *others = free_ports(5)
    address, token = f"127.0.0.1:{gcs}", os.environ["RAY_AUTH_TOKEN"]  # Ray reads it once a process
    driver = pod_environment(job, "head", token=token) | job_environment(job)
    driver |= {"RAY_ADDRESS": address, "RAY_PORT": str(gcs)}
    found = Cluster(address, f"http://127.0.0.1:{dashboard}", driver)

    def node(group: str, agent: int, metrics: int, **options: object) -> "Node":
        own = {"RAY_ADDRESS": "", "RAY_PORT": str(gcs)}
        environment = pod_environment(job, group, token=token, head="127.0.0.1", pod=group) | own
        options |= {"dashboard_agent_listen_port": agent, "metrics_export_port": metrics}
        return ray_node(ray_start_command(job, group, "127.0.0.1"), environment, **options)

    with contextlib.ExitStack() as stack:
        # Sockets lie in this folder, and their paths may have 107 characters at most.
        folder = stack.enter_context(
            tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True)
        )
        head = {"port": gcs, "dashboard_port": dashboard, "ray_client_server_port": client}
        wait_for_jobs_api(
            found, stack.enter_context(node("head", *others, **head, temp_dir=folder))
        )
        # Ray gives a node 30 s to start, too little on a busy machine; then it starts again, as a
        # pod does.
        for _ in range(STARTS):
            worker = node(WORKERS, *free_ports(2), address=address, num_cpus=2)
            if wait_for_cpus(found, 2, stack.enter_context(worker)):
                break
        else:
            pytest.fail(f"the Ray worker node ended {STARTS} times")
        yield found


Node = contextlib.AbstractContextManager["subprocess.Popen[bytes]"]


@contextlib.contextmanager
def ray_node(
    command: str, environment: dict[str, str], **instead: object
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run `ray start` as a pod's container does, with other options where one machine wants it."""
    others = {f"--{name.replace('_', '-')}": str(value) for name, value in instead.items()}
    given = [word for word in shlex.split(command)[2:] if word.partition("=")[0] not in others]
    with tempfile.TemporaryFile() as log:
        node = subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", "start", "--num-gpus=0", *given]
            + [f"{name}={value}" for name, value in others.items()],
            env={**os.environ, **environment},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield node
        except BaseException:
            log.seek(0)
            print(log.read().decode(errors="replace")[-3000:])
            raise
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(node.pid, signal.SIGKILL)
            node.wait()


def wait_for_cpus(cluster: Cluster, count: int, node: "subprocess.Popen[bytes]") -> bool:
    """Return whether the cluster has so many CPUs, or False when `node` has ended."""
    request = urllib.request.Request(
        f"{cluster.dashboard}/api/v0/nodes",
        headers={"Authorization": f"Bearer {cluster.environment['RAY_AUTH_TOKEN']}"},
    )
    give_up = time.monotonic() + START_SECONDS
    nodes = []
    while time.monotonic() < give_up and node.poll() is None:
        with urllib.request.urlopen(request, timeout=30) as answer:
            nodes = json.load(answer)["data"]["result"]["result"]
        if sum(node["resources_total"].get("CPU", 0) for node in nodes) >= count:
            return True
        time.sleep(0.3)
    if time.monotonic() < give_up:
        return False
    pytest.fail(f"the Ray cluster did not get {count} CPUs: {nodes}")


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
