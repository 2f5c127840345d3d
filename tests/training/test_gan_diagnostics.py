"""Alarms of the game between encoder and discriminator."""

import pytest
import torch

from aae_dist.evaluation.evaluator import smallest_spread
from aae_dist.losses import ADVERSARIES
from aae_dist.training import health
from aae_dist.training.health import GanDiagnostics


def test_a_discriminator_wins_after_several_log_points_in_a_row() -> None:
    game = GanDiagnostics()
    seen, lines = [], []
    for loss in (0.05, 0.05, 1.0, 0.05, 0.05, 0.05, 0.05, 0.05, 0.05, 1.2):
        metrics, new = game.update({"loss/discriminator": loss})
        seen.append(metrics[health.DISCRIMINATOR_WINS])
        lines += new
    assert seen == [0, 0, 0, 0, 0, 0, 0, 1, 1, 0]
    assert len(lines) == 1


@pytest.mark.parametrize("name", ADVERSARIES)
def test_no_adversary_wins_at_its_equilibrium_and_each_by_a_wide_margin(name: str) -> None:
    loss_of = ADVERSARIES[name].discriminator_loss
    # Logits of an even game, and those of a winner for prior samples and codes.
    even, prior, codes = {
        "bce": (0.0, 6.0, -6.0), "least_squares": (0.5, 0.95, 0.05), "hinge": (0.0, 1.0, -1.0)
    }[name]  # fmt: skip
    equal = float(loss_of(torch.tensor([even]), torch.tensor([even])))
    won = float(loss_of(torch.tensor([prior]), torch.tensor([codes])))
    assert equal == pytest.approx(health.EQUILIBRIUM[name])
    for loss, wins in ((equal, 0), (0.2 * equal, 0), (won, 1)):
        game = GanDiagnostics(name)
        for _ in range(health.CONSECUTIVE_POINTS):
            metrics, _ = game.update({"loss/discriminator": loss})
        assert metrics[health.DISCRIMINATOR_WINS] == wins


@pytest.mark.parametrize(
    ("codes", "prior", "c2st", "wins", "dead"),
    [
        (0.99, 0.99, 0.9, 1, 0),
        (0.0, 1.0, 0.9, 0, 1),  # it calls everything a prior sample
        (0.5, 0.5, 0.5, 0, 0),  # it cannot tell because there is nothing to tell
        (0.5, 0.5, 0.8, 0, 1),
        (0.7, 0.6, 0.8, 0, 0),
    ],
)
def test_an_evaluation_tells_who_wins_and_who_is_dead(
    codes: float, prior: float, c2st: float, wins: int, dead: int
) -> None:
    metrics, _ = GanDiagnostics().update(
        {
            "discriminator/accuracy_codes": codes,
            "discriminator/accuracy_prior": prior,
            "prior_match/c2st": c2st,
        }
    )
    assert metrics.get(health.DISCRIMINATOR_WINS, 0) == wins
    assert metrics[health.DISCRIMINATOR_DEAD] == dead


def test_codes_that_lie_in_a_plane_are_collapsed() -> None:
    generator = torch.Generator().manual_seed(0)
    prior = torch.randn(500, 3, generator=generator).double() * 5
    full = torch.randn(500, 3, generator=generator).double() * 4
    flat = full @ torch.tensor([[1.0, 1, 0], [0, 1, 0], [0, 0, 0]]).double()
    assert 0.6 < smallest_spread(full, prior) < 1.0
    assert smallest_spread(flat, prior) < 1e-6
    for codes, alarm in ((full, 0), (flat, 1)):
        metrics, _ = GanDiagnostics().update(
            {"codes/smallest_spread": smallest_spread(codes, prior)}
        )
        assert metrics[health.COLLAPSED_CODES] == alarm


def test_nothing_is_said_of_methods_without_a_discriminator() -> None:
    assert GanDiagnostics().update({"loss/reconstruction": 1.0}) == ({}, [])
