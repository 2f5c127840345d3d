"""YAML files and overrides: mutated configurations and made-up text."""

from pathlib import Path
from typing import Any

import pytest
from helpers.fuzzing import MIB, bounded, fuzz, json_values, mutated
from hypothesis import strategies as st

from aae_dist.config import dump_yaml, load_config
from aae_dist.config.load import StoredFile, config_from_stored, split_items, with_overrides
from aae_dist.config.yaml import YamlProblem, dump as dump_tree, parse, read_overrides
from aae_dist.sweeps.plan import load_sweep

CONFIGS = sorted((Path(__file__).parents[2] / "configs").rglob("*.yaml"))
FILES = [path.read_bytes() for path in CONFIGS]
BASE = ["data.train=builtin://digits/train", "train.steps=1", "run.storage=/runs", "run.name=x"]
CONFIG_BYTES = 192 * MIB
PIECES = st.sampled_from(
    (
        *("a: ", "- ", "&x ", "*x ", "!!int ", "? ", "| ", "> ", "<<: ", "{", "}", "[", "]", ","),
        *("'", '"', "#", " ", "\n", "  ", "\t", "%YAML 9.9\n", "---\n", "...\n", "\u2028", "\x85"),
        *("train", "steps: 3", "1e999", "0x" + "f" * 90, "9" * 99, ".nan", "~", "\\ud800", "é"),
        *("*" * 20, "\ufeff", "sweep: {space: {", "run.name", "=", "!!python/none ", "1_000", "::"),
    )
)
TEXTS = st.one_of(st.lists(PIECES, max_size=30).map("".join), st.text(max_size=60))


def loaded(files: list[bytes], overrides: list[str]) -> None:
    stored = [StoredFile(f"s3://b/{n}.yaml", data) for n, data in enumerate(files)]
    shown = b"\n\n".join([*files, *(o.encode("utf-8", "surrogatepass") for o in overrides)])
    for load in (load_config, load_sweep):
        with bounded("configuration", shown, CONFIG_BYTES):
            load(stored, overrides)


@fuzz(data=mutated(FILES))
def test_files_that_were_changed(data: bytes) -> None:
    loaded([data], BASE)


@fuzz(text=TEXTS)
def test_files_of_odd_text(text: str) -> None:
    loaded([text.encode("utf-8", "surrogatepass")], BASE)
    with bounded("YAML", text.encode("utf-8", "surrogatepass"), CONFIG_BYTES, kind=YamlProblem):
        tree = parse(text, "x.yaml")
        assert tree is not None


_KEYS = st.one_of(
    st.sampled_from(
        (
            *(
                "train.steps",
                "run.storage",
                "run.name",
                "model",
                "data.train",
                "prior",
                "prior.kind",
            ),
            *("method.kind", "phases.encoder.optimizer.lr", "launch.workers", "sweep.space", "x.y"),
            *("data.image_keys", "data.resize", "wandb.tags", "train.best_metric", "model.encoder"),
        )
    ),
    st.text(max_size=10),
)
_VALUES = st.one_of(
    TEXTS, json_values().map(lambda value: dump_tree(value) if _is_plain(value) else "x")
)


def _is_plain(value: Any) -> bool:
    try:
        return bool(dump_tree(value))
    except Exception:  # lone surrogates
        return False


@fuzz(pairs=st.lists(st.tuples(_KEYS, _VALUES), min_size=1, max_size=3))
def test_overrides(pairs: list[tuple[str, str]]) -> None:
    overrides = [f"{key}={value}" for key, value in pairs]
    loaded([], [*BASE, *overrides])
    with bounded("overrides", repr(overrides).encode(), CONFIG_BYTES):
        read_overrides(split_items(overrides)[1])


@fuzz(pairs=st.lists(st.tuples(_KEYS, _VALUES), min_size=1, max_size=3))
def test_overrides_of_a_trained_run(pairs: list[tuple[str, str]]) -> None:
    overrides = [f"{key}={value}" for key, value in pairs]
    base = load_config([], BASE).config
    with bounded("overrides", repr(overrides).encode(), CONFIG_BYTES):
        with_overrides(base, overrides)


@fuzz(tree=json_values(), section=st.sampled_from(("model", "data", "prior", "method", "x")))
def test_stored_configurations(tree: Any, section: str) -> None:
    base = load_config([], BASE).config.model_dump(mode="json")
    with bounded("stored configuration", repr(tree).encode(), CONFIG_BYTES):
        assert dump_yaml(config_from_stored({**base, section: tree}))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_files_cut_in_half(path: Path) -> None:
    data = path.read_bytes()
    loaded([data[: len(data) // 2]], BASE)


def test_a_case_that_costs_too_much_fails() -> None:
    with pytest.raises(AssertionError, match="s of CPU time"), bounded("x", most_seconds=0.0):
        sum(range(10_000))
    with pytest.raises(AssertionError, match="MiB"), bounded("x", most_bytes=16 * MIB):
        b"x" * (200 * MIB)
    with (
        pytest.raises(AssertionError, match="control characters"),
        (
            bounded("x", kind=ValueError)  # errors of ours escape them
        ),
    ):
        raise ValueError("a\x1b[2J")
    with pytest.raises(KeyError), bounded("x"):
        raise KeyError
