import pytest

from aae_dist.config import load_config
from aae_dist.config.load import absolute_storage
from aae_dist.errors import ConfigError, LaunchError
from aae_dist.storage import open_storage
from aae_dist.sweeps.plan import load_sweep

BASE = ["run.name=a", "data.train=s3://b/x.tar", "train.steps=5"]


@pytest.fixture(autouse=True)
def home_and_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)


def test_the_default_storage_lies_in_the_home_folder():
    assert load_config([], BASE).config.run.storage == "/home/me/aae_dist/runs"


def test_relative_paths_count_from_the_current_directory(tmp_path):
    config = load_config(
        [],
        [
            *BASE,
            "run.storage=runs",
            "run.init_from=../other",
            "data.train=['shards/{0..3}.tar', ~/x.tar, s3://b/x.tar]",
            "data.validation=builtin://digits/validation",
            "prior={kind: run, uri: runs/teacher}",
        ],
    ).config
    assert config.prior.uri == f"{tmp_path}/runs/teacher"
    assert config.run.storage == f"{tmp_path}/runs"
    assert config.run.init_from == f"{tmp_path.parent}/other"
    assert config.data.train == (
        f"{tmp_path}/shards/{{0..3}}.tar",
        "/home/me/x.tar",
        "s3://b/x.tar",
    )
    assert config.data.validation == "builtin://digits/validation"


@pytest.mark.parametrize("uri", ["s3://b/runs", "gs://b", "az://b/c", "file:///x", "/abs/path"])
def test_urls_and_absolute_paths_stay(uri):
    assert absolute_storage(uri) == uri


def test_inside_a_ray_job_relative_paths_stay_for_the_launcher_to_refuse(monkeypatch):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert absolute_storage("runs") == "runs"
    assert absolute_storage("~/runs") == "/home/me/runs"
    assert load_config([], [*BASE, "run.storage=runs"]).config.run.storage == "runs"


def test_values_of_the_wrong_type_are_left_for_the_sections():
    with pytest.raises(Exception, match=r"run.storage: should be text"):
        load_config([], [*BASE, "run.storage=3"])


@pytest.mark.parametrize(
    ("key", "path", "what"),
    [
        ("run.storage", "$HOME/x", "$HOME"),
        ("run.storage", "${HOME}/x", "${HOME}"),
        ("run.storage", "/runs/${USER:-me}", "${USER:-me}"),
        ("run.storage", "s3://$BUCKET/runs", "$BUCKET"),
        ("run.storage", "s3://b/$USER", "$USER"),
        ("run.storage", "file:///$HOME/x", "$HOME"),
        ("run.storage", "$(pwd)/x", "$("),
        ("run.storage", "%USERPROFILE%/x", "%USERPROFILE%"),
        ("run.storage", "~nobody-of-that-name/x", "~nobody-of-that-name"),
        ("run.storage", "/data/~/x", "~"),
        ("run.storage", "file:///~/x", "~"),
        ("run.storage", "s3://b/~/x", "~"),
        ("run.init_from", "$RUNS/a", "$RUNS"),
        ("data.train", "$DATA/{{0..3}}.tar", "$DATA"),
        ("data.train", "[/a.tar, s3://$B/b.tar]", "$B"),
        ("data.validation", "https://$HOST/a.tar", "$HOST"),
        ("data.cache.dir", "/scratch/$SLURM_JOB_ID", "$SLURM_JOB_ID"),
        ("model.encoder", "{path: a.b:C, weights: $W/a.safetensors}", "$W"),
        ("prior", "{kind: run, uri: $RUNS/a}", "$RUNS"),
        ("evaluation.features", "{export: $RUNS/a.pt2}", "$RUNS"),
    ],
)
def test_a_variable_or_a_home_that_nothing_expands_is_one_line(key, path, what):
    path = path.replace("{{", "{").replace("}}", "}")
    with pytest.raises(ConfigError) as caught:
        load_config([], [*BASE, f"{key}={path}" if path[0] in "[{" else f"{key}='{path}'"])
    text = str(caught.value)
    assert "\n" not in text
    assert key.partition(".")[0] in text
    assert what in text
    assert "as it is" in text


@pytest.mark.parametrize(
    "name",
    ["a$", "$5", "cost_$folder$", "a~", "~a~b", "100%", "a%20b", "%E4%BD%A0%C3%A4", "9%_a_5%"],
)
def test_other_dollars_and_tildes_are_parts_of_names(name, tmp_path):
    for place in (f"{tmp_path}/{name}/x.tar", f"s3://b/{name}", f"https://h/~me/{name}"):
        assert load_config([], [*BASE, f"data.train='{place}'"]).config.data.train == place


def test_a_folder_of_such_a_name_is_taken_as_it_is(tmp_path):
    (tmp_path / "$HOME").mkdir()
    config = load_config([], [*BASE, "run.storage='$HOME'"]).config
    assert config.run.storage == f"{tmp_path}/$HOME"
    assert open_storage(config.run.storage).uri == f"{tmp_path}/$HOME"


def test_an_address_of_a_command_is_checked_as_well(tmp_path):
    for uri in ("$HOME/runs", f"{tmp_path}/$RUNS/a", "s3://$BUCKET", "~nobody-of-that-name/x"):
        with pytest.raises(LaunchError, match="as it is") as caught:
            open_storage(uri)
        assert "\n" not in str(caught.value)


def test_a_sweep_names_it_once():
    items = [*BASE, "sweep.name=s", "sweep.space.model.latent_dim={grid: [2, 4]}"]
    with pytest.raises(ConfigError, match=r"run.storage: .*\$HOME.* as it is") as caught:
        load_sweep([], [*items, "run.storage='$HOME/x'"])
    assert "\n" not in str(caught.value)
