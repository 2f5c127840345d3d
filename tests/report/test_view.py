import pytest

from aae_dist.report.charts.parameters import BELOW, heights
from aae_dist.report.view import flatten, make_view
from aae_dist.sweeps import SweepRecord, TrialRecord

C2ST, MSE = "prior_match/c2st", "reconstruction/mse"


def trial(number, parameters, state="finished", **metrics):
    named = {name.replace("__", "/"): value for name, value in metrics.items()}
    return TrialRecord(
        f"t{number}", number, f"/s/trials/t{number}", parameters, parameters, state, metrics=named
    )


def view(*trials, metric=C2ST, mode="min", space=()):
    moment = "2026-01-01T00:00:00+00:00"
    told = ("s", "/s", "finished", metric, mode, dict(space), {}, {}, len(trials), moment, moment)
    return make_view(SweepRecord(*told, 1.0, trials))


def scores(c2st, mse):
    return {"prior_match__c2st": c2st, "reconstruction__mse": mse}


def test_finished_trials_are_ranked_and_others_stand_below():
    made = view(
        trial(0, {}, "failed"),
        trial(1, {}, **scores(0.7, 0.1)),
        trial(2, {}, "pruned", **scores(0.5, 0.1)),
        trial(3, {}, **scores(0.6, 0.2)),
        trial(4, {}, **scores(None, 0.2)),
    )
    assert [(r.trial.number, r.rank) for r in made.rows] == [
        (3, 1), (1, 2), (4, None), (2, None), (0, None),
    ]  # fmt: skip
    assert made.plane == (MSE, C2ST)


def test_a_pareto_front_is_marked_and_gives_the_plane():
    trials = [
        trial(i, {}, **scores(*p)) for i, p in enumerate([(0.6, 0.1), (0.5, 0.2), (0.7, 0.3)])
    ]
    made = view(*trials, metric=[C2ST, MSE])
    assert {r.trial.number for r in made.rows if r.on_front} == {0, 1}
    assert made.plane == (C2ST, MSE)


def test_only_keys_that_vary_are_shown_and_the_prior_gives_the_colours():
    made = view(
        trial(0, {"model.latent_dim": 2, "prior": {"kind": "gaussian"}, "train.lr": 5}),
        trial(1, {"model.latent_dim": 4, "prior": {"kind": "mixture", "modes": 5}, "train.lr": 5}),
    )
    assert made.varied == ("model.latent_dim", "prior.kind", "prior.modes")
    assert made.group_key == "prior.kind"
    assert made.groups == ("gaussian", "mixture")
    assert made.plane is None


def test_fixed_options_of_a_structural_key_are_compared_as_a_whole():
    priors = [{"kind": "gaussian", "std": std} for std in (1.0, 5.0)]
    trials = [trial(i, {"prior": prior}) for i, prior in enumerate(priors)]
    made = view(*trials, space={"prior": {"grid": priors}})
    assert made.varied == ("prior",)
    assert made.groups == ("gaussian, std 1", "gaussian, std 5")
    searched = {"prior": {"choice": [{"kind": "gaussian", "std": {"uniform": [1, 5]}}]}}
    assert view(*trials, space=searched).varied == ("prior.std",)


def test_without_a_prior_any_words_give_the_colours_and_seeds_never_do():
    made = view(*(trial(i, {"run.seed": i, "model.activation": k}) for i, k in enumerate("ab")))
    assert made.group_key == "model.activation"
    assert view(trial(0, {"run.seed": 0}), trial(1, {"run.seed": 1})).group_key is None


def test_structural_values_are_taken_apart():
    assert flatten({"prior": {"kind": "m", "a": {"b": 2}}, "w": [1, 2], "on": True}) == {
        "prior.kind": "m", "prior.a.b": 2.0, "w": "[1, 2]", "on": "true",
    }  # fmt: skip


def test_heights_of_an_axis_follow_size_or_order():
    assert heights([1.0, 3.0, 2.0, None]) == {1.0: 0.0, 2.0: 0.5, 3.0: 1.0, None: BELOW}
    assert heights([1.0, 10.0, 100.0])[10.0] == pytest.approx(0.5)
    assert heights(["a", 2.0, "b"]) == {"a": 1.0, 2.0: 0.5, "b": 0.0, None: BELOW}
    assert heights([5.0]) == {5.0: 0.5, None: BELOW}
