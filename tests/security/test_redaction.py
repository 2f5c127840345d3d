"""Secrets planted in the environment and in addresses are in nothing that a run leaves."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.runs import TINY

from aae_dist.utils.text import redact, redacted

CANARY = "canary-7f3a9c51d2"
SECRETS = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "WANDB_API_KEY", "RAY_AUTH_TOKEN")


def test_addresses_lose_user_password_and_signature() -> None:
    text = "cannot read https://me:word@host/x.tar?X-Amz-Signature=ab12 and s3://key:word@b/y"
    assert redact(text, {}) == "cannot read https://host/x.tar and s3://b/y"


def test_a_wildcard_of_a_bucket_is_no_signature() -> None:
    assert redact("s3://bucket/shard-??.tar", {}) == "s3://bucket/shard-??.tar"


def test_values_of_secrets_are_hidden_and_others_are_not() -> None:
    environment = {"MY_TOKEN": "abcdefgh1234", "HOME": "/home/me", "X_KEY_FILE": "/run/secret"}
    line = "abcdefgh1234 in /home/me, /run/secret"
    assert redact(line, environment) == "*** in /home/me, /run/secret"
    assert redact("short", {"MY_TOKEN": "short"}) == "short"


def test_a_secret_that_is_set_after_the_first_line_is_hidden(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert redact("abcdefgh1234") == "abcdefgh1234"
    monkeypatch.setenv("MY_TOKEN", "abcdefgh1234")
    assert redact("abcdefgh1234") == "***"
    monkeypatch.setenv("MY_TOKEN", "other-value")
    assert redact("abcdefgh1234 other-value") == "abcdefgh1234 ***"


def test_trees_are_redacted_in_every_corner() -> None:
    tree = {"a": ["https://u:p@h/x", {"b": "https://h/y?sig=1"}], "c": 3, "d": None}
    assert redacted(tree) == {"a": ["https://h/x", {"b": "https://h/y"}], "c": 3, "d": None}


@pytest.mark.run
@pytest.mark.timeout(200)
def test_nothing_that_a_run_leaves_holds_a_planted_secret(tmp_path: Path) -> None:
    pytest.importorskip("wandb")  # what it writes is searched, too
    secrets = {name: f"{CANARY}-{name.lower()}" for name in SECRETS}
    environment = {**os.environ, **secrets, "OMP_NUM_THREADS": "1"}
    environment |= {"HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "tmp")}
    (tmp_path / "tmp").mkdir()
    base = [sys.executable, "-m", "aae_dist", "train", *TINY, "launch.kind=local"]
    base += [f"run.storage={tmp_path}/runs", "train.steps=12", "data.validation=null"]
    done = subprocess.run(
        [*base, "run.name=good", "wandb.mode=offline"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    address = f"https://user:{CANARY}@127.0.0.1:9/{{000..001}}.tar"
    bad = subprocess.run(
        [*base, "run.name=bad", f"data.train={address}"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert bad.returncode == 2, bad.stderr[-2000:]
    assert "127.0.0.1" in bad.stderr
    for process in (done, bad):
        assert CANARY not in process.stdout + process.stderr
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any("wandb" in path.parts for path in files)
    assert any(path.name == "config.json" for path in files)
    holders = [path for path in files if CANARY.encode() in path.read_bytes()]
    assert holders == []
