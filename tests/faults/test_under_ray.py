"""Workers, nodes and drivers that go away under Ray."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.equality import assert_bit_equal, summary
from helpers.fleet import finish
from helpers.ray_runs import nodes, processes_named, ray_run

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

STEPS = 3000
WORKER = "ray::RayTrainWorker"


def items(folder: Path, name: str, *more: str) -> list[str]:
    return [
        f"run.storage={folder}",
        f"run.name={name}",
        f"train.steps={STEPS}",
        "train.log_every_steps=50",
        "checkpoint.every_steps=100",
        "data.validation=null",
        *more,
    ]


def test_three_workers_killed_one_after_the_other(tmp_path: Path, row) -> None:
    line = row(
        "1d",
        "SIGKILL of a Ray Train worker, three times in one run",
        "noticed within 5 s, training again within 1.3 x of a cold start; bit-equal",
    )
    finish(tmp_path, *items(tmp_path, "whole"))
    notices, restarts = [], []
    with ray_run(tmp_path, *items(tmp_path, "run", f"train.steps={STEPS}")) as run:
        place = run.wait_for(r"step +\d+/", 400)
        cold = time.monotonic() - run.started
        for _ in range(3):
            time.sleep(random.uniform(0.5, 2.0))
            workers = processes_named(WORKER, [run.process.pid])
            assert len(workers) == 2, run.text()[-2000:]
            os.kill(random.choice(workers), signal.SIGKILL)
            struck = time.monotonic()
            place = run.wait_for("Ray starts the workers again", 60, place)
            notices.append(time.monotonic() - struck)
            place = run.wait_for(r"step +\d+/", 300, place)
            restarts.append(time.monotonic() - struck)
        assert run.end(600) == 0, run.text()[-3000:]
    assert_bit_equal(f"{tmp_path}/run", f"{tmp_path}/whole", STEPS)
    line.seen.append(f"noticed within {max(notices):.1f} s")
    line.seen.append(f"training again after {max(restarts):.0f} s; cold start {cold:.0f} s")
    line.seen.append(f"goodput {summary(f'{tmp_path}/run')['metrics']['goodput/fraction']:.2f}")
    assert max(notices) < 5
    assert max(restarts) < 1.3 * cold


def test_sigterm_to_the_whole_group_of_a_local_ray(tmp_path: Path, row) -> None:
    line = row(
        "8f",
        "SIGTERM to the whole process group of a run on its own Ray, as `timeout` sends",
        "a checkpoint, exit code 4, no process left",
    )
    more = ["train.steps=1000000"]
    with ray_run(tmp_path, *items(tmp_path, "run", *more)) as run:
        run.wait_for(r"step +\d+/", 400)
        mine = processes_named("", [run.process.pid])
        struck = time.monotonic()
        os.killpg(run.process.pid, signal.SIGTERM)
        assert run.end(60) == 4, run.text()[-3000:]
        took = time.monotonic() - struck
        assert "with a checkpoint of that step" in run.text()
        time.sleep(3)
        assert not [pid for pid in mine if Path(f"/proc/{pid}").exists()]
    line.seen.append(f"ended within {took:.0f} s")
    assert took < 30


BROKEN_PRIOR = """
import torch
from aae_dist.priors import Prior

class Broken(Prior):
    calls = 0

    def sample(self, num_samples, generator):
        Broken.calls += 1
        if Broken.calls > 60:
            raise ValueError("this prior breaks")
        return torch.randn(num_samples, self.latent_dim, generator=generator)
"""


def test_a_step_that_fails_twice_alike_ends_the_run(tmp_path: Path, row) -> None:
    row(
        "7e",
        "the same step fails again with the same error after a restart",
        "the run ends then, exit code 1, the cause in one line",
    )
    (tmp_path / "broken_prior.py").write_text(BROKEN_PRIOR)
    more = ["prior={kind: custom, path: 'broken_prior:Broken'}", "checkpoint.every_steps=1000000"]
    path = {"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    with ray_run(tmp_path, *items(tmp_path, "run", *more), **path) as run:
        assert run.end(500) == 1, run.text()[-3000:]
    text = run.text()
    assert text.count("Ray starts the workers again") <= 2
    assert "failed twice in the same way, so it is not started again" in text
    assert "ValueError: this prior breaks" in text


def test_nodes_that_go_and_come(tmp_path: Path, row) -> None:
    line = row(
        "3",
        "SIGKILL of a whole node; launch.workers=[1, 2]; later a new node",
        "continues with one worker from the newest checkpoint, then grows to two again",
    )
    more = ["launch.workers=[1, 2]", "launch.resize_seconds=5", "train.steps=1000000"]
    with nodes() as cluster:
        cluster.add()
        second = cluster.add()
        cluster.wait(2)
        with ray_run(tmp_path, *items(tmp_path, "run", *more), **cluster.environment) as run:
            place = run.wait_for(r"resuming|starting \S*run", 400)
            place = run.wait_for(r"step +\d+/", 400, place)
            assert "with 2 ranks" in run.text()
            cluster.kill(second)
            struck = time.monotonic()
            place = run.wait_for(r"resuming \S+ at step \d+ with 1 rank\b", 300, place)
            line.seen.append(f"one worker after {time.monotonic() - struck:.0f} s")
            place = run.wait_for(r"step +\d+/", 100, place)
            cluster.add()
            added = time.monotonic()
            place = run.wait_for(r"resuming \S+ at step \d+ with 2 ranks", 300, place)
            line.seen.append(f"two again after {time.monotonic() - added:.0f} s")
            run.wait_for(r"step +\d+/", 100, place)
            run.process.send_signal(signal.SIGTERM)
            assert run.end(100) == 4, run.text()[-3000:]


def test_a_node_that_drains(tmp_path: Path, row) -> None:
    line = row(
        "9",
        "a node drains (`ray drain-node`, as spot notices and Kubernetes do)",
        "a checkpoint at once, training continues until the node is gone, then elsewhere",
    )
    more = ["train.steps=1000000", "checkpoint.every_steps=1000000", "launch.workers=[1, 2]"]
    with nodes() as cluster:
        node = cluster.add()
        drained = next(name for name, cpus in cluster.ids().items() if cpus)
        cluster.add()
        with ray_run(tmp_path, *items(tmp_path, "run", *more), **cluster.environment) as run:
            place = run.wait_for(r"step +\d+/", 400)
            struck = time.monotonic()
            subprocess.run(
                [sys.executable, "-m", "ray.scripts.scripts", "drain-node"]
                + [f"--address={cluster.environment['RAY_ADDRESS']}", f"--node-id={drained}"]
                + ["--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=taken back"]
                + ["--deadline-remaining-seconds=20"],
                env={**os.environ, **cluster.environment},
                check=True,
                timeout=120,
            )
            place = run.wait_for("a node is being drained: saving a checkpoint now", 60, place)
            line.seen.append(f"saved after {time.monotonic() - struck:.0f} s")
            time.sleep(5)
            cluster.kill(node)  # as the cloud does
            run.wait_for(r"resuming \S+ at step \d+ with 1 rank\b", 300, place)
            line.seen.append(f"on the other node after {time.monotonic() - struck:.0f} s")
            run.process.send_signal(signal.SIGTERM)
            assert run.end(100) == 4, run.text()[-3000:]
