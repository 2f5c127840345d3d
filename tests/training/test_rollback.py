"""A run that is not healthy any more rolls back to its last healthy checkpoint."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.reporters import Silent
from helpers.runs import TINY, final_tensors, metrics

from aae_dist.config import load_config
from aae_dist.data import Batch
from aae_dist.distributed.world import RankComparison, single
from aae_dist.errors import RanksDifferError, TrainingDivergedError
from aae_dist.methods import Losses
from aae_dist.methods.adversarial import AdversarialMethod
from aae_dist.training.folder import Outcome
from aae_dist.training.state import TrainState
from aae_dist.training.trainer import Trainer, train

pytestmark = pytest.mark.run


def go(storage: Path, *items: str) -> tuple[Outcome, list[str]]:
    torch.set_num_threads(1)
    base = [f"run.storage={storage}", "run.name=run", "launch.kind=local", *TINY]
    base += ["data.validation=null", "checkpoint.every_steps=5", "checkpoint.keep=10"]
    config = load_config([], [*base, "train.steps=30", "train.log_every_steps=5", *items]).config
    reporter = Silent()
    return train(config, single(), reporter, "launch"), reporter.lines


def without(tensors: dict[str, Any], *words: str) -> dict[str, Any]:
    return {k: v for k, v in tensors.items() if not any(word in k for word in words)}


def assert_bit_equal(got: dict[str, Any], expected: dict[str, Any]) -> None:
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        same = torch.equal(got[name], value) if isinstance(value, torch.Tensor) else None
        assert same or got[name] == value, name


def poison(monkeypatch: pytest.MonkeyPatch, is_bad: Any) -> list[float]:
    """Make the discriminator's loss nan where `is_bad()`; return its learning rates by then."""
    original, rates = AdversarialMethod.discriminator_loss, []

    def loss(self: AdversarialMethod, coded: Any) -> Any:
        rate = self.optimizers["discriminator"].lr
        if not is_bad(rate):
            return original(self, coded)
        rates.append(rate)
        found, terms = original(self, coded)
        return found * float("nan"), terms

    monkeypatch.setattr(AdversarialMethod, "discriminator_loss", loss)
    return rates


def test_a_fault_that_passes_leaves_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = go(tmp_path / "whole")
    calls = iter(range(1000))
    poison(monkeypatch, lambda rate: next(calls) in (17, 18, 19))
    limits = ["train.max_skipped_updates=3", "train.max_rollbacks=1"]
    broken, lines = go(tmp_path / "broken", *limits)
    assert any("rolling back to the last good checkpoint, unchanged" in line for line in lines)
    assert broken.state == "finished"
    assert_bit_equal(final_tensors(broken.run_uri, 30), final_tensors(whole.run_uri, 30))
    assert [r["step"] for r in metrics(broken.run_uri)] == [5, 10, 15, 20, 25, 30]


def test_what_comes_again_is_met_with_half_the_learning_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = poison(monkeypatch, lambda rate: 0.0006 < rate < 0.00099)
    schedule = "phases.discriminator.schedule={kind: linear, decay_from: 0.5}"
    limits = ["train.max_skipped_updates=2", "train.max_rollbacks=2", schedule]
    limits += ["phases.discriminator.optimizer.lr=1e-3"]
    outcome, lines = go(tmp_path, *limits)
    assert outcome.state == "finished"
    assert [line.rpartition(", ")[2] for line in lines if "rolling back" in line] == [
        "unchanged",
        "with learning rates halved",
    ]
    assert len(rates) == 4
    state = json.loads((tmp_path / "run/checkpoints/step-000000030/state.json").read_text())
    assert state["lr_factor"] == 0.5
    assert metrics(outcome.run_uri)[0]["lr/discriminator"] == 0.001
    assert outcome.metrics["lr/discriminator"] < 0.0001


def test_without_rollbacks_left_the_run_has_diverged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = iter(range(1000))
    poison(monkeypatch, lambda rate: next(calls) > 16)
    limits = ["train.max_skipped_updates=7", "train.max_rollbacks=2"]
    with pytest.raises(TrainingDivergedError, match="skipped 7 consecutive updates"):
        go(tmp_path, *limits)
    # Step 20 came while updates were skipped: that is no place to start from.
    assert not (tmp_path / "run/checkpoints/step-000000020").exists()


def drift(monkeypatch: pytest.MonkeyPatch, is_due: Callable[[TrainState], bool]) -> None:
    """Let the comparison of ranks report a drift where `is_due(state)`."""
    states: list[TrainState] = []
    train_step, answer = Trainer.train_step, RankComparison.answer

    def noting_step(self: Trainer, batch: Batch) -> Losses:
        states.append(self.state)
        return train_step(self, batch)

    def drifted(self: RankComparison) -> str:
        return "the decoder of rank 1 differs" if is_due(states[-1]) else answer(self)

    monkeypatch.setattr(Trainer, "train_step", noting_step)
    monkeypatch.setattr(RankComparison, "answer", drifted)


def test_drifted_ranks_roll_back_and_end_as_if_nothing_had_happened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = go(tmp_path / "whole")
    hits: list[int] = []

    def once(state: TrainState) -> bool:
        if state.step != 18 or hits:
            return False
        hits.append(18)
        next(state.networks.decoder.parameters()).data.mul_(1.5)
        return True

    drift(monkeypatch, once)
    broken, lines = go(tmp_path / "broken", "train.compare_ranks_every_steps=2")
    assert "the decoder of rank 1 differs; rolling back to the newest checkpoint" in lines
    assert_bit_equal(final_tensors(broken.run_uri, 30), final_tensors(whole.run_uri, 30))


@pytest.mark.parametrize(
    ("first", "words"),
    [(2, "differs, and there is no checkpoint to roll back to"), (18, "after 3 rollbacks")],
)
def test_ranks_that_keep_drifting_are_a_matter_of_the_hardware(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: int, words: str
) -> None:
    drift(monkeypatch, lambda state: state.step == first)
    with pytest.raises(RanksDifferError, match=words) as raised:
        go(tmp_path, "train.compare_ranks_every_steps=2")
    assert raised.value.exit_code == 1
