"""Sweeps on a real cluster of two CPUs."""

import contextlib
import os
import signal
import time
from pathlib import Path

import pytest
from helpers.ray_runs import processes_named
from helpers.sweeps import (
    SEEDS,
    attempts,
    finish,
    restarts,
    results,
    start,
    wait_until_some_finished,
)

from aae_dist.config import load_config
from aae_dist.sweeps import read_sweep

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

LR = "phases.reconstruction.optimizer.lr"
DRAWN = "sweep.space.run.seed={randint: [0, 999]}"
FAULTY = '''
import os
from pathlib import Path
from aae_dist.priors import GaussianPrior

class FaultyPrior(GaussianPrior):
    """Ends its process at the 45th draw, once, if the trial's seed asks for it."""

    def __init__(self, latent_dim, folder, faulty):
        super().__init__(latent_dim, std=1.0)
        self.file, self.faulty, self.draws = Path(folder) / "died", faulty, 0

    def sample(self, num_samples, generator):
        self.draws += 1
        if self.faulty and self.draws == 45 and not self.file.exists():
            self.file.touch()
            os._exit(9)
        return super().sample(num_samples, generator)
'''


def kill_one(cluster, title, seconds=300):
    """Send SIGKILL to a process of this cluster with this title, soon after it appears."""
    token, until = cluster.environment["RAY_AUTH_TOKEN"].encode(), time.monotonic() + seconds
    while time.monotonic() < until:
        for pid in processes_named(title):
            with contextlib.suppress(ProcessLookupError, FileNotFoundError):
                if token in Path(f"/proc/{pid}/environ").read_bytes():
                    time.sleep(1)
                    os.kill(pid, signal.SIGKILL)
                    return
        time.sleep(0.1)
    raise AssertionError(f"no process {title}")


# Every sweep is a command of its own: a process that has joined and left Ray a few times may die
# in Ray's code when it joins again (a segmentation fault, seen twice).
def test_a_grid_runs_once_and_its_winner_is_ready_to_train(cluster, tmp_path):
    space, log = "sweep.space.model.latent_dim={grid: [2, 4]}", tmp_path / "log.txt"
    finish(start(tmp_path, log, cluster.environment, space), log)
    found = read_sweep(f"{tmp_path}/sweep")
    assert found.state == "finished"
    assert found.counts()["finished"] == 2
    assert restarts(f"{tmp_path}/sweep") == 0
    assert [attempts(t) for t in found.trials] == [1, 1]
    assert [t.parameters for t in found.trials] == [{"model.latent_dim": n} for n in (2, 4)]
    assert all([m["step"] for m in t.history] == [10, 20, 30, 40, 50, 60] for t in found.trials)
    assert all(t.seconds > 0 for t in found.trials)
    best = min(found.trials, key=lambda trial: trial.metrics["loss/reconstruction"])
    winner = load_config([tmp_path / "sweep" / "best.yaml"]).config
    assert winner.model.latent_dim == best.parameters["model.latent_dim"]
    assert (winner.run.storage, winner.run.name) == (str(tmp_path), "sweep-best")

    lines = log.read_text().splitlines()
    assert [line for line in lines if "trial #1 of 2 (latent_dim=2) finished" in line]
    assert not [line for line in lines if "pid=" in line or "(raylet)" in line]
    finish(start(tmp_path, log, cluster.environment, space), log)
    assert f"This sweep had already finished: {tmp_path}/sweep" in log.read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "kind", "space", "more"),
    [
        ("26a", "grid", (SEEDS,), (SEEDS.replace("3]", "3, 4]"),)),
        ("26d", "random", (DRAWN, "sweep.num_trials=4"), (DRAWN, "sweep.num_trials=5")),
    ],
)
def test_a_killed_driver_costs_no_finished_trial_and_no_number(
    number, kind, space, more, cluster, tmp_path, row
):
    line = row(
        number,
        f"SIGKILL of a {kind} sweep's driver, then of a trial's process",
        "the same command ends with the numbers of an unbroken sweep; no finished trial runs again",
    )
    whole, broken, log = tmp_path / "whole", tmp_path / "broken", tmp_path / "log.txt"
    process = start(broken, log, cluster.environment, *space, "sweep.max_concurrent=1")
    wait_until_some_finished(f"{broken}/sweep", log)
    process.kill()
    process.wait()
    done = [t for t in read_sweep(f"{broken}/sweep").trials if t.state == "finished"]
    process = start(broken, log, cluster.environment, *space)
    kill_one(cluster, "ray::ResourceTrainable.train")
    finish(process, log)
    finish(start(whole, log, cluster.environment, *space), log)
    got, expected = read_sweep(f"{broken}/sweep"), read_sweep(f"{whole}/sweep")
    assert got.counts()["finished"] == 4
    assert results(got) == results(expected)
    again = {t.id: t for t in got.trials}
    assert [attempts(again[t.id]) for t in done] == [1] * len(done)
    line.seen.append(f"{len(done)} of 4 trials had finished")
    finish(start(whole, log, cluster.environment, *more), log)
    longer = read_sweep(f"{whole}/sweep")
    assert [attempts(t) for t in longer.trials] == [1] * 5


@pytest.mark.slow
def test_a_stop_saves_and_the_same_command_goes_on(cluster, tmp_path):
    log = tmp_path / "log.txt"
    items = (SEEDS, "sweep.max_concurrent=1", "train.steps=3000", "checkpoint.every_steps=100")
    process = start(tmp_path, log, cluster.environment, *items)
    wait_until_some_finished(f"{tmp_path}/sweep", log)
    process.send_signal(signal.SIGTERM)
    assert process.wait(300) == 4, log.read_text()
    stopped = read_sweep(f"{tmp_path}/sweep")
    assert stopped.state == "interrupted"
    assert not stopped.counts()["running"]
    assert "The same command resumes from there" in log.read_text()
    finish(start(tmp_path, log, cluster.environment, *items), log)
    assert read_sweep(f"{tmp_path}/sweep").counts()["finished"] == 4


@pytest.mark.slow
def test_crashes_and_divergence_are_told_and_end_no_other_trial(tmp_path, row):
    row(
        "26b",
        "a trial's process dies; another trial diverges",
        "the first restarts and finishes, the second is reported as failed, others continue",
    )
    (tmp_path / "faulty.py").write_text(FAULTY)
    log = tmp_path / "log.txt"
    items = (
        "sweep.space={prior.arguments.faulty: {grid: [true, false]}, "
        "phases.reconstruction.optimizer.lr: {grid: [1e-3, 1e+30]}}",
        f"prior={{kind: custom, path: faulty:FaultyPrior, arguments: {{folder: {tmp_path}}}}}",
    )
    # On a Ray of its own: one that runs already does not know this folder.
    environment = {"RAY_ADDRESS": "", "PYTHONPATH": str(tmp_path)}
    finish(start(tmp_path, log, environment, *items), log)
    found = read_sweep(f"{tmp_path}/sweep")
    states = {(t.parameters["prior.arguments.faulty"], t.parameters[LR]): t for t in found.trials}
    assert states[True, 1e-3].state == states[False, 1e-3].state == "finished"
    assert states[False, 1e30].state == "failed"
    assert states[False, 1e30].cause.startswith("TrainingDivergedError: ")
    assert attempts(states[True, 1e-3]) == 2
    assert "starts again: its process died" in log.read_text()
    assert restarts(f"{tmp_path}/sweep") == states[True, 1e-3].restarts == 1
    finish(start(tmp_path, log, environment, *items), log)
    assert "had already finished" in log.read_text()


def test_a_trial_that_can_never_fit_is_refused_at_once(cluster, tmp_path):
    log = tmp_path / "log.txt"
    space = "sweep.space.launch.workers={grid: [1, 3]}"
    assert start(tmp_path, log, cluster.environment, space).wait(200) == 2
    assert "3 workers x (1 CPU) can never start" in log.read_text()
    assert not list(Path(tmp_path).glob("sweep/trials/*"))


@pytest.mark.slow
def test_a_second_driver_of_one_sweep_is_refused(cluster, tmp_path):
    log, second = tmp_path / "log.txt", tmp_path / "second.txt"
    items = (SEEDS, "train.steps=2000")
    process = start(tmp_path, log, cluster.environment, *items)
    wait_until_some_finished(f"{tmp_path}/sweep", log)
    assert start(tmp_path, second, cluster.environment, *items).wait(200) == 2
    assert "is being written by" in second.read_text()
    finish(process, log)


@pytest.mark.slow
def test_two_sweeps_share_a_cluster(cluster, tmp_path):
    logs = [tmp_path / "a.txt", tmp_path / "b.txt"]
    both = [
        start(tmp_path, log, cluster.environment, SEEDS, f"sweep.name={log.stem}") for log in logs
    ]
    for process, log in zip(both, logs, strict=True):
        finish(process, log)
    for log in logs:
        assert read_sweep(f"{tmp_path}/{log.stem}").counts()["finished"] == 4


@pytest.mark.slow
def test_trials_of_two_workers_run_one_after_another(cluster, tmp_path, row):
    row(
        "26c",
        "SIGKILL of a worker of a trial of two workers",
        "the trial's workers restart, all trials finish",
    )
    log = tmp_path / "log.txt"
    items = ("sweep.space.run.seed={grid: [0, 1]}", "launch.workers=2", "launch.kind=ray")
    process = start(tmp_path, log, cluster.environment, *items, "train.steps=2000")
    kill_one(cluster, "ray::RayTrainWorker")
    finish(process, log, seconds=800)
    found = read_sweep(f"{tmp_path}/sweep")
    assert "1 at once, each 2 workers x (1 CPU)" in log.read_text()
    assert restarts(f"{tmp_path}/sweep") == 0  # the workers started again, the trial did not
    assert [(t.state, t.workers, t.step) for t in found.trials] == [("finished", 2, 2000)] * 2


@pytest.mark.slow
def test_bad_trials_of_a_population_exploit_good_ones(cluster, tmp_path):
    log = tmp_path / "log.txt"
    items = (
        f"sweep.space={{{LR}: {{grid: [1e-3, 1e-3, 1e-7, 2e-7]}}}}".replace(
            "1e-3, 1e-3", "1e-3, 9e-4"
        ),
        "sweep.scheduler={kind: pbt, every_steps: 20, resample_probability: 0}",
    )
    finish(start(tmp_path, log, cluster.environment, *items), log, seconds=800)
    found = read_sweep(f"{tmp_path}/sweep")
    assert found.counts()["finished"] == 4
    assert restarts(f"{tmp_path}/sweep") == 0
    taken = [event for t in found.trials for event in t.lineage]
    assert taken
    assert all(event["parent"].startswith(f"{tmp_path}/sweep/trials/") for event in taken)
    moved = [t for t in found.trials if t.lineage]
    assert all(t.values != t.parameters for t in moved)


def test_asha_stops_trials_that_are_behind(cluster, tmp_path):
    log = tmp_path / "log.txt"
    items = (
        f"sweep.space={{{LR}: {{grid: [1e-3, 9e-4, 1e-7, 2e-7]}}}}",
        "sweep.scheduler={kind: asha, grace: 20, reduction_factor: 2}",
    )
    finish(start(tmp_path, log, cluster.environment, *items), log, seconds=800)
    found = read_sweep(f"{tmp_path}/sweep")
    assert 1 <= found.counts()["pruned"] <= 3
    assert restarts(f"{tmp_path}/sweep") == 0
    assert [attempts(t) for t in found.trials] == [1, 1, 1, 1]
    assert found.counts()["finished"] == 4 - found.counts()["pruned"]
    best = load_config([tmp_path / "sweep" / "best.yaml"], []).config
    assert best.phases.reconstruction.optimizer.lr > 1e-4


@pytest.mark.slow
def test_optuna_goes_on_where_it_was(cluster, tmp_path):
    log = tmp_path / "log.txt"
    items = (
        "sweep.space.prior={choice: [{kind: gaussian, std: {uniform: [1, 2]}}, {kind: mixture}]}",
        f"sweep.space.{LR}={{loguniform: [1e-4, 1e-2]}}",
        "sweep.search={kind: optuna, startup_trials: 2}",
    )
    finish(start(tmp_path, log, cluster.environment, *items, "sweep.num_trials=3"), log)
    first = read_sweep(f"{tmp_path}/sweep")
    assert first.counts()["finished"] == 3
    finish(start(tmp_path, log, cluster.environment, *items, "sweep.num_trials=5"), log)
    both = read_sweep(f"{tmp_path}/sweep")
    assert both.counts()["finished"] == 5
    assert [t.id for t in both.trials[:3]] == [t.id for t in first.trials]
    assert [attempts(t) for t in both.trials] == [1] * 5
