"""How a sweep looks on a terminal and in a job log."""

import io

from rich.console import Console

from aae_dist.launch.sweep import SweepProgress
from aae_dist.storage import open_storage
from aae_dist.sweeps.ledger import Ledger
from aae_dist.sweeps.plan import load_sweep


def open_view(tmp_path, clock, terminal=None):
    items = [
        f"run.storage={tmp_path}",
        "data.train=builtin://digits/train",
        "train.steps=100",
        "launch.workers=1",
        "sweep.name=s",
        "sweep.metric=loss/reconstruction",
        "sweep.space.model.latent_dim={grid: [2, 4, 8]}",
    ]
    plan = load_sweep([], items)
    ledger = Ledger(plan, open_storage(plan.uri))
    return ledger, SweepProgress(ledger, 2, clock, terminal)


def run(ledger, number, seconds, state="finished", cause=None, score=1.0):
    trial = ledger.plan.trials[number]
    ledger.start(trial.id)
    ledger.entries[trial.id].started -= seconds
    ledger.update(trial.id, {"step": 100, "loss/reconstruction": score}, trial.parameters)
    if state:
        ledger.finish(trial.id, state, cause)


def test_a_job_log_gets_a_line_for_each_end_and_one_now_and_then(tmp_path, capsys):
    now = [0.0]
    ledger, view = open_view(tmp_path, lambda: now[0])
    run(ledger, 0, 60, score=0.25)
    run(ledger, 1, 20, "pruned", "stopped by asha at step 10")
    view.update()
    view.update()
    assert capsys.readouterr().out.splitlines() == [
        "trial #1 of 3 (latent_dim=2) finished: 0.25, 1:00",
        "trial #2 of 3 (latent_dim=4) pruned: stopped by asha at step 10, 0:20",
    ]
    now[0] = 31.0
    view.update()
    assert capsys.readouterr().out.splitlines() == [
        "sweep s: 1 waiting | 1 finished | 1 pruned | best 0.25 (latent_dim=2) | about 0:20 left"
    ]


def test_trials_of_earlier_starts_are_not_told_again(tmp_path, capsys):
    ledger, _ = open_view(tmp_path, lambda: 0.0)
    run(ledger, 0, 60)
    SweepProgress(ledger, 2).update()
    assert capsys.readouterr().out == ""


def test_a_terminal_shows_the_running_trials(tmp_path):
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=100)
    ledger, view = open_view(tmp_path, lambda: 0.0, console)
    run(ledger, 2, 5, state="")
    with view:
        view.update()
    text = out.getvalue()
    assert "latent_dim=8" in text
    assert "lowest loss/reconstruction" in text
    assert "2 waiting | 1 running" in text
