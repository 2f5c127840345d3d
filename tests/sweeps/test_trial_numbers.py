"""A trial has one number, from #1, wherever people meet it."""

import re

import pytest
import yaml
from helpers.sweep_folders import Trial, write_sweep

from aae_dist.cli import main
from aae_dist.launch.sweep import SweepProgress
from aae_dist.report import make_report
from aae_dist.storage import open_storage
from aae_dist.sweeps.ledger import Ledger
from aae_dist.sweeps.plan import load_sweep
from aae_dist.tracking.wandb_sink import start_request

SIZES = (2, 4, 8)


def items(tmp_path) -> list[str]:
    return [
        f"run.storage={tmp_path}",
        "data.train=builtin://digits/train",
        "launch.workers=1",
        "train.steps=100",
        "sweep.name=s",
        "sweep.metric=loss/reconstruction",
        f"sweep.space.model.latent_dim={{grid: {list(SIZES)}}}",
    ]


def test_a_trial_has_one_number_on_the_console_in_files_and_in_wandb(tmp_path, capsys) -> None:
    assert main(["tune", "--dry-run", *items(tmp_path)]) == 0
    planned = capsys.readouterr().out
    plan = load_sweep([], items(tmp_path))
    ledger = Ledger(plan, open_storage(plan.uri))
    view = SweepProgress(ledger, 2)
    for place, trial in enumerate(plan.trials):
        ledger.start(trial.id)
        score = {"step": 100, "loss/reconstruction": abs(place - 1.0)}  # the second is the best
        ledger.update(trial.id, score, trial.parameters)
        ledger.finish(trial.id, "finished", None)
    view.update()
    told = capsys.readouterr().out.splitlines()
    for number, (size, trial) in enumerate(zip(SIZES, plan.trials, strict=True), 1):
        assert f"#{number}  {trial.id}  latent_dim={size}" in planned
        assert told[number - 1].startswith(f"trial #{number} of 3 (latent_dim={size}) finished")
        request = start_request(trial.config, trial.id, "offline", tmp_path)
        assert request["name"] == f"trial #{number} of s"
    ledger.write("finished")
    ledger.flush()
    head = open_storage(plan.uri).read("best.yaml").decode()
    assert "of the sweep s: #2, latent_dim=4" in head
    assert yaml.safe_load(head)["model"]["latent_dim"] == 4


@pytest.mark.run
def test_the_report_has_the_same_numbers(tmp_path) -> None:
    scores = {2: 0.7, 4: 0.6, 8: 0.8}
    trials = [
        Trial({"model.latent_dim": size}, told={"metrics": {"prior_match/c2st": score}})
        for size, score in scores.items()
    ]
    folder = write_sweep(tmp_path / "s", trials)
    make_report(str(folder))
    page = re.sub("<[^>]*>", " ", (folder / "report.html").read_text())
    table = page[page.index("rank") :].split()
    numbered = [table[n + 1] for n in range(len(table) - 1) if table[n] in "123"]
    assert [n for n in numbered if n.startswith("#")] == ["#2", "#1", "#3"]
