"""The doctor on a healthy cluster of three hosts, and on one with everything wrong."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.hosts import SWITCH_ADDRESS, wait_for
from helpers.pods import Volume
from helpers.runs import TINY

import aae_dist

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(900),
]

ITEMS = [*TINY, "run.storage=s3://runs", "run.name=x", "train.steps=10", "launch.workers=2"]
FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")
REFUSE = """
import http.server
class Refuse(http.server.BaseHTTPRequestHandler):
    def answer(self):
        self.send_response(403); self.send_header("Content-Length", "0"); self.end_headers()
    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = answer
http.server.ThreadingHTTPServer(("0.0.0.0", 9001), Refuse).serve_forever()
"""


def examine(cluster, log, **env):
    job = cluster.submit(*ITEMS, "--doctor", log=log, **env)
    code = job.wait(280)
    return code, log.read_text()


def test_a_healthy_cluster_is_green(make_cluster, tmp_path):
    cluster = make_cluster()
    cluster.start()
    code, text = examine(cluster, tmp_path / "log.txt")
    print(text)
    assert code == 0
    assert "RED" not in text
    for subject in (
        *("versions", "gpus", "/dev/shm", "disk", "clocks", "network", "dashboard"),
        *("submission", "train page", "resources", "storage", "wandb"),
    ):
        assert f"ok   {subject}" in text, subject
    assert "all-reduce over 2 machines (gloo)" in text
    assert "refuses requests without a token" in text
    assert not [key for key in cluster.objects("runs") if ".doctor" in key]


def other_build(folder: Path) -> Path:
    """Return a folder that shadows aae_dist by another build, and says torch is another one."""
    package = Path(aae_dist.__file__).parent
    (folder / "aae_dist").mkdir(parents=True)
    for path in package.iterdir():
        if path.name not in ("version.py", "__pycache__"):
            (folder / "aae_dist" / path.name).symlink_to(path)
    (folder / "aae_dist/version.py").write_text('__version__ = "0.0.9"\n')
    metadata = folder / "torch-2.0.0.dist-info/METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: torch\nVersion: 2.0.0\n")
    return folder


@pytest.mark.skipif(not FAKETIME.exists(), reason="libfaketime is not installed")
def test_a_sick_cluster_is_red_with_the_right_lines(make_cluster, tmp_path):
    """One worker with another build, a wrong clock and a full disk; no token; no permission."""
    cluster = make_cluster(token=False)
    cluster.network.start_on_switch(sys.executable, "-c", REFUSE)
    cluster.start_head()
    cluster.start_worker(cluster.workers[0])
    code, text = examine_with_a_sick_worker(cluster, tmp_path / "other", tmp_path)
    print(text)
    assert code == 2
    red = {line.split()[1]: line for line in text.splitlines() if line.startswith("RED")}
    # Ranks of different builds may or may not find each other.
    assert set(red) - {"network"} == {"versions", "disk", "clocks", "dashboard", "storage"}
    assert "torch 2.0.0 on worker1" in red["versions"]
    assert "aae_dist 0.0.9 on worker1" in red["versions"]
    assert "code " in red["versions"]
    assert "/tmp/full on worker1" in red["disk"]
    assert "worker1 is 90." in red["clocks"] or "worker1 is 89." in red["clocks"]
    assert "lets everyone run code" in red["dashboard"]
    assert "permission" in red["storage"]
    assert all(" -> " in line for line in red.values())


def examine_with_a_sick_worker(cluster, elsewhere, tmp_path):
    """Start the second worker with what is wrong, and let the doctor look."""
    _, sick = cluster.workers
    pod = cluster.worker(sick)
    _, _, _, script = pod.command
    fill = "dd if=/dev/zero of=/tmp/full/x bs=1M count=62 2>/dev/null; "
    wrong = {
        "TMPDIR": "/tmp/full",
        "PYTHONPATH": "/other",
        "LD_PRELOAD": str(FAKETIME),
        "FAKETIME": "+90s",
    }
    volumes = {
        "/tmp/full": Volume(size=64 * 2**20),
        "/other": Volume(source=other_build(elsewhere)),
    }
    pod = replace(
        pod,
        command=(*pod.command[:3], fill + script),
        environment={**pod.environment, **wrong},
        volumes={**pod.volumes, **volumes},
    )
    cluster.start_workers({sick: pod})
    wait_for("all nodes", lambda: cluster.alive() == 3, 280, 3.0)
    refusing = f"http://{SWITCH_ADDRESS}:9001"
    return examine(cluster, tmp_path / "log.txt", AWS_ENDPOINT_URL=refusing)
