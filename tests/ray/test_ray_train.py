"""Runs on a real cluster: Ray Train, two workers, gloo."""

import contextlib
import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path

import pytest
from helpers.ray_runs import on_ray

from aae_dist.errors import ConfigError, Interrupted, LaunchError
from aae_dist.launch import launch

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

FAULTY = '''
import os
from pathlib import Path
from aae_dist.priors import GaussianPrior

class FaultyPrior(GaussianPrior):
    """Kills rank 1 at its 25th draw, once; the next ranks tell when they have come as far."""

    def __init__(self, latent_dim, folder):
        super().__init__(latent_dim, std=1.0)
        self.folder, self.draws = Path(folder), 0
        self.is_restarted = (self.folder / "killed").exists()

    def sample(self, num_samples, generator):
        self.draws += 1
        if self.draws >= 25:
            self.misbehave(os.environ["RANK"])
        return super().sample(num_samples, generator)

    def misbehave(self, rank):
        if self.is_restarted:
            (self.folder / "survived").touch()
        elif rank == "1":
            (self.folder / "killed").touch()
            os._exit(9)
'''


def steps_of(run: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def signal_when(path: Path) -> threading.Thread:
    """Send SIGTERM to this process, the driver, as soon as `path` exists."""

    def wait() -> None:
        while not path.exists():
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def test_a_killed_rank_and_a_stop_cost_nothing(joined, configure, tmp_path, monkeypatch, capfd):
    (tmp_path / "faulty.py").write_text(FAULTY)
    monkeypatch.chdir(tmp_path)  # a prior of one's own lies where the command is given
    faulty = (
        "prior.kind=custom",
        "prior.path=faulty:FaultyPrior",
        f"prior.arguments={{folder: {tmp_path}}}",
        "checkpoint.every_steps=10",
    )
    signal_when(tmp_path / "survived")
    with pytest.raises(Interrupted, match="stopped at step") as stopped:
        launch(configure(*faulty, "train.steps=1000000"))
    lines = capfd.readouterr().out.splitlines()
    step = int(re.search(r"at step (\d+)", str(stopped.value)).group(1))
    assert f"resuming {tmp_path}/run at step 20 with 2 ranks" in lines
    assert any(line.startswith("rank 1 failed (its process died)") for line in lines)
    assert (tmp_path / "run" / "checkpoints" / f"step-{step:09d}" / "MANIFEST.json").exists()
    assert not [line for line in lines if "pid=" in line or "(raylet)" in line]
    logged = steps_of(tmp_path / "run")
    assert logged == sorted(set(logged))


def test_on_a_terminal_the_driver_shows_a_bar_and_no_lines_of_progress(joined, tmp_path):
    main, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 160, 0, 0))
    command = on_ray("run.name=run", f"run.storage={tmp_path}", "train.steps=200")
    command += ["launch.workers=2", "train.evaluate_every_steps=100"]
    environment = {**os.environ, **joined.environment, "TERM": "xterm"}
    process = subprocess.Popen(
        command, stdin=terminal, stdout=terminal, stderr=terminal, env=environment
    )
    os.close(terminal)
    shown = b""
    with contextlib.suppress(OSError):  # EIO: the terminal's last user has gone
        while part := os.read(main, 1 << 16):
            shown += part
    os.close(main)
    assert process.wait(60) == 0, shown.decode()
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    assert re.search(r"step 200/200 ━+ .*reconstruction", text), text
    assert "evaluation at step 100: " in text
    assert "(100 %)" not in text  # lines of progress are for logs


PYTHON = """
import json, sys
import numpy as np
import aae_dist

run, sweep = (json.loads(argument) for argument in sys.argv[1:])
x = np.random.default_rng(0).integers(0, 256, (320, 1, 8, 8), dtype=np.uint8)
there, shards = ["launch.kind=ray"], {"data": {"train": "s3://bucket/shards"}}
here = aae_dist.train(run, x, validation=0.1, overrides=["run.name=here"])
trained = aae_dist.train(run, x, validation=0.1, overrides=there)
again = aae_dist.train(run, x, validation=0.1, overrides=there)
sent = aae_dist.submit([run, shards], "http://localhost:8265", overrides=there, dry_run=True)
key = "loss/reconstruction"
losses = [[r[key] for r in each.history if key in r] for each in (here, trained)]
np.testing.assert_allclose(*losses, rtol=1e-4)
assert "kind: ray" in sent
tuned = aae_dist.tune(sweep, x)
print(json.dumps([
    [trained.state, trained.step, again.state, trained.run.encode(x[:7]).shape],
    [tuned.state, [trial["state"] for trial in tuned.trials], tuned.run.encode(x[:7]).shape],
]))
"""


def test_one_configuration_trains_here_and_under_ray_and_is_submitted_and_swept(cluster, tmp_path):
    run = {
        "run": {"name": "run", "storage": str(tmp_path)},
        "model": {"latent_dim": 3, "encoder_widths": [16], "decoder_widths": [16]},
        "train": {"steps": 8, "global_batch_size": 32, "evaluate_every_steps": 4},
        "launch": {"workers": 2},
        "wandb": {"mode": "disabled"},
    }
    space = {"run": {"seed": {"grid": [0]}}}
    sweep = {
        **run,
        "run": {"storage": str(tmp_path)},
        "launch": {"kind": "ray", "workers": 1},
        "sweep": {"name": "sweep", "metric": "loss/reconstruction", "space": space},
    }
    done = subprocess.run(
        [sys.executable, "-c", PYTHON, json.dumps(run), json.dumps(sweep)],
        env={**os.environ, **cluster.environment},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    of_run, of_sweep = json.loads(done.stdout.splitlines()[-1])
    assert of_run == ["finished", 8, "already_finished", [7, 3]]
    assert of_sweep == ["finished", ["finished"], [7, 3]]
    assert "with 2 ranks" in done.stdout


def test_a_finished_run_is_answered_without_starting_ray(configure, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert launch(configure("train.steps=2", "launch.kind=local")).state == "finished"
    started = time.process_time()
    assert launch(configure("train.steps=2")).state == "already_finished"
    assert time.process_time() - started < 5.0


def test_a_users_mistake_found_by_the_workers_is_not_retried(joined, configure, capfd):
    with pytest.raises(ConfigError, match=r"prior\.path: nowhere:Prior failed"):
        launch(configure("prior.kind=custom", "prior.path=nowhere:Prior", "train.steps=1"))
    assert "starts the workers again" not in capfd.readouterr().out


def test_more_workers_than_the_cluster_can_ever_have_are_refused(joined, configure):
    started = time.monotonic()
    with pytest.raises(LaunchError, match=r"3 workers x \(1 CPU\) can never start.*2 CPU on 2 n"):
        launch(configure("launch.workers=3", "train.steps=1"))
    assert time.monotonic() - started < 60.0


def test_a_busy_cluster_is_waited_for_and_given_up(joined, configure, capfd):
    import ray
    from ray.util import placement_group

    ray.init(log_to_driver=False, logging_level="ERROR")
    try:
        ray.get(placement_group([{"CPU": 1}]).ready(), timeout=120)
        with pytest.raises(LaunchError, match=r"waited 0\.05 min for 2 workers x \(1 CPU\)"):
            launch(configure("launch.max_wait_minutes=0.05", "train.steps=1"))
    finally:
        ray.shutdown()
    said = capfd.readouterr().out
    assert "waiting for room on the cluster (min 0 of 0.05): wanted 2 workers" in said
