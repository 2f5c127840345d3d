import itertools

import pytest

from aae_dist.config import load_config
from aae_dist.errors import ConfigError

BASE = "run: {name: a}\ndata: {train: s3://b/{000..011}.tar}\n".replace(
    "s3://b/{000..011}.tar", "'s3://b/{000..011}.tar'"
)


@pytest.fixture
def load(tmp_path):
    """Return a function that loads YAML texts, as files in order, and overrides."""

    def load(*texts, overrides=()):
        files = []
        for number, text in enumerate((BASE + "train: {steps: 5}\n", *texts)):
            files.append(tmp_path / f"{number}.yaml")
            files[-1].write_text(text)
        return load_config(files, overrides)

    return load


def test_later_files_win_and_overrides_win_over_files(load):
    loaded = load("train: {steps: 6, log_every_steps: 2}", "train: {steps: 7}")
    assert (loaded.config.train.steps, loaded.config.train.log_every_steps) == (7, 2)
    assert load("train: {steps: 6}", overrides=["train.steps=8"]).config.train.steps == 8


def test_the_last_of_two_overrides_of_one_key_wins(load):
    assert load(overrides=["train.steps=8", "train.steps=9"]).config.train.steps == 9


def test_maps_merge_and_lists_replace(load):
    loaded = load(
        "model: {encoder_widths: [1, 2, 3], latent_dim: 4}",
        overrides=["model={encoder_widths: [7]}", "data.train=[a://x, b://y]"],
    )
    assert loaded.config.model.encoder_widths == (7,)
    assert loaded.config.model.latent_dim == 4
    assert loaded.config.data.train == ("a://x", "b://y")


def test_numbers_in_scientific_notation_are_numbers(load):
    text = "phases: {reconstruction: {optimizer: {lr: 1e-4}}}"
    assert load(text).config.phases.reconstruction.optimizer.lr == 1e-4
    loaded = load(overrides=["phases.reconstruction.optimizer.lr=2e-4"])
    assert loaded.config.phases.reconstruction.optimizer.lr == 2e-4


def test_one_key_of_a_phase_keeps_the_other_defaults_of_that_phase(load):
    phase = load(overrides=["phases.discriminator.optimizer.lr=1e-4"]).config.phases.discriminator
    assert phase.optimizer.lr == 1e-4
    assert phase.optimizer.betas == (0.5, 0.999)


def test_another_kind_starts_from_the_defaults_of_its_class(load):
    loaded = load(overrides=["phases.discriminator.optimizer.kind=sgd"])
    assert loaded.config.phases.discriminator.optimizer.lr == 1e-2
    kind = "phases.discriminator.optimizer.kind"
    assert loaded.notes == (f"{kind} is now sgd, with its own defaults: lr=0.01 instead of 0.002",)


def test_a_kind_that_is_the_default_anyway_changes_nothing(load):
    plain, named = load(), load(overrides=["phases.generator.optimizer={kind: adam}"])
    assert named.config == plain.config


def test_a_section_with_all_its_lines_commented_out_says_nothing(load):
    assert load("prior:\ncheckpoint:\n").config == load().config


def test_null_takes_a_value_back(load):
    assert load("train: {micro_batch_size: 4}", "train: {micro_batch_size: null}").config == (
        load().config
    )


def test_switching_kind_drops_what_the_new_kind_lacks_and_names_it(load, tmp_path):
    loaded = load(
        "prior: {kind: mixture, num_modes: 7}\nmodel: {latent_dim: 2}",
        overrides=["prior.kind=swiss_roll", "prior.num_turns=3"],
    )
    assert loaded.config.prior.kind == "swiss_roll"
    assert loaded.config.prior.num_turns == 3.0
    assert loaded.notes == (
        f"prior.num_modes=7 ({tmp_path}/1.yaml:1) dropped: prior.kind is now swiss_roll",
    )


def test_switching_kind_keeps_the_fields_that_both_kinds_have(load):
    loaded = load(
        "prior: {kind: mixture, radius: 2.5}", "prior: {kind: swiss_roll}\nmodel: {latent_dim: 2}"
    )
    assert loaded.config.prior.radius == 2.5
    assert loaded.notes == ()


@pytest.mark.parametrize(
    "overrides",
    list(itertools.permutations(["prior.kind=swiss_roll", "prior.num_turns=3", "run.seed=1"])),
)
def test_the_order_of_overrides_does_not_matter(load, overrides):
    text = "prior: {kind: mixture, num_modes: 7}\nmodel: {latent_dim: 2}"
    loaded = load(text, overrides=overrides)
    assert loaded.config.prior.num_turns == 3.0
    assert len(loaded.notes) == 1


@pytest.mark.parametrize(
    "overrides",
    [["prior.kind=gaussian", "prior.num_modes=3"], ["prior.num_modes=3", "prior.kind=gaussian"]],
)
def test_a_field_of_another_kind_in_the_same_layer_is_an_error(load, overrides):
    with pytest.raises(ConfigError, match=r"prior.kind=gaussian has no num_modes.*kind=mixture"):
        load("prior: {kind: mixture}", overrides=overrides)


def test_a_field_of_another_kind_in_a_later_layer_is_an_error(load):
    with pytest.raises(ConfigError, match=r"prior.kind=swiss_roll has no num_modes"):
        load("prior: {kind: swiss_roll}\nmodel: {latent_dim: 2}", "prior: {num_modes: 3}")


def test_repeating_the_kind_does_not_hide_an_earlier_mistake(load):
    with pytest.raises(ConfigError, match=r"prior.kind=gaussian has no num_modes"):
        load("prior: {num_modes: 3}", overrides=["prior.kind=gaussian"])


def test_an_unknown_key_is_not_dropped_with_the_old_kind(load):
    with pytest.raises(ConfigError, match=r"prior.num_mode: unknown key.*did you mean"):
        load("prior: {kind: mixture, num_mode: 3}", overrides=["prior.kind=gaussian"])


def test_steps_take_back_the_epochs_of_an_earlier_layer(load, tmp_path):
    loaded = load(overrides=["train.epochs=2"])
    assert (loaded.config.train.steps, loaded.config.train.epochs) == (None, 2)
    assert loaded.notes == (
        f"train.steps=5 ({tmp_path}/0.yaml:3) dropped: train.epochs is set later",
    )


def test_steps_and_epochs_in_one_layer_contradict_each_other(load):
    with pytest.raises(ConfigError, match="exactly one"):
        load(overrides=["train.epochs=2", "train.steps=3"])


def test_arguments_of_a_custom_prior_may_have_any_names(load):
    loaded = load(
        "prior: {kind: custom, path: 'my.module:Prior', arguments: {a: 1, b: {c: [2]}}}",
        overrides=["prior.arguments.d=x"],
    )
    assert loaded.config.prior.arguments == {"a": 1, "b": {"c": [2]}, "d": "x"}


@pytest.mark.parametrize(
    ("workers", "fewest", "most"), [("3", 3, 3), ("[1, 4]", 1, 4), ("[2, 2]", 2, 2)]
)
def test_workers_are_a_number_or_fewest_and_most(workers, fewest, most):
    items = ["run.name=x", "data.train=builtin://digits/train", "train.steps=1"]
    launch = load_config([], [*items, f"launch.workers={workers}"]).config.launch
    assert (launch.fewest_workers, launch.most_workers) == (fewest, most)


@pytest.mark.parametrize("workers", ["[4, 1]", "[0, 2]", "[1, 2, 3]", "[1]"])
def test_other_forms_of_workers_are_refused(workers):
    items = ["run.name=x", "data.train=builtin://digits/train", "train.steps=1"]
    with pytest.raises(ConfigError, match=r"launch\.workers"):
        load_config([], [*items, f"launch.workers={workers}"])


@pytest.mark.parametrize("workers", ["4", "[1, 4]"])
def test_several_workers_do_not_share_a_gpu(workers):
    base = ["run.name=x", "data.train=builtin://digits/train", "train.steps=1"]
    items = [*base, f"launch.workers={workers}", "launch.gpus_per_worker=0.25"]
    with pytest.raises(ConfigError, match=r"gpus_per_worker: .*got 0\.25 for 4 workers.*use "):
        load_config([], items)
    for right in ("launch.gpus_per_worker=1", "launch.workers=1", "launch.kind=local"):
        load_config([], [*items, right])


def test_defaults_that_another_kind_brings_along_are_noted():
    base = ["run.name=a", "data.train=x.tar", "train.steps=5"]
    phase = "phases.discriminator.optimizer"
    notes = load_config([], [*base, f"{phase}.kind=adamw"]).notes
    assert notes == (
        f"{phase}.kind is now adamw, with its own defaults: "
        "lr=0.001 instead of 0.002, betas=[0.9, 0.999] instead of [0.5, 0.999]",
    )
    said = [f"{phase}={{kind: adamw, lr: 2e-3, betas: [0.5, 0.999]}}"]
    assert load_config([], [*base, *said]).notes == ()
    assert load_config([], [*base, "model.kind=conv", "prior.kind=laplace"]).notes == ()
