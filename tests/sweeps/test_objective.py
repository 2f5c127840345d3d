import math

import pytest
from hypothesis import given, strategies as st

from aae_dist.config.metric_names import NUM_SAMPLES
from aae_dist.errors import ConfigError
from aae_dist.sweeps.objective import Objective, pareto_front, ranking

C2ST, MSE = "prior_match/c2st", "reconstruction/mse"


def test_one_metric_is_read_in_its_direction():
    trials = [{C2ST: 0.7}, {C2ST: 0.5}, {C2ST: 0.6}]
    assert ranking(Objective.from_config(C2ST, "min"), trials) == [1, 2, 0]
    assert ranking(Objective.from_config(C2ST, "max"), trials) == [0, 2, 1]
    assert ranking(Objective.from_config([C2ST], ["max"]), trials)[0] == 0
    assert Objective.from_config(C2ST, "min").names == (C2ST,)


def test_scores_of_another_number_of_samples_than_most_have_no_rank():
    trials = [{C2ST: s, MSE: s, NUM_SAMPLES: n} for s, n in [(0.5, 499), (0.7, 500), (0.6, 500)]]
    assert ranking(Objective.from_config(C2ST, "min"), trials) == [2, 1]
    assert ranking(Objective.from_config([MSE, C2ST], "min"), trials) == [2, 1]
    assert ranking(Objective.from_config(MSE, "min"), trials) == [
        0,
        2,
        1,
    ]  # an error a pixel compares
    assert ranking(Objective.from_config(C2ST, "min"), trials[:2]) == [
        1
    ]  # of two, the more samples


def test_a_weighted_sum_adds_metrics_up():
    objective = Objective.from_config({MSE: 10, C2ST: 1}, "min")
    assert objective.value({MSE: 0.02, C2ST: 0.6}) == pytest.approx(0.8)
    assert objective.names == ("objective/weighted_sum",)
    assert not objective.is_pareto
    assert ranking(objective, [{MSE: 0.02, C2ST: 0.6}, {MSE: 0.01, C2ST: 0.65}]) == [1, 0]
    assert str(objective) == "lowest 10 x reconstruction/mse + 1 x prior_match/c2st"


@pytest.mark.parametrize("missing", [{}, {C2ST: None}, {C2ST: math.nan}, {C2ST: math.inf}])
def test_a_trial_without_a_finite_score_is_not_ranked(missing):
    assert Objective.from_config(C2ST, "min").value(missing) is None
    assert ranking(Objective.from_config(C2ST, "min"), [missing, {C2ST: 0.9}]) == [1]
    assert ranking(Objective.from_config([C2ST, MSE], "min"), [{MSE: 0.1, **missing}]) == []


def test_equal_trials_keep_their_order():
    assert ranking(Objective.from_config(C2ST, "min"), [{C2ST: 0.5}] * 3) == [0, 1, 2]


def test_a_pareto_front_holds_what_nobody_dominates():
    points = [(1.0, 5.0), (2.0, 2.0), (3.0, 3.0), (5.0, 1.0), (2.0, 2.0)]
    assert pareto_front(points, ("min", "min")) == [0, 1, 3, 4]
    assert pareto_front(points, ("max", "min")) == [3]
    assert pareto_front(points, ("max", "max")) == [0, 2, 3]
    assert pareto_front([], ("min", "min")) == []


def test_several_directions_rank_front_by_front_and_balanced_trials_first():
    pairs = [(1, 9), (4, 4), (9, 1), (5, 5), (10, 10)]
    trials = [{MSE: float(a), C2ST: float(b)} for a, b in pairs]
    objective = Objective.from_config([MSE, C2ST], "min")
    assert objective.is_pareto
    assert ranking(objective, trials) == [1, 0, 2, 3, 4]
    with pytest.raises(ValueError, match="no single value"):
        objective.value(trials[0])


def test_each_direction_may_have_its_own_mode():
    objective = Objective.from_config([MSE, "accuracy"], ["min", "max"])
    assert ranking(objective, [{MSE: 1.0, "accuracy": 0.1}, {MSE: 0.5, "accuracy": 0.9}])[0] == 1
    assert str(objective) == "lowest reconstruction/mse and highest accuracy"


@pytest.mark.parametrize(
    ("metric", "mode", "words"),
    [
        (C2ST, "lowest", "min or max"),
        ([C2ST, MSE], ["min"], "a list of 2 of them"),
        ({C2ST: 1, MSE: 1}, ["min", "max"], "a list of 1 of them"),
        ([], "min", "different metrics"),
        ([C2ST, C2ST], "min", "different metrics"),
        ({C2ST: 0}, "min", "not 0"),
    ],
)
def test_an_objective_that_makes_no_sense_is_refused(metric, mode, words):
    with pytest.raises(ConfigError, match=words):
        Objective.from_config(metric, mode)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 5)), max_size=12))
def test_ranking_is_a_permutation_whose_head_is_the_front(points):
    names = ["a", "b", "c"]
    trials = [dict(zip(names, map(float, point), strict=True)) for point in points]
    order = ranking(Objective.from_config(names, ["min", "max", "min"]), trials)
    front = pareto_front([tuple(map(float, p)) for p in points], ("min", "max", "min"))
    assert sorted(order) == list(range(len(points)))
    assert set(order[: len(front)]) == set(front)


BOUND = {C2ST: 0.65}


def test_trials_that_keep_the_constraints_stand_first_and_others_by_how_far_they_are_from_it():
    pairs = [(0.01, 0.9), (0.03, 0.6), (0.005, 0.7), (0.02, 0.65), (0.001, math.nan)]
    trials = [{MSE: mse, C2ST: c2st} for mse, c2st in pairs]
    objective = Objective.from_config(MSE, "min", BOUND)
    assert ranking(objective, trials) == [3, 1, 2, 0]
    assert [objective.is_kept(t) for t in trials] == [False, True, False, True, False]
    assert objective.violations(trials[2]) == (pytest.approx(0.05 / 0.65),)
    assert str(objective) == "lowest reconstruction/mse, with prior_match/c2st at most 0.65"


def test_scores_of_a_constraint_need_the_same_number_of_samples():
    trials = [{MSE: 0.1, C2ST: 0.5, NUM_SAMPLES: n} for n in (500, 500, 499)]
    assert ranking(Objective.from_config(MSE, "min", BOUND), trials) == [0, 1]


@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), max_size=8),
    st.sampled_from(["min", "max"]),
)
def test_a_scheduler_orders_trials_as_the_ranking_does(pairs, mode):
    trials = [{MSE: round(mse, 3), C2ST: round(c2st, 3)} for mse, c2st in pairs]
    objective = Objective.from_config(MSE, mode, BOUND)
    scores = [objective.comparable_score(trial) for trial in trials]
    order = ranking(objective, trials)
    ordered = [scores[i] if mode == "min" else -scores[i] for i in order]
    assert ordered == sorted(ordered)


def test_of_a_front_the_knee_comes_first_and_broken_constraints_last():
    pairs = [(0.0, 1.0), (0.2, 0.3), (1.0, 0.0), (0.1, 0.9), (0.05, 0.2)]
    trials = [{MSE: a, C2ST: b} for a, b in pairs]
    objective = Objective.from_config([MSE, C2ST], "min")
    assert ranking(objective, trials)[0] == 4
    bounded = Objective.from_config([MSE, C2ST], "min", {MSE: 0.04})
    assert ranking(bounded, trials) == [0, 4, 3, 1, 2]
