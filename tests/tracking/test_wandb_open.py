import hashlib
import shutil

import pytest

from aae_dist.config import RunConfig, load_config
from aae_dist.storage import open_storage
from aae_dist.tracking import open_wandb
from aae_dist.tracking.wandb_sink import (
    copy_files,
    decide_mode,
    has_key,
    start_request,
)
from aae_dist.training.folder import RunFolder
from aae_dist.utils.text import redacted

KEY = {"WANDB_API_KEY": "k" * 40}


def config(**run: str) -> RunConfig:
    return RunConfig.model_validate(
        {
            "run": {"name": "digits", "storage": "/runs", **run},
            "data": {"train": ("s3://bucket/train", "https://me:word@host/a.tar?Signature=abc")},
            "train": {"steps": 1},
        }
    )


@pytest.mark.parametrize(
    ("wanted", "environment", "installed", "mode"),
    [
        ("auto", KEY, True, "online"),
        ("auto", {}, True, "disabled"),
        ("auto", KEY, False, "disabled"),
        ("online", KEY, True, "online"),
        ("online", {}, True, "offline"),
        ("offline", KEY, True, "offline"),
        ("disabled", KEY, True, "disabled"),
        ("auto", {"WANDB_MODE": "offline"}, True, "offline"),
        ("auto", {"WANDB_MODE": "dryrun"}, True, "offline"),
        ("online", {"WANDB_MODE": "disabled", **KEY}, True, "disabled"),
        ("offline", {"WANDB_MODE": "online", **KEY}, True, "online"),
    ],
)
def test_mode_follows_the_configuration_the_environment_and_the_key(
    wanted, environment, installed, mode, tmp_path
):
    decided, line = decide_mode(wanted, environment, installed, tmp_path)
    assert decided == mode
    assert "\n" not in line


def test_being_off_is_said_once_and_why(tmp_path):
    assert "no API key" in decide_mode("auto", {}, True, tmp_path)[1]
    assert "not installed" in decide_mode("auto", KEY, False, tmp_path)[1]
    assert decide_mode("disabled", {}, True, tmp_path)[1] == ""
    assert decide_mode("auto", KEY, True, tmp_path)[1] == ""


def test_a_key_is_found_in_netrc_for_its_server_only(tmp_path):
    (tmp_path / ".netrc").write_text("machine wandb.example.com login user password secret\n")
    assert not has_key({}, tmp_path)
    assert has_key({"WANDB_BASE_URL": "https://wandb.example.com"}, tmp_path)
    assert not has_key({"NETRC": str(tmp_path / "none")}, tmp_path)


@pytest.mark.parametrize("text", [b"this is not netrc\n", b"machine \x80 login a password b"])
def test_a_broken_netrc_is_no_key(text, tmp_path):
    (tmp_path / ".netrc").write_bytes(text)
    assert not has_key({}, tmp_path)


@pytest.mark.parametrize(
    "odd", [{"WANDB_BASE_URL": "http://[::1"}, {"NETRC": "~nobody-of-this-name/x"}]
)
def test_a_variable_that_names_no_place_is_no_key(odd, tmp_path):
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password secret\n")
    assert not has_key(odd, tmp_path)


def test_a_run_has_an_id_of_its_own_from_its_first_start_on(tmp_path):
    # Two containers that keep their runs at one path, each on a disk of its own.
    def start(place):
        return RunFolder(config(storage=str(tmp_path / place), name="quickstart"))

    first, second = start("a"), start("b")
    ids = {first.register(config(), 10).id, second.register(config(), 10).id}
    assert len(ids) == 2
    assert first.register(config(), 20).id in ids
    # A new start after `rm -r` is another run.
    shutil.rmtree(tmp_path / "a")
    assert first.register(config(), 10).id not in ids


def test_a_run_of_an_older_version_keeps_the_id_that_it_has(tmp_path):
    run = config(storage=str(tmp_path))
    folder = RunFolder(run)
    folder.write_config(run)
    name = f"{run.run.storage}\n{run.run.name}"
    assert folder.register(run, 10).id == hashlib.sha256(name.encode()).hexdigest()[:16]


@pytest.mark.parametrize(
    ("spellings", "place"),
    [
        (("s3://b/runs", "s3://b/runs/", "S3://b/runs", "s3://b/runs//"), "s3://b/runs"),
        (("/w/runs", "/w/runs/", "/w/./runs", "/w//runs"), "/w/runs"),
    ],
)
def test_one_place_has_one_spelling(spellings, place):
    base = ["data.train=builtin://digits/train", "run.name=x", "train.steps=1"]
    found = {load_config([], [*base, f"run.storage={s}"]).config.run.storage for s in spellings}
    assert found == {place}


def test_the_shown_configuration_holds_no_credentials(tmp_path):
    shown = str(start_request(config(), "0123456789abcdef", "online", tmp_path))
    assert "word" not in shown
    assert "Signature" not in shown
    assert "s3://bucket/train" in shown
    assert redacted({"a": ["s3://key:secret@bucket/x", 3]}) == {"a": ["s3://bucket/x", 3]}


def test_disabled_opens_nothing_and_says_nothing(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    off = config().model_copy(
        update={"wandb": config().wandb.model_copy(update={"mode": "disabled"})}
    )
    lines: list[str] = []
    assert open_wandb(off, "id", open_storage(str(tmp_path)), tmp_path / "w", lines.append) is None
    assert lines == []


def test_runs_are_copied_without_links_and_debug_logs(tmp_path):
    local, target = tmp_path / "local", tmp_path / "run"
    run = local / "wandb" / "offline-run-1"
    for name in ("run-1.wandb", "files/a.png", "logs/debug.log"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_bytes(b"x")
    (local / "wandb" / "latest-run").symlink_to(run)
    (local / "picture.png").write_bytes(b"x")
    target.mkdir()
    copy_files(local, open_storage(str(target)))
    copied = {str(p.relative_to(target)) for p in target.rglob("*") if p.is_file()}
    assert copied == {"wandb/offline-run-1/run-1.wandb", "wandb/offline-run-1/files/a.png"}
