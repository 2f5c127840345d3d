import math
import random

import pytest
from hypothesis import given, strategies as st

from aae_dist.sweeps.objective import Objective
from aae_dist.sweeps.recommendation import (
    MIN_SEEDS,
    Recommendation,
    ScoredTrial,
    recommend,
    upper_bound,
)

C2ST, MSE, SIZE = "prior_match/c2st", "reconstruction/mse", "model.latent_dim"
BOUNDED = Objective.from_config(MSE, "min", {C2ST: 0.65})


def trials(rows: dict[int, list[tuple[float, float]]], **fixed: object) -> list[ScoredTrial]:
    """Return the trials of sizes, each with one (mse, c2st) per seed."""
    found = []
    for size, seeds in rows.items():
        for seed, (mse, c2st) in enumerate(seeds):
            own = {SIZE: size, **fixed, "run.seed": seed}
            found.append(ScoredTrial(len(found), own, {MSE: mse, C2ST: c2st}))
    return found


def size(found: Recommendation) -> object:
    return found.chosen and found.chosen.parameters[SIZE]


SIZES = {
    4: [(0.030, 0.52), (0.031, 0.53), (0.029, 0.51)],
    8: [(0.0208, 0.55), (0.0206, 0.56), (0.0207, 0.54)],
    16: [(0.0200, 0.58), (0.0220, 0.57), (0.0190, 0.59)],
    32: [(0.0100, 0.80), (0.0101, 0.82), (0.0102, 0.81)],
}


def test_the_smallest_size_within_one_standard_error_of_the_best_is_recommended():
    found = recommend(BOUNDED, trials(SIZES))
    assert (found.state, size(found)) == ("chosen", 8)
    assert found.runner_up
    assert found.runner_up.parameters == {SIZE: 16}
    best = found.runner_up
    assert best.standard_error == pytest.approx(0.0008819171)
    assert found.chosen.score[0] <= best.score[0] + best.standard_error
    assert found.sentence.startswith(
        "Recommended: latent_dim=8, with mean reconstruction/mse 0.0207 ± 5.8e-05 over 3 seeds, "
        "the smallest size within one standard error of the best mean, 0.02033 of latent_dim=16, "
        "prior_match/c2st up to "
    )
    assert "\n" not in found.sentence
    assert found.would_change[0].startswith("allowing prior_match/c2st up to 0.8")
    assert found.would_change[0].endswith("would choose latent_dim=32")
    assert found.would_change[1].endswith("would exclude it and choose latent_dim=16")
    assert found.would_change[2] == "a mean of 0.02122 instead of 0.03 would choose latent_dim=4"


def test_a_mean_that_keeps_the_constraint_is_not_enough_if_a_new_seed_may_break_it():
    wide = {**SIZES, 8: [(0.0207, 0.50), (0.0207, 0.64), (0.0207, 0.70)]}
    assert size(recommend(BOUNDED, trials(wide))) == 16


def test_the_bound_is_that_of_predictions_and_at_least_the_trials_own_interval():
    values = [{C2ST: v} for v in (0.5, 0.6, 0.7)]
    # scipy.stats.t.ppf(0.9, 2) = 1.8856180831641267
    assert upper_bound(values, C2ST) == pytest.approx(0.6 + 1.88562 * 0.1 * math.sqrt(4 / 3), 1e-4)
    one = [{C2ST: 0.5, f"{C2ST}_high": 0.53}]
    assert upper_bound(one, C2ST) == 0.53
    assert upper_bound(one * 3, C2ST) == 0.53


def test_a_new_seed_stays_below_the_bound_nine_times_in_ten():
    drawn = random.Random(0)
    for seeds in (2, 3, 12):
        kept = sum(
            drawn.gauss(0.6, 0.02)
            <= upper_bound([{C2ST: drawn.gauss(0.6, 0.02)} for _ in range(seeds)], C2ST)
            for _ in range(2000)
        )
        assert kept / 2000 == pytest.approx(0.9, abs=0.025)


def test_where_none_qualifies_the_nearest_is_named_and_what_to_do():
    found = recommend(BOUNDED, trials({s: [(m, c + 0.3) for m, c in r] for s, r in SIZES.items()}))
    assert (found.state, size(found)) == ("none_qualifies", 4)
    assert found.sentence.startswith("None qualifies: no parameters keep prior_match/c2st at most ")
    assert "nearest are latent_dim=4" in found.sentence
    assert "train longer, try another prior, or allow a higher value" in found.sentence


def test_without_finished_trials_there_is_none():
    assert recommend(BOUNDED, []).state == "no_scores"
    lacking = [ScoredTrial(0, {SIZE: 2}, {MSE: 0.1, C2ST: None})]
    assert recommend(BOUNDED, lacking).state == "no_scores"


def test_too_few_seeds_are_reported_with_those_to_add():
    one = recommend(BOUNDED, trials({s: r[:1] for s, r in SIZES.items()}))
    assert [(dict(p), n) for p, n in one.add] == [({SIZE: 16}, 2), ({SIZE: 8}, 2)]
    assert "2 of latent_dim=16; 2 of latent_dim=8" in one.seeds
    assert "--more" in one.seeds
    assert MIN_SEEDS == 3
    close = recommend(BOUNDED, trials(SIZES))
    assert [(dict(p), n) for p, n in close.add] == [({SIZE: 8}, 2), ({SIZE: 16}, 2)]
    clear = recommend(BOUNDED, trials({8: SIZES[8], 4: SIZES[4]}))
    assert (clear.add, clear.seeds) == ((), "")


def test_other_parameters_are_candidates_of_their_own_and_no_size_means_the_best_mean():
    both = [
        ScoredTrial(0, {"prior": {"kind": "gaussian"}}, {MSE: 0.2, C2ST: 0.5}),
        ScoredTrial(1, {"prior": {"kind": "laplace"}}, {MSE: 0.1, C2ST: 0.5}),
    ]
    found = recommend(Objective.from_config(MSE, "max"), both)
    assert found.chosen
    assert found.chosen.parameters == {"prior": {"kind": "gaussian"}}
    assert "the highest mean" in found.sentence
    nested = [
        ScoredTrial(n, {"model": {"kind": "mlp", "latent_dim": s}}, {MSE: 0.1, C2ST: 0.5})
        for n, s in enumerate([8, 4])
    ]
    chosen = recommend(Objective.from_config(MSE, "min"), nested).chosen
    assert chosen
    assert chosen.parameters["model"]["latent_dim"] == 4


def test_of_a_pareto_sweep_the_knee_of_the_means_is_recommended():
    objective = Objective.from_config([MSE, C2ST], "min")
    rows = {2: [(1.0, 0.5)] * 3, 8: [(0.3, 0.55)] * 3, 32: [(0.1, 0.9)] * 3, 64: [(0.4, 0.8)] * 3}
    found = recommend(objective, trials(rows))
    assert (size(found), found.runner_up and found.runner_up.parameters[SIZE]) == (8, 2)
    assert "the knee point of the Pareto front" in found.sentence
    assert "knee" in found.rule


@given(st.permutations(trials(SIZES)))
def test_the_order_in_which_trials_end_changes_nothing(order: list[ScoredTrial]):
    assert recommend(BOUNDED, order) == recommend(BOUNDED, trials(SIZES))
