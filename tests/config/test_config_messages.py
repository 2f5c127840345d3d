import pytest

from aae_dist.config import config_from_tree, load_config
from aae_dist.errors import ConfigError

GOOD = {"run": {"name": "a"}, "data": {"train": "s3://b/x.tar"}, "train": {"steps": 5}}
BASE = ["run.name=a", "data.train=s3://b/x.tar", "train.steps=5"]


def message(*overrides):
    with pytest.raises(ConfigError) as caught:
        load_config([], [*BASE, *overrides])
    return str(caught.value)


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("train.setps=3", ["train.setps: unknown key, got 3", "did you mean train.steps?"]),
        ("train.workers=3", ["did you mean launch.workers?"]),
        ("trainer.steps=3", ["trainer: unknown key", "did you mean train?"]),
        ("data.max_bad_in_a_row=3", ["did you mean data.max_consecutive_bad_samples?"]),
        ("train.max_roll_backs=3", ["did you mean train.max_rollbacks?"]),
        ("train.max_stuck_seconds=3", ["did you mean launch.hang_timeout_seconds?"]),
        ("train.batch=3", ["train.batch: unknown key", "known keys: steps, epochs"]),
        ("train.steps=many", ['train.steps: should be a whole number, got "many"']),
        ("train.steps=true", ["train.steps: should be a whole number, got true"]),
        ("train.steps=3.0", ["train.steps: should be a whole number, got 3.0"]),
        ("train.steps=0", ["train.steps: should be greater than 0, got 0"]),
        ("checkpoint.every_seconds=.inf", ["checkpoint.every_seconds: should be a finite number"]),
        ("checkpoint.every_seconds=.nan", ["checkpoint.every_seconds: should be a finite number"]),
        ("checkpoint.every_seconds='3'", ["should be a number", 'got "3"']),
        ("train=3", ["train: should be a map of keys, got 3"]),
        ("run.name=2024", ["run.name: should be text, got 2024", "quote text"]),
        (
            "run.name=a/b",
            ["run.name: should be a name of letters, digits and . - _ (", 'got "a/b"', "; try a-b"],
        ),
        (
            "run.name=//",
            ["run.name: should be a name of letters", 'got "//" (override run.name=//)'],
        ),
        ("data.cache.dir=here", ["data.cache.dir: should be a path that begins with / or ~"]),
        ("prior={kind: custom, path: own}", ["should be an import path such as package.module:C"]),
        ("data.train=3", ["data.train: should be text or a list", "got 3"]),
        ("data.train=[]", ["data.train: should be text or a list of 1 or more, got []"]),
        ("data.train=[a, 1]", ["data.train.1: should be text, got 1"]),
        ("data.train.x=1", ["data.train: should be text or a list"]),
        ("data.channels=2", ["data.channels: images have 1 (grey) or 3 (colour) (got 2)"]),
        ("launch.kind=rya", ["launch.kind: should be one of ray, local", "did you mean ray?"]),
        ("launch.gpus_per_worker=atuo", ["should be a number or auto", "did you mean auto?"]),
        ("model.kind=mpl", ["model.kind: should be one of mlp, conv, resnet", "did you mean mlp?"]),
        (
            "prior.kind=swis_roll",
            ["prior.kind: should be one of gaussian, mixture, swiss_roll", "mean swiss_roll?"],
        ),
        ("prior.kind=null", ["prior.kind is missing", "one of gaussian, mixture"]),
        ("prior.kind=[a]", ["prior.kind: should be one of", 'got ["a"]']),
        ("prior={kind: mixture, num_modes: 0}", ["prior.num_modes: should be greater than 0"]),
        ("prior.num_modes=3", ["prior.kind=gaussian has no num_modes", "set prior.kind=mixture"]),
        ("prior.kind=custom", ["prior.path is missing", "`package.module:Class`"]),
        (
            "phases.generator.schedule={kind: linear, foo: 1}",
            ["phases.generator.schedule.foo: unknown key, got 1", "decay_from"],
        ),
        (
            "phases.generator.optimizer.betas=[0.5, 2]",
            ["phases.generator.optimizer.betas.1: should be less than 1.0, got 2"],
        ),
        ("prior.kind=swiss_roll", ["model.latent_dim=2", "(override prior.kind=swiss_roll)"]),
        ("train.steps", ["override 'train.steps'", "KEY=VALUE", "for example train.steps=1000"]),
        ("train.steps=", ["no value", "train.steps=null"]),
        ("=3", ["'' is not a dotted key"]),
        ("train..steps=3", ["'train..steps' is not a dotted key"]),
        ("data.train={0..1}.tar", ["not YAML", "quote text"]),
        ("data.train=*.tar", ["not YAML", "quote text"]),
        ("train={steps: 1, steps: 2}", ["duplicate key"]),
    ],
)
def test_one_mistake_makes_one_line_that_says_what_was_got_and_what_to_do(override, parts):
    text = message(override)
    assert "\n" not in text
    assert override.split("=")[0].split(".")[0] in text
    for part in parts:
        assert part in text


def test_the_tag_of_a_union_is_not_part_of_the_path():
    assert "prior.mixture" not in message("prior={kind: mixture, num_modes: 0}")


def test_required_keys_are_named_with_an_example():
    with pytest.raises(ConfigError) as caught:
        load_config([], ["train.steps=5"])
    assert str(caught.value).splitlines() == [
        "overrides: 2 errors",
        "  run.name is missing; for example run.name=my-first-run",
        "  data.train is missing; for example data.train=builtin://digits/train",
    ]


def test_all_mistakes_are_told_at_once_each_with_its_line(tmp_path):
    file = tmp_path / "x.yaml"
    file.write_text("run: {name: a}\ntrain:\n  setps: 3\n  steps: many\n")
    with pytest.raises(ConfigError) as caught:
        load_config([file], ["prior={kind: mixture, num_modes: 0}"])
    first, *lines = str(caught.value).splitlines()
    assert first == f"{file} + overrides: 4 errors"
    assert any("data.train is missing" in line for line in lines)
    assert any("prior.num_modes" in line and "(override prior=" in line for line in lines)
    assert any("train.steps" in line and f"({file}:4)" in line for line in lines)
    assert any("train.setps" in line and f"({file}:3)" in line for line in lines)


def test_contradictions_between_sections_are_told_together():
    text = message("prior.kind=swiss_roll", "data.lanes=3", "method.kind=variational")
    assert "errors" in text.splitlines()[0]
    assert sum("prior.kind: swiss_roll" in line for line in text.splitlines()) == 2
    assert "  data.lanes: must divide" in text
    assert "  posterior.kind: method variational needs" in text


def test_contradictions_are_told_beside_mistakes_in_other_sections():
    text = message("checkpoint.keep=0", "data.lanes=3", "prior.kind=swiss_roll", "launch.workers=x")
    first, *found = text.splitlines()
    assert first == "overrides: 4 errors"
    assert [line.split(":")[0].strip() for line in found] == [
        "checkpoint.keep",
        "launch.workers",
        "prior.kind",
        "data.lanes",
    ]


def test_a_contradiction_with_a_section_that_is_wrong_itself_is_not_made_up():
    text = message(
        "train.steps=many", "data.lanes=3", "prior.kind=swiss_roll", "model.latent_dim=x"
    )
    assert text.splitlines()[0] == "overrides: 2 errors"


def test_overrides_that_cannot_be_read_are_told_with_the_rest():
    with pytest.raises(ConfigError) as caught:
        load_config([], ["run.name=a", "data.train=", "train.steps", "launch.workers=0"])
    first, *found = str(caught.value).splitlines()
    assert first == "overrides: 3 errors"
    assert ["data.train=" in found[0], "train.steps" in found[1]] == [True, True]
    assert "launch.workers: should be" in found[2]


def test_all_unreadable_files_and_overrides_are_told_together(tmp_path):
    (tmp_path / "list.yaml").write_text("- a\n")
    (tmp_path / "twice.yaml").write_text("a: 1\na: 2\n")
    (tmp_path / "binary.yaml").write_bytes(b"a: \xff\n")
    names = ["gone.yaml", "list.yaml", "twice.yaml", "binary.yaml", "."]
    with pytest.raises(ConfigError) as caught:
        load_config([tmp_path / name for name in names], ["train.steps"])
    text = str(caught.value)
    assert ": 6 errors\n" in text
    for part in [
        "gone.yaml: no such file",
        "list.yaml:1: contains a list",
        "twice.yaml:2: duplicate key",
    ]:
        assert part in text
    assert "binary.yaml: not UTF-8 text" in text
    assert "cannot be read" in text


def test_a_long_value_is_cut():
    assert len(message("train.steps=" + "x" * 5000)) < 6000


def test_a_tree_of_plain_values_is_checked_in_the_same_way():
    assert config_from_tree(GOOD).train.steps == 5
    with pytest.raises(ConfigError, match="train.setps: unknown key"):
        config_from_tree({**GOOD, "train": {"setps": 5}})


def test_a_kind_switch_inside_one_tree_is_no_switch():
    with pytest.raises(ConfigError, match="has no num_modes"):
        config_from_tree({**GOOD, "prior": {"num_modes": 5}})


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["prior.kind=mixture", "model.latent_dim=3"], "even model.latent_dim (got 3); use 4"),
        (["prior.kind=sphere", "model.latent_dim=1"], "sphere needs at least 2 dimensions"),
        (["prior.kind=categorical", "model.latent_dim=1"], "categorical needs at least 2"),
        (["prior.kind=swiss_roll", "model.latent_dim=3"], "in 2 dimensions only"),
        (
            ["method.reconstruction_loss=bce", "model.decoder_output=linear"],
            "bce needs model.decoder_output=sigmoid",
        ),
        (["method={gradient_ratio: 0.5, weight: 2.0}"], "replaces method.weight"),
    ],
)
def test_parts_that_do_not_fit_each_other_are_refused(overrides: list[str], reason: str) -> None:
    assert reason in message(*overrides)
