import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings, strategies as st

from aae_dist.config import config_from_stored, config_from_tree, dump_yaml, load_config

CONFIGS = Path(__file__).parents[2] / "configs"

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)
letters = st.characters(codec="utf-8", exclude_characters="\x00")
# Variables and home folders in addresses are refused: nothing would expand them.
in_urls = st.characters(codec="utf-8", exclude_characters="\x00~$%")
urls = st.text(in_urls, max_size=20).map(lambda text: "s3://bucket/" + text)
keys = st.text(letters, min_size=1).filter(lambda key: key != "<<")
positive = st.floats(min_value=1e-300, allow_infinity=False, allow_nan=False)
priors = st.one_of(
    st.builds(lambda std: {"kind": "gaussian", "std": std}, positive),
    st.builds(lambda num: {"kind": "mixture", "num_modes": num}, st.integers(1, 10**15)),
    st.builds(
        lambda arguments: {"kind": "custom", "path": "a.b:C", "arguments": arguments},
        st.dictionaries(keys, st.text(letters) | positive),
    ),
)


@settings(
    max_examples=25,
    deadline=None,
    phases=[Phase.reuse, Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(name=names, train=st.one_of(urls, st.lists(urls, min_size=1)), prior=priors, lr=positive)
@pytest.mark.run
def test_a_dumped_configuration_loads_as_an_equal_one(tmp_path, name, train, prior, lr):
    tree = {
        "run": {"name": name, "storage": "/runs"},
        "data": {"train": train},
        "prior": prior,
        "train": {"steps": 3},
        "phases": {"discriminator": {"optimizer": {"kind": "sgd", "lr": lr}}},
    }
    config = config_from_tree(tree)
    file = tmp_path / "config.yaml"
    file.write_text(dump_yaml(config), encoding="utf-8", newline="")
    config = load_config([file]).config  # an address as s3://bucket/ is normalised
    file.write_text(dump_yaml(config), encoding="utf-8", newline="")
    assert load_config([file]).config == config
    assert config_from_tree(config.model_dump(mode="json")) == config


def test_a_configuration_pickles_for_ray_and_is_frozen():
    config = config_from_tree(
        {"run": {"name": "a"}, "data": {"train": "s3://b"}, "train": {"steps": 1}}
    )
    assert pickle.loads(pickle.dumps(config)) == config
    with pytest.raises(ValueError, match="frozen"):
        config.run.name = "b"


def test_a_stored_configuration_may_have_the_former_names_of_keys():
    stored = {
        "run": {"name": "a"},
        "data": {"train": "s3://b", "max_bad_in_a_row": 7},
        "train": {"steps": 1, "max_roll_backs": 2},
        "launch": {"max_stuck_seconds": None},
    }
    config = config_from_stored(stored)
    assert config.data.max_consecutive_bad_samples == 7
    assert config.train.max_rollbacks == 2
    assert config.launch.hang_timeout_seconds is None
    assert config_from_stored(config.model_dump(mode="json")) == config
    assert "max_roll_backs" in stored["train"]


# What makes many runs is tested with sweeps.
PARTS = sorted(path for path in CONFIGS.glob("*/*.yaml") if path.parent.name != "sweep")


@pytest.mark.parametrize("part", PARTS, ids=lambda path: path.stem)
def test_every_example_file_composes_with_the_quickstart(part):
    loaded = load_config([CONFIGS / "quickstart.yaml", part])
    assert loaded.config.run.name == "quickstart"


@pytest.mark.run
def test_loading_imports_no_torch_numpy_or_ray():
    code = (
        "import sys; from pathlib import Path; from aae_dist.config import load_config\n"
        f"load_config([Path({str(CONFIGS / 'quickstart.yaml')!r})])\n"
        "bad = {'torch', 'numpy', 'ray', 'wandb'} & set(sys.modules)\n"
        "sys.exit(f'imported {bad}' if bad else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
