"""The end of a sweep: its recommendation in W&B, more seeds where they are asked for."""

from pathlib import Path
from typing import Any

import pytest

from aae_dist.errors import ConfigError
from aae_dist.launch import sweep as shared
from aae_dist.launch.sweep import add_more, log_recommendation
from aae_dist.storage import open_storage
from aae_dist.sweeps.ledger import Ledger
from aae_dist.sweeps.plan import load_sweep

MSE, C2ST = "reconstruction/mse", "prior_match/c2st"


def ledger_in(storage: Path, *items: str) -> Ledger:
    base = [
        f"run.storage={storage}",
        "data.train=builtin://digits/train",
        "data.validation=builtin://digits/validation",
        *("train.steps=100", "launch.workers=1", "sweep.name=s"),
        f"sweep.metric={MSE}",
        f"sweep.constraints={{{C2ST}: 0.65}}",
    ]
    plan = load_sweep([], [*base, *items])
    return Ledger(plan, open_storage(plan.uri))


SIZES = "sweep.space.model.latent_dim={grid: [2, 8]}"


def finish(ledger: Ledger, scores: list[tuple[float, float]]) -> None:
    for entry, (mse, c2st) in zip(ledger.pending(), scores, strict=True):
        ledger.start(entry.plan.id)
        ledger.update(entry.plan.id, {"step": 100, MSE: mse, C2ST: c2st}, entry.parameters)
        ledger.finish(entry.plan.id, shared.TrialState.FINISHED)


class Sink:
    def __init__(self) -> None:
        self.closed: tuple[Any, ...] = ()

    def close(self, *closed: Any) -> None:
        self.closed = closed


def test_the_recommendation_is_the_summary_of_a_run_of_the_sweeps_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, sink, opened = ledger_in(tmp_path, SIZES), Sink(), []

    def open_wandb(config: Any, run_id: str, *rest: Any) -> Sink:
        opened.append((config.run.title, config.wandb.group, run_id))
        return sink

    monkeypatch.setattr(shared, "open_wandb", open_wandb)
    log_recommendation(ledger)
    assert not opened  # nothing has finished
    finish(ledger, [(0.03, 0.6), (0.01, 0.55)])
    log_recommendation(ledger)
    log_recommendation(ledger)
    assert opened[0] == opened[1]
    assert opened[0][:2] == ("s: recommendation", "s")
    summary, state = sink.closed
    assert state == "finished"
    assert summary["recommendation"].startswith("Recommended: latent_dim=8, with")
    assert summary["recommendation/latent_dim"] == 8
    assert summary[f"recommendation/{C2ST}_upper"] == 0.55
    disabled = ledger_in(tmp_path, SIZES, "wandb.mode=disabled")
    log_recommendation(disabled)
    assert len(opened) == 2


def test_more_seeds_wait_for_the_end_of_the_sweep_and_are_of_what_decides(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = ledger_in(tmp_path, SIZES)
    add_more(ledger)
    assert "the sweep has trials left, which run first" in capsys.readouterr().out
    assert len(ledger.entries) == 2
    finish(ledger, [(0.03, 0.6), (0.01, 0.55)])
    add_more(ledger)
    assert capsys.readouterr().out.count("added: trial #") == 4
    assert [entry.parameters["run.seed"] for entry in ledger.pending()] == [1, 2, 1, 2]
    finish(ledger, [(0.0101, 0.55), (0.0102, 0.55), (0.031, 0.6), (0.032, 0.6)])
    add_more(ledger)
    assert "--more adds nothing" in capsys.readouterr().out


def test_population_based_training_has_no_trials_to_repeat(tmp_path: Path) -> None:
    ledger = ledger_in(
        tmp_path,
        "sweep.space.phases.generator.optimizer.lr={loguniform: [1e-4, 1e-2]}",
        "sweep.num_trials=4",
        "sweep.scheduler={kind: pbt, every_steps: 50}",
        "train.evaluate_every_steps=50",
    )
    with pytest.raises(ConfigError, match="--more: pbt changes parameters while trials run"):
        add_more(ledger)
