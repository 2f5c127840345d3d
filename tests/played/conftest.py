"""A cluster of a head, workers and a client, each as manifests and KubeRay start its pod."""

import copy
import json
import secrets
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import yaml
from helpers import pods
from helpers.hosts import S3_PORT, SWITCH_ADDRESS, Host, Network, wait_for, why_not
from helpers.manifests import cluster_of, head_service
from helpers.pods import Container, Volume

from aae_dist.storage import open_storage

START_SECONDS = 280
KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1"}
"""What a site brings with the identity of its service accounts."""


@dataclass(frozen=True)
class Job:
    """A RayJob: its id, the process that follows it, and what that prints."""

    name: str
    submitter: subprocess.Popen[bytes]
    log: Path


class PlayedCluster:
    """The pods of one rendering, each on a host of its own; nodes share nothing but the bucket."""

    def __init__(self, folder: Path, rendering: str, token: bool = True, workers: int = 2) -> None:
        """Lay the network and start S3 on its switch.

        Args:
            folder: for the hosts' logs and disks.
            rendering: name of the rendered overlay, say 'kind-cpu-train'.
            token: whether Ray's APIs want one, as all overlays have it.
            workers: number of hosts for the first group of workers.
        """
        self.manifest = pods.fitted(pods.manifest(rendering))
        is_job = self.manifest["kind"] == "RayJob"
        self.job = self.manifest if is_job else pods.manifest("kind-cpu-train")
        self.token = secrets.token_hex(32) if token else None
        self.network = Network(folder)
        self.client = self.network.add("client", 100)
        self.head = self.network.add("head", 1, head_service(self.manifest))
        self.workers = [self.network.add(f"worker{n}", 10 + n) for n in range(workers)]
        self.configuration = folder / "configuration"
        self.configuration.mkdir()
        self.s3 = self.network.start_s3()
        own = {"AWS_ENDPOINT_URL": f"http://{SWITCH_ADDRESS}:{S3_PORT}", **KEYS}
        self.settings = {**pods.site_environment(rendering), **own}

    @property
    def dashboard(self) -> str:
        return f"http://{self.head.address}:8265"

    def start(self) -> None:
        """Start all, and wait until the head knows all."""
        self.start_head()
        self.start_workers({worker: self.worker(worker) for worker in self.workers})
        wait_for("all nodes", lambda: self.alive() == 1 + len(self.workers), START_SECONDS, 1.0)

    def start_head(self) -> None:
        """Start the head's pod."""
        pod = pods.ray_container(self.manifest, "head", "head", self.token, self.settings)
        mounts = {"/etc/aae-dist": Volume(source=self.configuration)}
        self.head.start(replace(pod, volumes={**pod.volumes, **mounts}))

    def worker(self, host: Host) -> Container:
        """Return the Ray container of a worker's pod, of the first group."""
        group = cluster_of(self.manifest)["workerGroupSpecs"][0]["groupName"]
        return pods.ray_container(self.manifest, group, host.name, self.token, self.settings)

    def start_worker(self, host: Host) -> None:
        """Start a worker's pod once the head answers."""
        self.start_workers({host: self.worker(host)})

    def start_workers(self, ray: Mapping[Host, Container]) -> None:
        """Start pods with these Ray containers, each once the head answers."""
        waiting = [host.popen(pods.init_container(ray[host]), host.log) for host in ray]

        def answers() -> bool:
            self.revive()
            return all(process.poll() is not None for process in waiting)

        wait_for("GCS", answers, START_SECONDS)
        for host, container in ray.items():
            host.start(container)

    def revive(self) -> None:
        """Start pods again that ended: Ray gives a busy machine 30 s only."""
        for host in (self.head, *self.workers):
            if host.container and host.ended():
                host.start(host.container)

    def alive(self) -> int:
        """Return how many nodes the head takes for alive, after starting those again that ended."""
        self.revive()
        status, text = self.get("/nodes?view=summary")
        if status != 200:
            return 0
        nodes = json.loads(text)["data"]["summary"]
        return sum(node["raylet"].get("state") == "ALIVE" for node in nodes)

    def get(self, path: str, token: bool = True, host: Host | None = None) -> tuple[int, str]:
        """Return (status, text) of a request that the client sends."""
        url = f"{self.dashboard}{path}" if host is None else f"http://{host.address}{path}"
        code = (
            "import os, sys, urllib.request as u, urllib.error as e\n"
            "t = os.environ.get('RAY_AUTH_TOKEN')\n"
            "h = {'Authorization': f'Bearer {t}'} if t else {}\n"
            f"try: r = u.urlopen(u.Request({url!r}, headers=h), timeout=10)\n"
            "except e.HTTPError as r: print(r.code)\n"
            "except OSError as r: print(0, r)\n"
            "else: print(r.status, r.read().decode())\n"
        )
        done = self.client.run(self.on_client("python", "-Sc", code, token=token))
        status, _, text = done.stdout.partition(" ")
        return int(status), text

    def on_client(self, *command: str, token: bool = True) -> Container:
        """Return a container that has what a user's machine has: access to the API and to S3."""
        pod = pods.submitter(self.job, "unused", self.token if token else None)
        return replace(pod, command=command, environment={**pod.environment, **self.settings})

    def submit(self, *arguments: str, log: Path, **environment: str):
        """Start `aae-dist submit` on the client; its output goes to `log`."""
        command = ["aae-dist", "submit", *arguments, "--address", self.dashboard]
        for name, value in environment.items():
            command += ["--env", f"{name}={value}"]
        return self.client.popen(self.on_client(*command), log)

    def start_job(
        self, log: Path, settings: Mapping[str, object], entrypoint: str | None = None
    ) -> Job:
        """Start the RayJob's submitter, whose output goes to `log`.

        Args:
            log: path of a file.
            settings: what the RayJob's ConfigMap holds.
            entrypoint: in place of the RayJob's own.
        """
        (self.configuration / "config.yaml").write_text(yaml.safe_dump(settings))
        job, name = copy.deepcopy(self.job), f"aae-dist-{secrets.token_hex(3)}"
        job["spec"]["entrypoint"] = entrypoint or job["spec"]["entrypoint"]
        submitter = self.client.popen(pods.submitter(job, name, self.token), log)
        return Job(name, submitter, log)

    def run_job(
        self,
        log: Path,
        settings: Mapping[str, object],
        entrypoint: str | None = None,
        seconds: float = 280,
    ) -> str:
        """Run the RayJob to its end; return its output once Ray says that it succeeded."""
        started, job = time.monotonic(), self.start_job(log, settings, entrypoint)
        job.submitter.wait(seconds)
        text = job.log.read_text()
        assert self.status_of(job) == "SUCCEEDED", text[-5000:]
        print(f"job ended well after {time.monotonic() - started:.0f} s")
        return text

    def status_of(self, job: Job) -> str:
        """Return how Ray says a job is, say 'RUNNING'."""
        return str(json.loads(self.get(f"/api/jobs/{job.name}")[1])["status"])

    def objects(self, bucket: str) -> set[str]:
        """Return the keys in a bucket."""
        return {entry.key for entry in open_storage(f"s3://{bucket}").list()}

    def read(self, uri: str, key: str) -> bytes:
        return open_storage(uri).read(key)

    def make_bucket(self, name: str) -> None:
        def made() -> bool:
            try:
                request = urllib.request.Request(f"{self.s3}/{name}", method="PUT", data=b"")
                urllib.request.urlopen(request, timeout=10).close()
            except OSError:
                return False
            return True

        wait_for("S3", made, 60, 0.3)

    def logs(self) -> str:
        return "\n".join(
            f"== {host.name}\n{host.log.read_text()[-1500:]}"
            for host in self.network.hosts.values()
            if host.log.exists()
        )

    def close(self) -> None:
        self.network.close()


@pytest.fixture
def make_cluster(tmp_path, monkeypatch) -> Iterator[object]:
    """Return a function that makes a cluster and starts nothing; all are ended afterwards.

    The test itself sees the bucket of the newest one.
    """
    if reason := why_not():
        pytest.skip(reason)
    made: list[PlayedCluster] = []

    def make(
        rendering: str = "kind-cpu-interactive", token: bool = True, workers: int = 2
    ) -> PlayedCluster:
        folder = tmp_path / f"cluster{len(made)}"
        folder.mkdir()
        made.append(PlayedCluster(folder, rendering, token, workers))
        for name, value in {"AWS_ENDPOINT_URL": made[-1].s3, **KEYS}.items():
            monkeypatch.setenv(name, value)
        made[-1].make_bucket("runs")
        return made[-1]

    yield make
    for cluster in made:
        print(cluster.logs())
        cluster.close()
        shutil.rmtree(cluster.network.folder, ignore_errors=True)
