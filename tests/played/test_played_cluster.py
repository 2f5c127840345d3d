"""A run on three hosts: one loses its link and dies, or the head dies; the numbers stay."""

import json
import re
import sys
import time

import pytest
import torch
from helpers.hosts import interrupt, wait_for
from helpers.runs import TINY, final_tensors, run
from safetensors.torch import load

pytestmark = [pytest.mark.cluster, pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

RUN = [
    *TINY,
    "run.storage=s3://runs",
    "run.name=played",
    "checkpoint.every_steps=20",
    "launch.workers=2",
    "launch.max_wait_minutes=4",
    # Learning rates that do not depend on the length of the plan, which the test finds as it goes.
    *(
        f"phases.{p}.schedule.kind=constant"
        for p in ("reconstruction", "discriminator", "generator")
    ),
]


METRICS = {
    "throughput_samples_per_second",
    "step_seconds_generator",
    "goodput_fraction",
    "goodput_data_wait_seconds",
    "training",
    "step",
}


def served(cluster):
    """Return our metrics of the run among what the workers' hosts serve as Prometheus text."""
    text = "".join(cluster.get(":8080/metrics", host=w)[1] for w in cluster.workers)
    return set(re.findall(r'^ray_aae_dist_(\w+){.*run="played".*} [0-9]', text, re.M))


def steps_saved(cluster, name="played"):
    keys = [
        k for k in cluster.objects("runs") if k.startswith(name) and k.endswith("MANIFEST.json")
    ]
    return sorted(int(re.search(r"step-(\d+)", key).group(1)) for key in keys)


def tensors(cluster, step):
    """Return every tensor and the state of a checkpoint in the bucket."""
    folder = f"checkpoints/step-{step:09d}"
    found = {"state": json.loads(cluster.read("s3://runs/played", f"{folder}/state.json"))}
    for key in cluster.objects("runs"):
        name = key.rpartition("/")[2]
        if key.startswith(f"played/{folder}/") and name.endswith(".safetensors"):
            content = cluster.read("s3://runs", key)
            found |= {f"{name}/{k}": v for k, v in load(content).items()}
    return found


def assert_same(got, expected):
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        same = (
            torch.equal(got[name], value) if isinstance(value, torch.Tensor) else got[name] == value
        )
        assert same, name


def whole_run(tmp_path, step):
    """Train the same steps without any mishap, under torchrun on this machine."""
    items = [*RUN, f"run.storage={tmp_path}", f"train.steps={step}", "launch.kind=local"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    assert run([*command, "-m", "aae_dist", "train", *items], tmp_path / "w.txt", timeout=200) == 0
    return final_tensors(f"{tmp_path}/played", step)


def begin(cluster, log, *items):
    """Start the cluster and a run on it; return the client's process after a checkpoint."""
    started = time.monotonic()
    cluster.start()
    print(f"cluster up after {time.monotonic() - started:.0f} s")
    job = cluster.submit(*RUN, *items, log=log)
    wait_for("checkpoint", lambda: steps_saved(cluster) or job.poll() is not None, 280, 2.0)
    assert job.poll() is None, log.read_text()[-3000:]
    print(f"first checkpoint after {time.monotonic() - started:.0f} s")
    return job


def test_a_host_lost_in_mid_training_costs_nothing_and_ctrl_c_saves(make_cluster, tmp_path, row):
    """Two workers on two hosts; one host loses its cable, then its processes, and comes back."""
    line = row(
        "10",
        "a host loses its link for 5 s, then for good with its processes, then comes back (veth)",
        "a loss of 5 s is tolerated; after the second one the job continues when the host is back; "
        "bit-equal",
    )
    cluster, log = make_cluster(), tmp_path / "log.txt"
    job = begin(cluster, log, "train.steps=100000", "--stop-on-interrupt")
    assert cluster.get("/api/jobs/", token=False)[0] == 401
    assert cluster.get("/api/jobs/")[0] == 200
    wait_for("our metrics", lambda: served(cluster) >= METRICS, 60, 3.0)
    victim = cluster.workers[1]
    victim.cut()
    time.sleep(5)
    victim.mend()
    before = steps_saved(cluster)[-1]
    wait_for("a checkpoint after 5 s without a link", lambda: steps_saved(cluster)[-1] > before, 60)
    assert "restart" not in log.read_text()
    line.seen.append("5 s without a link: no restart")
    lost = time.monotonic()
    victim.cut()
    victim.kill()
    wait_for("notice of the loss", lambda: "restart 1 of" in log.read_text(), 120)
    line.seen.append(f"loss noticed after {time.monotonic() - lost:.0f} s")
    victim.mend()
    cluster.start_worker(victim)
    wait_for("resumption", lambda: "resuming s3://runs/played at step" in log.read_text(), 240)
    line.seen.append(f"resumed after {time.monotonic() - lost:.0f} s")
    saved = steps_saved(cluster)[-1]
    wait_for("a later checkpoint", lambda: steps_saved(cluster)[-1] > saved, 120)

    interrupt(job)
    assert job.wait(120) == 4, log.read_text()[-3000:]
    end = steps_saved(cluster)[-1]
    assert f"stopped at step {end} as asked" in log.read_text()
    got, whole = tensors(cluster, end), whole_run(tmp_path, end)
    for found in (got, whole):
        # Only a run that ends is evaluated at its last step.
        found["state"] = {k: v for k, v in found["state"].items() if not k.startswith("best")}
    assert_same(got, whole)


def test_when_the_head_dies_submitting_again_resumes(make_cluster, tmp_path, row):
    """Head and workers are killed in mid-training; a new cluster gets the same command."""
    row(
        "4",
        "the head and all hosts of a cluster are killed",
        "submitting again to a new cluster resumes; bit-equal",
    )
    cluster, log = make_cluster(), tmp_path / "log.txt"
    job = begin(cluster, log, "train.steps=100000")
    for host in (cluster.head, *cluster.workers, cluster.client):
        host.kill()
    assert job.poll() is not None
    end = steps_saved(cluster)[-1] + 200
    cluster.start()
    again = cluster.submit(*RUN, f"train.steps={end}", log=log)
    assert again.wait(280) == 0, log.read_text()[-3000:]
    assert log.read_text().count("resuming s3://runs/played at step") == 1
    assert steps_saved(cluster)[-1] == end
    assert_same(tensors(cluster, end), whole_run(tmp_path, end))
