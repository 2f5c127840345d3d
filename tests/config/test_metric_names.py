"""Names of metrics are checked before anything starts; what a run writes is never refused."""

import pytest

from aae_dist.config import config_from_tree, load_config, metric_names
from aae_dist.errors import ConfigError
from aae_dist.sweeps.plan import load_sweep

RUN = ["data.train=s3://b/x.tar", "data.validation=s3://b/y.tar", "train.steps=5"]
SWEEP = [*RUN, "sweep.name=s", "sweep.space.model.latent_dim={grid: [2, 4]}", "launch.workers=1"]
BOTH = "sweep.space.method={grid: [{kind: adversarial}, {kind: mmd}]}"


def of_sweep(*overrides):
    with pytest.raises(ConfigError) as caught:
        load_sweep([], [*SWEEP, *overrides])
    return str(caught.value)


def of_run(*overrides):
    with pytest.raises(ConfigError) as caught:
        load_config([], [*RUN, "run.name=a", *overrides])
    return str(caught.value)


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("prior_match/c2s", 'there is no metric "prior_match/c2s"; did you mean prior_match/c2st?'),
        ("mse", "did you mean reconstruction/mse?"),
        ("loss/distanc", "did you mean loss/distance?"),
        ("nonsense", 'there is no metric "nonsense"; docs/metrics.md lists them'),
        ("loss/kl", "loss/kl is logged with method.kind=variational only, not with adversarial"),
        ("[reconstruction/mse, prior_match/mdm]", "did you mean prior_match/mmd?"),
        ("{reconstruction/mse: 1, prior/c2st: 2}", "did you mean prior_match/c2st?"),
    ],
)
def test_a_metric_that_no_trial_writes_is_refused_with_a_guess(metric, message):
    found = of_sweep(f"sweep.metric={metric}")
    assert message in found
    assert found.count("sweep.metric: ") == 1


def test_a_metric_that_some_trials_write_is_not_refused():
    assert load_sweep([], [*SWEEP, BOTH, "sweep.metric=loss/distance"]).num_trials == 4
    assert load_sweep([], [*SWEEP, BOTH, "sweep.metric=loss/generator"]).num_trials == 4
    assert "only, not with adversarial or mmd" in of_sweep(BOTH, "sweep.metric=loss/kl")


@pytest.mark.parametrize("method", metric_names.METHODS)
def test_whatever_a_run_writes_may_be_the_objective(method):
    names = metric_names.logged(method) | metric_names.evaluated(method)
    parts = "[{dims: 6, prior: {kind: categorical}}, {dims: 2}]"
    more = {
        "variational": ["posterior.kind=gaussian"],
        "label_guided": ["prior.kind=mixture"],
        "semi_supervised": [
            f"prior={{kind: product, parts: {parts}}}",
            "data.labelled=s3://b/z.tar",
            "sweep.space=null",
            "sweep.space.run.seed={grid: [0, 1]}",
        ],
    }.get(method, [])
    overrides = [f"method.kind={method}", f"sweep.metric=[{', '.join(sorted(names))}]", *more]
    assert load_sweep([], [*SWEEP, *overrides]).num_trials == 2


def test_scores_of_evaluations_need_validation_data():
    for name in ("discriminator/accuracy_codes", "codes/smallest_spread", "alarm/collapsed_codes"):
        found = of_sweep(f"sweep.metric={name}", "data.validation=null")
        assert "is measured on data.validation, which is missing" in found
    load_sweep([], [*SWEEP, "sweep.metric=alarm/discriminator_wins", "data.validation=null"])


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (
            "prior_match/c2s",
            'no metric "prior_match/c2s"; did you mean prior_match/c2st? (override',
        ),
        ("loss/generator", "loss/generator is not measured by evaluations, which select the best"),
        ("loss/kl", "loss/kl is logged with method.kind=variational only"),
    ],
)
def test_the_best_checkpoint_is_chosen_by_a_score(metric, message):
    assert message in of_run(f"train.best_metric={metric}")
    assert message in of_sweep(f"train.best_metric={metric}")


def test_the_best_metric_is_told_beside_other_mistakes():
    found = of_run("train.best_metric=c2st", "train.stepz=3", "method.kind=mmd")
    assert "did you mean prior_match/c2st?" in found
    assert "train.stepz: unknown key" in found
    assert "discriminator/accuracy_codes is logged with method.kind=adversarial" in of_run(
        "train.best_metric=discriminator/accuracy_codes", "method.kind=mmd"
    )


def test_a_stored_run_that_named_no_metric_can_still_be_used():
    tree = load_config([], [*RUN, "run.name=a"]).config.model_dump(mode="json")
    tree["train"]["best_metric"] = "c2st"
    assert config_from_tree(tree).train.best_metric == "c2st"
