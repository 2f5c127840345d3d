"""What a configuration may hold: numbers and sizes that every document of a run can hold."""

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from aae_dist.config import RunConfig, config_from_tree, dump_yaml, load_config, yaml
from aae_dist.config.load import GivenTree, from_plain
from aae_dist.config.sections import LARGEST, LARGEST_SAMPLES
from aae_dist.config.sections.sweep import SweepFile
from aae_dist.errors import ConfigError
from aae_dist.storage import open_storage
from aae_dist.storage.documents import parse_json
from aae_dist.training.folder import Outcome, RunFolder, RunState

BASE = ["run.name=a", "data.train=s3://b/x.tar", "train.steps=5"]
MOST = 2**63 - 1


def integers(schema: Any) -> Iterator[dict[str, Any]]:
    """Yield every part of a JSON schema that describes a whole number."""
    if isinstance(schema, dict):
        if schema.get("type") == "integer":
            yield schema
        for part in schema.values():
            yield from integers(part)
    elif isinstance(schema, list):
        for part in schema:
            yield from integers(part)


@pytest.mark.parametrize("root", [RunConfig, SweepFile])
def test_every_whole_number_of_a_configuration_has_a_bound(root):
    found = list(integers(root.model_json_schema()))
    assert len(found) > 10
    for one in found:
        assert min(one.get("maximum", 2**70), one.get("exclusiveMaximum", 2**70) - 1) <= MOST, one


HUGE = 99999999999999999999


@pytest.mark.parametrize(
    "key",
    [
        *("train.steps", "train.global_batch_size", "train.log_every_steps", "run.seed"),
        *("data.cache.max_bytes", "data.image_size", "launch.workers", "checkpoint.keep"),
        *("model.latent_dim", "launch.max_failures", "train.max_rollbacks", "data.threads"),
    ],
)
def test_a_whole_number_beyond_64_bits_is_one_line_that_names_it(key):
    with pytest.raises(ConfigError, match=f"{key}: should be .*(at most|less than) .*{HUGE}") as e:
        load_config([], [*BASE, f"{key}={HUGE}"])
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    "key",
    [
        *("launch.hang_timeout_seconds", "launch.max_wait_minutes", "checkpoint.every_seconds"),
        *("data.cache.shard_seconds", "launch.resize_seconds"),
    ],
)
def test_a_time_beyond_what_timers_hold_is_one_line(key):
    load_config([], [*BASE, f"{key}=1e9"])
    with pytest.raises(ConfigError, match=rf"{key}: should be at most 1000000000.0, got 1e\+300"):
        load_config([], [*BASE, f"{key}=1e300"])


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (str(HUGE), "64 bits"),
        (f"[[{-HUGE}]]", "64 bits"),
        (".nan", "finite"),
        ("{b: [-.inf]}", "finite"),
        ("[" * 20 + "]" * 20, "nested at most 16 deep"),
    ],
)
def test_arguments_hold_only_what_documents_of_a_run_can_hold(value, words):
    items = ["prior.kind=custom", "prior.path=a.b:C", f"prior.arguments.x={value}"]
    with pytest.raises(ConfigError, match=rf"prior.arguments: should be .*{words}") as caught:
        load_config([], [*BASE, *items])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"x": ["a\0"]}, "without a NUL"), ({"": 1}, "neither empty"), ({"x": {"<<": 1}}, "nor <<")],
)
def test_arguments_of_python_hold_only_what_a_file_can_hold(arguments, words):
    prior = {"kind": "custom", "path": "a.b:C", "arguments": arguments}
    tree = {"run": {"name": "a"}, "data": {"train": "b"}, "train": {"steps": 1}, "prior": prior}
    with pytest.raises(ConfigError, match=f"prior.arguments: should be .*{words}"):
        config_from_tree(tree)


@pytest.mark.parametrize(
    "section", [{"run": {"name": "a", "title": "x\0"}}, {"run": {"name": "a"}}]
)
def test_a_nul_from_python_is_one_line(section):
    data = {"train": "b"} if "title" in section["run"] else {"train": ["b", "c\0"]}
    with pytest.raises(ConfigError, match=r"(run.title|data.train): holds a NUL"):
        config_from_tree({**section, "data": data, "train": {"steps": 1}})


def test_more_samples_than_can_be_counted_are_refused():
    most = LARGEST_SAMPLES // LARGEST
    load_config([], [*BASE, f"train.steps={LARGEST}", f"train.global_batch_size={most}"])
    with pytest.raises(ConfigError, match=r"train.steps: .* more than 2\^62 samples"):
        load_config([], [*BASE, f"train.steps={LARGEST}", f"train.global_batch_size={2 * most}"])


@pytest.mark.parametrize(("count", "size"), [(400, 20), (600, 20), (400, 80)])
def test_a_configuration_that_is_accepted_can_be_read_again(tmp_path, monkeypatch, count, size):
    # 20,000 and 1 MiB take seconds.
    monkeypatch.setattr(yaml, "LARGEST_NODES", 800)
    monkeypatch.setattr(yaml, "LARGEST_BYTES", 30_000)
    shards = [f"s3://b/{n:06d}{'x' * size}.tar" for n in range(count)]
    tree = {"run": {"name": "a"}, "data": {"train": shards}, "train": {"steps": 5}}
    given = [GivenTree("config", from_plain(tree, "config"))]
    if (count, size) != (400, 20):
        with pytest.raises(ConfigError, match="data.train: a configuration may have 800 v") as e:
            load_config(given)
        assert "\n" not in str(e.value)
        assert len(str(e.value)) < 300
        return
    config = load_config(given).config
    file = tmp_path / "config.yaml"
    file.write_text(dump_yaml(config))
    assert load_config([file]).config == config


EDGES = (1, 2, 3, 2**31, 2**31 + 1, LARGEST - 1, LARGEST)
counts = st.sampled_from(EDGES) | st.integers(1, LARGEST)
numbers = st.sampled_from((5e-324, 1e-300, 1.0, 1e300, 1.7976931348623157e308))
seeds = st.sampled_from((0, 2**32, MOST - 1, MOST))
texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=5)
leaf = st.none() | st.booleans() | st.integers(-MOST - 1, MOST) | numbers | texts
arguments = st.recursive(leaf, lambda inner: st.lists(inner, max_size=2), max_leaves=16)


@settings(max_examples=25, deadline=None)
@given(counts, counts, seeds, numbers, arguments, counts, numbers)
def test_every_document_of_an_accepted_configuration_is_read_again(
    tmp_path_factory, steps, batch, seed, rate, value, step, score
):
    folder = tmp_path_factory.mktemp("run")
    tree = {
        "run": {"name": "a", "storage": str(folder), "seed": seed},
        "data": {"train": "s3://b", "cache": {"max_bytes": step}},
        "train": {"steps": steps, "global_batch_size": batch, "log_every_steps": step},
        "checkpoint": {"every_seconds": min(rate, 1e9)},
        "launch": {"workers": 1},
        "phases": {"generator": {"optimizer": {"lr": rate}}},
        "prior": {"kind": "custom", "path": "a.b:C", "arguments": {"x": value}},
    }
    if steps * batch > LARGEST_SAMPLES:
        with pytest.raises(ConfigError, match=r"train.steps: .*2\^62"):
            config_from_tree(tree)
        return
    config = config_from_tree(tree)
    run = RunFolder(config)
    assert run.register(config, steps).total_steps == steps
    assert run.register(config, steps).total_steps == steps  # reads it
    run.write_summary(Outcome(RunState.FINISHED, steps, {"m": score, "n": -score}, ""), config)
    found = run.read_summary()
    assert found is not None
    assert found.step == steps
    assert config_from_tree(found.config) == config
    run.write_config(config)
    path = folder / "a" / "config.yaml"
    assert load_config([path]).config == config
    parse_json(open_storage(str(folder / "a")).read("summary.json"))
