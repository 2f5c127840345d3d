"""A run on three hosts: one loses its link and dies, then the head dies; the numbers stay."""

import json
import re
import sys
import time

import pytest
import torch
from helpers.hosts import wait_for
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


def test_a_host_lost_in_mid_training_and_then_the_head(make_cluster, tmp_path):
    cluster, log = make_cluster(), tmp_path / "log.txt"
    started = time.monotonic()
    cluster.start()
    print(f"cluster up after {time.monotonic() - started:.0f} s")
    assert cluster.get("/api/jobs/", token=False)[0] == 401
    assert cluster.get("/api/jobs/")[0] == 200

    # Two workers on two hosts; the second host loses its cable, then its processes.
    job = cluster.submit(*RUN, "train.steps=100000", "--stop-on-interrupt", log=log)
    wait_for("checkpoint", lambda: steps_saved(cluster) or job.poll() is not None, 280, 2.0)
    assert job.poll() is None, log.read_text()[-3000:]
    wait_for("our metrics", lambda: served(cluster) >= METRICS, 60, 3.0)
    victim = cluster.workers[1]
    victim.cut()
    victim.kill()
    lost = time.monotonic()
    wait_for("notice of the loss", lambda: "restart 1 of" in log.read_text(), 120)
    noticed = time.monotonic()
    victim.mend()
    cluster.start_worker(victim)
    wait_for("resumption", lambda: log.read_text().count("resuming s3://runs/played") == 1, 240)
    print(
        f"loss noticed after {noticed - lost:.0f} s, resumed after {time.monotonic() - lost:.0f} s"
    )
    saved = steps_saved(cluster)[-1]
    wait_for("a later checkpoint", lambda: steps_saved(cluster)[-1] > saved, 120)

    # The head dies, and with it the job: a new cluster, the same command.
    for host in (cluster.head, *cluster.workers):
        host.kill()
    job.kill()
    job.wait()
    saved = steps_saved(cluster)[-1]
    end = saved + 200
    cluster.start()
    again = cluster.submit(*RUN, f"train.steps={end}", log=log)
    assert again.wait(280) == 0, log.read_text()[-3000:]
    assert log.read_text().count("resuming s3://runs/played at step") == 2
    assert steps_saved(cluster)[-1] == end
    print(f"all in {time.monotonic() - started:.0f} s, {end} steps")

    # The same plan without any mishap, under torchrun on this machine. The schedule is constant.
    whole = [*TINY, f"run.storage={tmp_path}", "run.name=whole", f"train.steps={end}"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "aae_dist", "train", *whole, "launch.kind=local"]
    assert run(command, tmp_path / "whole.txt", timeout=200) == 0
    assert_same(tensors(cluster, end), final_tensors(f"{tmp_path}/whole", end))
