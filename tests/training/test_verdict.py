"""The verdict on a run, from its final numbers."""

import json
import math
from typing import Any

import pytest

from aae_dist.cli.inspect import results
from aae_dist.config import RunConfig, config_from_tree
from aae_dist.training.folder import give_verdict, match_of


def config(**method: Any) -> RunConfig:
    return config_from_tree(
        {
            "run": {"name": "run"},
            "data": {"train": "x", "validation": "y"},
            "model": {"latent_dim": 10},
            "train": {"steps": 3000},
            "method": method or {"kind": "adversarial"},
        }
    )


def metrics(c2st: float, mse: float = 1.0, **more: float) -> dict[str, float]:
    return {
        "prior_match/c2st": c2st,
        "prior_match/c2st_low": c2st - 0.02,
        "codes/smallest_spread": 0.9,
        "reconstruction/mse": mse,
        "reconstruction/variance": 2.0,
        "reconstruction/pca": 1.25,
        **more,
    }


@pytest.mark.parametrize(
    ("found", "match"),
    [
        (metrics(0.5), "good"),
        (metrics(0.6), "good"),
        (metrics(0.61), "fair"),
        (metrics(0.7), "fair"),
        (metrics(0.71), "poor"),
        (metrics(0.5, **{"codes/smallest_spread": 0.05}), "poor"),
        (metrics(math.nan), "poor"),
        ({"prior_match/c2st": 0.65, "prior_match/c2st_low": 0.49}, "good"),  # few samples
        ({"prior_match/c2st": None}, "poor"),
        ({"loss/reconstruction": 1.0}, None),
    ],
)
def test_a_match_is_good_fair_or_poor(found: dict[str, float], match: str | None) -> None:
    assert match_of(found) == match
    verdict = give_verdict(found, config())
    assert verdict["match"] == match
    last = verdict["text"][-1]
    assert last.startswith(f"Verdict: {match} match: " if match else "Verdict: none, ")
    json.dumps(verdict, allow_nan=False)


def test_a_run_that_ended_far_from_its_prior_says_so_in_its_last_line() -> None:
    verdict = give_verdict(metrics(0.995), config())
    assert "ended far from the prior" in verdict["text"][-1]
    assert "C2ST 0.995" in verdict["text"][-1]
    assert any(line.startswith("To try: ") for line in verdict["text"][:-1])


def test_reconstruction_is_told_against_the_variance_and_a_pca() -> None:
    found = give_verdict(metrics(0.5, mse=1.0), config())["reconstruction"]
    assert (found["of_variance"], found["of_pca"]) == (0.5, 0.8)
    assert "50.0% of the variance" in found["text"]
    assert "a PCA of the same size loses 62.5%, so this is 20% better" in found["text"]
    worse = give_verdict(metrics(0.5, mse=1.875), config())
    assert "this is 50% worse" in worse["reconstruction"]["text"]
    assert worse["advice"] == ["more steps (now 3,000)"]
    assert "this is as good" in give_verdict(metrics(0.5, mse=1.26), config())["text"][0]
    without = metrics(0.5)
    del without["reconstruction/pca"]
    found = give_verdict(without, config(), no_pca="too large")["reconstruction"]
    assert found["of_pca"] is None
    assert "not compared with a PCA (too large)" in found["text"]


def test_advice_names_what_helped_and_only_where_it_is_needed() -> None:
    assert give_verdict(metrics(0.55), config())["advice"] == []
    wanted = ["more steps (now 3,000)", "a smaller model.latent_dim (now 10)"]
    wanted.append("another prior (now gaussian)")
    plain = give_verdict(metrics(0.9), config(kind="autoencoder"))["advice"]
    assert plain == ["method.kind=adversarial", *wanted]
    assert give_verdict(metrics(0.9), config())["advice"][-3:] == wanted
    if hasattr(config().method, "balance"):
        assert (
            give_verdict(metrics(0.9), config(kind="adversarial", balance="auto"))["advice"]
            == wanted
        )
        former = give_verdict(metrics(0.9), config(kind="adversarial", balance="none"))["advice"]
        assert former[0].startswith("method.balance=auto")


def test_alarms_of_the_whole_run_are_told_and_those_that_stay_are_named() -> None:
    found = metrics(0.9, **{"alarm/lagging": 1.0, "alarm/off_prior": 0.0})
    verdict = give_verdict(found, config(), {"off_prior": 150, "lagging": 1300})
    assert verdict["alarms"] == ["lagging"]
    assert "Alarm off_prior, since step 150, over by the end." in verdict["text"]
    assert "Alarm lagging, since step 1,300." in verdict["text"]


def test_the_final_table_has_the_alarms_that_hold() -> None:
    found = {"alarm/lagging": 1.0, "alarm/off_prior": 0.0, "loss/generator": 0.0}
    found |= {"skipped_updates/generator": 0.0, "skipped_updates/discriminator": 2.0, "lr/x": 1.0}
    wanted = {"alarm/lagging", "loss/generator", "skipped_updates/discriminator"}
    assert set(results(found)) == wanted
