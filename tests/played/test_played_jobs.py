"""What users run, as RayJobs on pods that share nothing but the bucket."""

import json
import time

import pytest
from helpers.hosts import wait_for
from helpers.shards import write_shards
from helpers.tiny import SMALL

from aae_dist.data import open_manifest
from aae_dist.storage import open_storage

pytestmark = [pytest.mark.cluster, pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]


def train(name, steps):
    """Return the settings of a run of two workers."""
    own = {"run": {"storage": "s3://runs", "name": name}, "launch": {"workers": 2}}
    return {**SMALL, **own, "train": {**SMALL["train"], "steps": steps}}


def test_train_encode_and_index_end_well(make_cluster, tmp_path):
    """Two workers on two nodes train and encode; tasks on both count the samples of shards."""
    cluster = make_cluster("kind-cpu-train")
    cluster.start()
    text = cluster.run_job(tmp_path / "train", train("x", 40))
    summary = json.loads(open_storage("s3://runs/x").read("summary.json"))
    assert summary["step"] == 40
    assert "restart" not in text
    encode = "exec aae-dist encode s3://runs/x builtin://digits/validation --out s3://runs/codes"
    cluster.run_job(tmp_path / "encode", {}, f"{encode} launch.workers=2")
    assert any(key.startswith("codes/") for key in cluster.objects("runs"))
    write_shards(tmp_path / "shards", [3, 0, 5] * 7)
    cluster.make_bucket("shards")
    for path in (tmp_path / "shards").iterdir():
        open_storage("s3://shards").write(path.name, path.read_bytes())
    cluster.run_job(tmp_path / "index", {}, "exec aae-dist data index s3://shards --ray")
    assert open_manifest("s3://shards").counts.tolist() == [3, 0, 5] * 7


def test_a_job_that_is_stopped_ends_soon_after_its_save(make_cluster, tmp_path):
    """`ray job stop` gives a run 60 s; it takes a few. The pods are GKE's, of one CPU."""
    cluster = make_cluster("gke-train")
    cluster.start()
    job = cluster.start_job(tmp_path / "log", train("x", 1_000_000))
    wait_for("a checkpoint", lambda: manifests(cluster), 240)
    stop = ("ray", "job", "stop", "--address", cluster.dashboard, job.name)
    asked = time.monotonic()
    stopping = cluster.client.popen(cluster.on_client(*stop), tmp_path / "stop")
    wait_for("notice", lambda: "stopped at step" in job.log.read_text(), 60, 0.2)
    saved = time.monotonic()
    wait_for("the job's end", lambda: cluster.status_of(job) == "STOPPED", 80, 0.2)
    ended = time.monotonic()
    print(f"saved {saved - asked:.1f} s after the request, ended {ended - saved:.1f} s after that")
    assert ended - saved < 10
    assert stopping.wait(60) == 0, (tmp_path / "stop").read_text()
    assert f"stopped at step {max(manifests(cluster))} as asked" in job.log.read_text()


def manifests(cluster):
    """Return the steps of the run's checkpoints."""
    keys = [k for k in cluster.objects("runs") if k.endswith("MANIFEST.json")]
    return [int(key.split("step-")[1].split("/")[0]) for key in keys]
