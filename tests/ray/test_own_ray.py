"""A Ray that is started for a run on this machine answers this machine only."""

import os
import secrets
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

SCRIPT = """
import time
from pathlib import Path
from aae_dist.launch.ray import cluster
with cluster.connected():
    import ray
    node = ray.nodes()[0]
    print("address", node["NodeManagerAddress"], node["MetricsExportPort"] > 0)
    time.sleep(2)
    sockets = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":  # listening
                sockets[f"socket:[{fields[9]}]"] = fields[1]
    token = f"RAY_AUTH_TOKEN={TOKEN}".encode()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if token in (process / "environ").read_bytes():
                for descriptor in (process / "fd").iterdir():
                    if local := sockets.get(str(descriptor.readlink())):
                        print("listens", local.split(":")[0])
        except OSError:
            pass
"""
LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}


def test_no_port_of_a_ray_of_ones_own_is_open_to_other_machines(tmp_path: Path) -> None:
    token = secrets.token_hex(32)
    environment = {n: v for n, v in os.environ.items() if n != "RAY_ADDRESS"}
    environment |= {"RAY_AUTH_TOKEN": token, "RAY_AUTH_MODE": "token"}
    done = subprocess.run(
        [sys.executable, "-c", f"TOKEN = {token!r}\n{SCRIPT}"],
        env=environment,
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["address", "127.0.0.1", "True"] in lines
    listening = {line[1] for line in lines if line[0] == "listens"}
    assert listening
    assert listening <= LOOPBACK
