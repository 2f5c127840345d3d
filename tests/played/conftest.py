"""A cluster of three hosts and a client, started as KubeRay starts its pods."""

import json
import secrets
import shutil
import sys
from pathlib import Path

import pytest
from helpers.hosts import SWITCH_ADDRESS, Host, Network, can_play, wait_for

# A lost node is noticed in about 15 s here; Ray's defaults take up to 65 s.
QUICK = {
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "5000",
    "RAY_health_check_failure_threshold": "3",
}
START_SECONDS = 280


class PlayedCluster:
    """Head without CPUs, workers of one CPU each, S3 on the switch, a client apart."""

    def __init__(self, folder: Path, token: str | None, workers: int) -> None:
        self.network = Network(folder)
        self.client = self.network.add("client", 100)
        self.head = self.network.add("head", 1)
        self.workers = [self.network.add(f"worker{n}", 10 + n) for n in range(workers)]
        self.dashboard = f"http://{self.head.address}:8265"
        auth = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token} if token else {}
        self.auth = auth or {"RAY_AUTH_MODE": "disabled"}
        self.s3 = {
            "AWS_ENDPOINT_URL": f"http://{SWITCH_ADDRESS}:9000",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
        }
        self.network.start_on_switch(
            sys.executable, "-m", "moto.server", "-H", "0.0.0.0", "-p", "9000"
        )

    def environment(self, **more: str) -> dict[str, str]:
        return {**QUICK, **self.auth, **self.s3, "RAY_USAGE_STATS_ENABLED": "0", **more}

    def start_head(self) -> None:
        """Run what KubeRay runs in a head pod with `resources: {CPU: 0, driver: 32}`.

        In a loop, as a pod that failed is started again: Ray gives a busy machine 30 s only.
        """
        self.head.start(
            "ulimit -n 65536; while true; do ray start --head "
            "--num-cpus=0 --resources='{\"driver\": 32}' "
            "--dashboard-host=0.0.0.0 --metrics-export-port=8080 --block "
            f"--dashboard-agent-listen-port=52365 --node-ip-address={self.head.address} "
            "--memory=2000000000 --object-store-memory=200000000; sleep 1; done",
            self.environment(),
        )

    def start_worker(self, worker: Host, before: str = "", **env: str) -> None:
        """Run what KubeRay runs in a worker pod with one CPU."""
        self.network_ready(worker)
        worker.start(
            f"ulimit -n 65536; {before} while true; do "
            f"ray start --address={self.head.address}:6379 --num-cpus=1 "
            "--metrics-export-port=8080 --block --dashboard-agent-listen-port=52365 "
            f"--node-ip-address={worker.address} "
            "--memory=3000000000 --object-store-memory=200000000; sleep 1; done",
            self.environment(RAY_ADDRESS=f"{self.head.address}:6379", **env),
        )

    def network_ready(self, worker: Host) -> None:
        """As KubeRay's init container: wait until the head's GCS listens."""
        code = f"import socket; socket.create_connection(('{self.head.address}', 6379), 2)"
        wait_for(
            "GCS",
            lambda: worker.run("python", "-c", code, env={}).returncode == 0,
            START_SECONDS,
            3.0,
        )

    def start(self) -> None:
        """Start all, and wait until the head knows all."""
        self.start_head()
        for worker in self.workers:
            self.start_worker(worker)
        wait_for("all nodes", lambda: self.alive() == 1 + len(self.workers), START_SECONDS, 3.0)

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
        done = self.client.run("python", "-c", code, env=self.auth if token else {})
        status, _, text = done.stdout.partition(" ")
        return int(status), text

    def alive(self) -> int:
        """Return how many nodes the head takes for alive."""
        status, text = self.get("/nodes?view=summary")
        if status != 200:
            return 0
        nodes = json.loads(text)["data"]["summary"]
        return sum(node["raylet"].get("state") == "ALIVE" for node in nodes)

    def submit(self, *arguments: str, log: Path, **env: str):
        """Start `aae-dist submit` on the client; its output goes to `log`."""
        command = ["aae-dist", "submit", *arguments, "--address", self.dashboard]
        for name, value in {**self.s3, "GLOO_SOCKET_IFNAME": "eth0", **env}.items():
            command += ["--env", f"{name}={value}"]
        return self.client.popen(*command, env={**self.auth, **self.s3}, log=log)

    def objects(self, bucket: str) -> set[str]:
        """Return the keys in a bucket."""
        code = (
            "from aae_dist.storage import open_storage\n"
            f"print(*[e.key for e in open_storage('s3://{bucket}').list()], sep='\\n')"
        )
        return set(self.client.run("python", "-c", code, env=self.s3).stdout.split())

    def read(self, uri: str, key: str) -> bytes:
        code = (
            "import sys; from aae_dist.storage import open_storage\n"
            f"sys.stdout.write(open_storage({uri!r}).read({key!r}).hex())"
        )
        return bytes.fromhex(self.client.run("python", "-c", code, env=self.s3).stdout)

    def make_bucket(self, name: str) -> None:
        code = (
            "import urllib.request as u\n"
            f"u.urlopen(u.Request('http://{SWITCH_ADDRESS}:9000/{name}', method='PUT', data=b''))"
        )
        wait_for(
            "S3", lambda: self.client.run("python", "-c", code, env={}).returncode == 0, 60, 1.0
        )

    def logs(self) -> str:
        return "\n".join(
            f"== {host.name}\n{host.log.read_text()[-1500:]}"
            for host in self.network.hosts.values()
            if host.log.exists()
        )

    def close(self) -> None:
        self.network.close()


@pytest.fixture
def make_cluster(tmp_path):
    """Return a function that makes a cluster and starts nothing; all are ended afterwards."""
    if not can_play():
        pytest.skip("needs root and network namespaces")
    made: list[PlayedCluster] = []

    def make(token: bool = True, workers: int = 2) -> PlayedCluster:
        folder = tmp_path / f"cluster{len(made)}"
        folder.mkdir()
        made.append(PlayedCluster(folder, secrets.token_hex(16) if token else None, workers))
        made[-1].make_bucket("runs")
        return made[-1]

    yield make
    for cluster in made:
        print(cluster.logs())
        cluster.close()
        shutil.rmtree(cluster.network.folder, ignore_errors=True)
