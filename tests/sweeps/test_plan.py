"""Sweeps are planned and checked before anything starts."""

import subprocess
import sys
from pathlib import Path

import pytest

from aae_dist.config import RunConfig, config_from_tree, load_config, schema
from aae_dist.errors import ConfigError
from aae_dist.sweeps import space
from aae_dist.sweeps.plan import load_sweep

CONFIGS = Path(__file__).parents[2] / "configs" / "sweep"
BASE = [
    "run.storage=/nowhere",
    "data.train=builtin://digits/train",
    "data.validation=builtin://digits/validation",
    "train.steps=100",
    "train.evaluate_every_steps=10",
    "train.log_every_steps=10",
    "launch.workers=1",
    "sweep.name=s",
]
PRIORS = "sweep.space.prior={grid: [{kind: gaussian}, {kind: mixture, num_modes: 5}]}"
SIZES = "sweep.space.model.latent_dim={grid: [2, 4]}"
RATE = "sweep.space.phases.generator.optimizer.lr={loguniform: [1e-4, 1e-2]}"


def plan(*overrides):
    return load_sweep([], [*BASE, *overrides])


def refusal(*overrides):
    with pytest.raises(ConfigError) as caught:
        plan(*overrides)
    return str(caught.value)


def test_a_grid_makes_one_checked_run_for_each_point():
    found = plan(PRIORS, SIZES)
    assert found.uri == "/nowhere/s"
    shapes = [(t.config.prior.kind, t.config.model.latent_dim) for t in found.trials]
    assert shapes == [("gaussian", 2), ("gaussian", 4), ("mixture", 2), ("mixture", 4)]
    names = {(t.config.run.storage, t.config.run.name, t.id) for t in found.trials}
    assert all(place == "/nowhere/s/trials" and name == id_ for place, name, id_ in names)
    assert len(names) == 4
    assert {t.config.wandb.group for t in found.trials} == {"s"}
    assert [t.config.prior.num_modes for t in found.trials[2:]] == [5, 5]


def test_a_trials_name_depends_on_its_parameters_alone():
    few, many = plan(PRIORS), plan(PRIORS, "train.steps=7", "sweep.metric=reconstruction/mse")
    assert [t.id for t in few.trials] == [t.id for t in many.trials]


def test_more_random_trials_extend_fewer_ones():
    few, many = (plan(RATE, f"sweep.num_trials={n}") for n in (4, 9))
    assert [t.id for t in few.trials] == [t.id for t in many.trials[:4]]
    assert len({t.id for t in many.trials}) == 9
    other = plan(RATE, "sweep.num_trials=4", "sweep.search={kind: random, seed: 1}")
    assert {t.id for t in few.trials}.isdisjoint(t.id for t in other.trials)


def test_grids_among_random_terms_get_equal_shares():
    found = plan(RATE, SIZES, "sweep.num_trials=6")
    assert sorted(t.parameters["model.latent_dim"] for t in found.trials) == [2, 2, 2, 4, 4, 4]
    assert "should be a multiple of the 2 points" in refusal(RATE, SIZES, "sweep.num_trials=5")


def test_a_space_with_few_points_gives_each_once_and_says_so():
    found = plan("sweep.space.model.latent_dim={choice: [2, 4, 8]}", "sweep.num_trials=10")
    assert len(found.trials) == 3
    assert any("3 different trials, fewer than sweep.num_trials=10" in n for n in found.notes)


def test_all_mistakes_are_told_at_once_each_once():
    message = refusal(
        "sweep.space.prior={grid: [{kind: gaussian}, {kind: swiss_roll}, {kind: none}]}",
        "sweep.space.model.latent_dim={grid: [2, 8]}",
        "sweep.num_trials=3",
    )
    assert "the grid has 6 points (got 3)" in message
    assert "swiss_roll exists in 2 dimensions only" in message
    assert "[1 of 6 trials, first: prior=swiss_roll, latent_dim=8]" in message
    assert "prior.kind: should be one of" in message
    assert "[2 of 6 trials, first: prior=none, latent_dim=2]" in message


def test_a_mistake_of_all_trials_is_told_once():
    message = refusal(PRIORS, SIZES, "data.trains=x")
    assert message.count("data.trains: unknown key") == 1
    assert "trials, first" not in message


def test_invalid_points_can_be_skipped():
    found = plan(
        "sweep.space.prior={grid: [{kind: gaussian}, {kind: swiss_roll}]}",
        "sweep.space.model.latent_dim={grid: [2, 8]}",
        "sweep.invalid=skip",
    )
    assert [(t.config.prior.kind, t.config.model.latent_dim) for t in found.trials] == [
        ("gaussian", 2),
        ("gaussian", 8),
        ("swiss_roll", 2),
    ]
    assert any(n.startswith("trial prior=swiss_roll, latent_dim=8 is skipped") for n in found.notes)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ((SIZES, "sweep.scheduler={kind: pbt, every_steps: 20}"), "only rates may differ"),
        ((SIZES, "sweep.scheduler={kind: pbt, every_steps: 20}"), "pbt needs a rate"),
        (
            (RATE, "sweep.num_trials=4", "sweep.scheduler={kind: pbt, every_steps: 15}"),
            "should be a multiple of train.log_every_steps",
        ),
        (
            (
                RATE,
                "sweep.num_trials=4",
                "sweep.scheduler={kind: pbt, every_steps: 20}",
                "launch.workers=2",
            ),
            "trials of one worker only",
        ),
        (
            (SIZES, "sweep.scheduler=asha", "train.evaluate_every_steps=null"),
            "train.evaluate_every_steps must be set",
        ),
        ((SIZES, "sweep.scheduler={kind: asha, grace: 100}"), "should be less than 100"),
        (
            (SIZES, "sweep.scheduler={kind: asha, unit: epochs}"),
            "sweep.scheduler.longest: is missing",
        ),
        (
            (SIZES, "sweep.scheduler=asha", "sweep.metric=[reconstruction/mse, prior_match/c2st]"),
            "asha compares by one number",
        ),
        ((SIZES, "sweep.mode=[min, max]"), "sweep.mode: should be min or max"),
        ((SIZES, "sweep.search=optuna", "sweep.num_trials=4"), "write choice for grid"),
        ((RATE,), "sweep.num_trials: is missing"),
        ((RATE, "sweep.search=grid"), "grid tries grid terms only"),
        ((SIZES, "data.validation=null"), "is measured on data.validation"),
        (
            (SIZES, "sweep.constraints={prior_match/c2s: 0.65}"),
            'there is no metric "prior_match/c2s"; did you mean prior_match/c2st?',
        ),
        (
            (SIZES, "sweep.constraints={loss/reconstruction: 9}"),
            "loss/reconstruction is not measured by evaluations, which decide; use for example",
        ),
        (
            (SIZES, "sweep.constraints={prior_match/c2st: .inf}"),
            "sweep.constraints.prior_match/c2st: should be a finite number",
        ),
        (("sweep.space.wandb.project={grid: [a, b]}",), "wandb is the same for all trials"),
        (("sweep.space.model.latent_dim=3",), "holds nothing to choose"),
        (
            (
                RATE,
                "sweep.num_trials=4",
                "sweep.scheduler={kind: pbt, every_steps: 20}",
                "launch.kind=local",
            ),
            "pbt needs Ray Tune; leave out launch.kind=local, or use asha",
        ),
        ((SIZES, "sweep.name=a/b"), "sweep.name: should be a name of letters, digits and . - _"),
        ((SIZES, "sweep.schedular=asha"), "did you mean sweep.scheduler"),
        (
            ("sweep.space.model.latent_dim={grids: [2, 4]}",),
            ": sweep.space.model.latent_dim: grids is no term; did you mean grid?",
        ),
        (
            ("sweep.space.prior={grid: [{kind: gaussian, std: {rand_int: [1, 2]}}]}",),
            "sweep.space.prior.grid.0.std: rand_int is no term; did you mean randint?",
        ),
        (
            ("sweep.space.model.latent_dim=[2, 4]",),
            "model.latent_dim: should be a term or one value, got a list; write {grid: [2, 4]}",
        ),
        (("sweep.space.prior=[{kind: gaussian}]",), "should be a term or one value, got a list"),
    ],
)
def test_what_cannot_work_is_refused_clearly(overrides, message):
    assert message in refusal(*overrides)


def test_a_later_layer_replaces_or_removes_a_term(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text(
        "sweep: {name: s, space: {model.latent_dim: {grid: [2, 4]}, run.seed: {grid: [0, 1]}}}\n"
    )
    found = load_sweep([file], [*BASE, "sweep.space.model.latent_dim={grid: [8]}"])
    assert [t.parameters for t in found.trials] == [
        {"model.latent_dim": 8, "run.seed": 0},
        {"model.latent_dim": 8, "run.seed": 1},
    ]
    assert len(load_sweep([file], [*BASE, "sweep.space.run.seed=null"]).trials) == 2


def test_a_misspelt_term_over_one_of_a_file_is_called_so(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("sweep: {space: {model.latent_dim: {grid: [2, 4]}}}\n")
    with pytest.raises(ConfigError, match=r"grids is no term; did you mean grid\?") as caught:
        load_sweep([file], [*BASE, "sweep.space.model.latent_dim={grids: [2, 4]}"])
    assert "in the space, too" not in str(caught.value)


def test_lists_and_own_arguments_are_left_alone():
    own = "{kind: custom, path: 'own:Prior', arguments: {grids: [3, 4]}}"
    found = plan(SIZES, "sweep.space.model.encoder_widths=[64, 32]", f"sweep.space.prior={own}")
    assert found.trials[0].config.model.encoder_widths == (64, 32)
    assert found.trials[0].config.prior.arguments == {"grids": [3, 4]}


def test_no_key_of_a_run_looks_like_a_misspelt_term():
    keys = {path.rpartition(".")[2] for path in schema.all_paths((RunConfig,))}
    assert not [key for key in keys if space.misspelt_term({key: [1, 2]})]


def test_a_key_and_one_below_it_are_not_both_searched(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text(
        "sweep: {space: {model: {grid: [{latent_dim: 3}]}, model.latent_dim: {grid: [2, 4]}}}\n"
    )
    with pytest.raises(ConfigError, match="model.latent_dim: model is in the space, too"):
        load_sweep([file], BASE)


def test_the_winner_is_a_run_of_its_own_beside_the_sweep():
    found = plan(PRIORS)
    winner = found.winner(found.trials[1])
    assert (winner.run.storage, winner.run.name) == ("/nowhere", "s-best")
    assert winner.prior == found.trials[1].config.prior
    assert config_from_tree(winner.model_dump(mode="json")) == winner


def test_optuna_trials_are_checked_by_probes():
    space = "sweep.space.prior={choice: [{kind: gaussian}, {kind: swiss_roll}]}"
    message = refusal(space, "sweep.search=optuna", "sweep.num_trials=4", "model.latent_dim=8")
    assert "swiss_roll exists in 2 dimensions only" in message
    found = plan(space, "sweep.search=optuna", "sweep.num_trials=4", "model.latent_dim=2")
    assert not found.trials
    assert found.num_trials == 4


def test_train_refuses_a_sweep_section_beside_other_mistakes():
    with pytest.raises(ConfigError) as caught:
        load_config([], [*BASE, SIZES, "run.name=r", "train.stepz=3"])
    message = str(caught.value)
    assert "sweep: this section describes many runs" in message
    assert "aae-dist tune" in message
    assert "train.stepz: unknown key" in message


@pytest.mark.run
def test_planning_imports_neither_torch_nor_ray():
    code = (
        "import sys; from aae_dist.sweeps.plan import load_sweep; "
        f"load_sweep([], {[*BASE, PRIORS]!r}); "
        "assert not {'torch', 'ray', 'numpy', 'optuna'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_sweep_without_its_section_is_told_what_is_missing():
    with pytest.raises(ConfigError, match=r"sweep: there is no such section.*docs/sweeps\.md"):
        load_sweep([], [o for o in BASE if not o.startswith("sweep")])


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda file: file.stem)
def test_the_ready_configurations_are_valid_sweeps(file):
    found = load_sweep([file], [])
    assert found.num_trials >= 9
    assert all(config.data.validation for config in found.configs)


@pytest.mark.parametrize(
    ("items", "words"),
    [
        (
            ["sweep.num_trials=10001", "sweep.space.model.latent_dim={choice: [2, 3]}"],
            r"sweep.num_trials: should be at most 10000, got 10001",
        ),
        (
            [
                f"sweep.space.{key}={{grid: {list(range(1, 1001))}}}"
                for key in ("run.seed", "model.latent_dim", "train.log_every_steps")
            ],
            r"sweep.space: its grids have 1,000,000,000 points, .* at most 10,000 trials",
        ),
    ],
)
def test_more_trials_than_a_sweep_can_list_are_refused_at_once(
    items: list[str], words: str
) -> None:
    base = ["data.train=b", "train.steps=1", "run.storage=/runs", "sweep.name=s"]
    with pytest.raises(ConfigError, match=words) as caught:
        load_sweep([], [*base, *items])
    assert "\n" not in str(caught.value)


def test_points_are_counted_as_they_are_listed() -> None:
    node = {"a": {"grid": [1, {"b": {"grid": [2, 3]}}]}, "c": {"grid": [4, 5]}, "d": 6}
    assert space.num_points(node) == len(space.grid_points(node)) == 6
