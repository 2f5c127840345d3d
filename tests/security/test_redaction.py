"""Secrets planted in the environment and in addresses are in nothing that a run leaves."""

import json
import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import pytest
from helpers.runs import TINY

from aae_dist.errors import LaunchError
from aae_dist.storage import open_storage
from aae_dist.utils.text import redact, redacted

CANARY = "canary-7f3a9c51d2"
SECRETS = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "WANDB_API_KEY", "RAY_AUTH_TOKEN")


def test_addresses_lose_user_password_and_signature() -> None:
    text = "cannot read https://me:word@host/x.tar?X-Amz-Signature=ab12 and s3://key:word@b/y"
    assert redact(text, {}) == "cannot read https://host/x.tar and s3://b/y"


def test_a_wildcard_of_a_bucket_is_no_signature() -> None:
    assert redact("s3://bucket/shard-??.tar", {}) == "s3://bucket/shard-??.tar"


def test_a_secret_that_is_no_text_hides_and_breaks_nothing() -> None:
    secret = os.fsdecode(b"abcdef\x80gh")
    assert redact(f"got {secret}", {"AWS_SESSION_TOKEN": secret}) == "got ***"


def test_values_of_secrets_are_hidden_and_others_are_not() -> None:
    environment = {"MY_TOKEN": "abcdefgh1234", "HOME": "/home/me", "X_KEY_FILE": "/run/secret"}
    line = "abcdefgh1234 in /home/me, /run/secret"
    assert redact(line, environment) == "*** in /home/me, /run/secret"


@pytest.mark.parametrize(
    "name",
    [
        *("AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_ACCESS_KEY", "AZURE_STORAGE_SAS_KEY"),
        *("AZURE_STORAGE_CONNECTION_STRING", "AZURE_CLIENT_SECRET", "AZURE_STORAGE_MASTER_KEY"),
        *("GOOGLE_SERVICE_ACCOUNT_KEY", "GOOGLE_SOMETHING_NEW", "GCS_HMAC", "IDENTITY_HEADER"),
        *("AWS_ACCESS_KEY_ID", "AWS_SSE_CUSTOMER_KEY_BASE64", "AWS_SOMETHING_NEW"),
        *("WANDB_API_KEY", "WANDB_SOMETHING_NEW", "DEPLOY_PRIVATE_KEY", "DB_PASSPHRASE"),
        *("DATABASE_DSN", "REDIS_CONN_STR", "MY_SAS", "HF_TOKEN", "SMTP_PASS", "SIGNING_KEY"),
        *("DB_PWD", "GITHUB_PAT", "SSHPASS", "ID_JWT", "OAUTH_BEARER", "SLACK_WEBHOOK_URL_KEY"),
    ],
)
@pytest.mark.parametrize("value", ["/begins/with+a/slash==", "c0ffee", "word-of-some-length", "~k"])
def test_every_variable_that_may_hold_a_secret_is_hidden(name: str, value: str) -> None:
    value = value + "3" * (len(value) < 3)
    assert redact(f"got {value}, expected", {name: value}) == "got ***, expected"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("AWS_REGION", "eu-west-1"), ("AWS_PROFILE", "research"), ("AWS_MAX_ATTEMPTS", "10")),
        *(("AWS_ENDPOINT_URL", "http://minio:9000"), ("AWS_ALLOW_HTTP", "true")),
        *(("AZURE_STORAGE_ACCOUNT_NAME", "account"), ("AZURE_TENANT_ID", "tenant-1")),
        *(("GOOGLE_APPLICATION_CREDENTIALS", "/keys/gcs.json"), ("GOOGLE_CLOUD_PROJECT", "lab-1")),
        *(("WANDB_PROJECT", "digits"), ("WANDB_ENTITY", "our-lab"), ("WANDB_MODE", "offline")),
        *(("WANDB_DIR", "/tmp"), ("TOKENIZERS_PARALLELISM", "false"), ("SSH_AUTH_SOCK", "/a/b")),
        *(("RAY_AUTH_MODE", "token"), ("AWS_SOMETHING_NEW", "/tmp"), ("AWS_SOMETHING_NEW", "300")),
        *(("PWD", "/home/me"), ("OLDPWD", "/home"), ("PATH", "/bin")),
    ],
)
def test_harmless_variables_stay_readable(name: str, value: str) -> None:
    assert redact(f"got {value} here", {name: value}) == f"got {value} here"


def test_a_short_secret_is_hidden_as_a_word_but_not_inside_of_others_or_in_stored_trees(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    assert redact("key test: tests/test_a is the latest") == "key ***: tests/test_a is the latest"
    assert redacted({"storage": "s3://bucket/test/runs"}) == {"storage": "s3://bucket/test/runs"}


def test_a_secret_is_hidden_in_every_form() -> None:
    key = "ab/cd+ef==" * 3
    account = f"DefaultEndpointsProtocol=https;AccountName=me;AccountKey={key};EndpointSuffix=x"
    environment = {"AZURE_STORAGE_CONNECTION_STRING": account}
    lower = quote(key, safe="").replace("%2F", "%2f").replace("%2B", "%2b").replace("%3D", "%3d")
    for form in (account, key, quote(key, safe=""), lower):
        assert redact(f"got {form}.", environment) == "got ***."
    line = "MIIEvQIBADANBgkqhkiG9w0BAQEF"
    stored = json.dumps({"type": "service_account", "private_key": f"-----BEGIN\n{line}\n-----END"})
    assert line not in redact(f"line 2: {line}", {"GOOGLE_SERVICE_ACCOUNT_KEY": stored})
    assert line not in redact(f"line 2: {line}", {"GOOGLE_APPLICATION_CREDENTIALS": stored})
    assert redact("key abcdefgh1234", {"MY_TOKEN": "abcdefgh1234\n"}) == "key ***"
    assert key not in redact(f"AccountName=me;AccountKey={key};x=1", {})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://u:p@ss@host/x", "https://host/x"),
        ("https://u:p/ss@host/x", "https://host/x"),
        ("s3://KEY:SEC/RET+x@bucket/a", "s3://bucket/a"),
        ("redis://:pass@host:6379/0", "redis://host:6379/0"),
        ("https://host:8080/a@b", "https://host:8080/a@b"),
        ("s3://bucket/a:b@c/d@e", "s3://bucket/a:b@c/d@e"),
        ("az://c/a.tar?sv=1&sig=abc", "az://c/a.tar"),
        ("s3://b/a.tar?X-Amz-Signature=abc", "s3://b/a.tar"),
        ("s3://b/??/a.tar?sig=abc", "s3://b/??/a.tar"),
        ("s3://b/day=?/part-?.tar", "s3://b/day=?/part-?.tar"),
        ("HTTPS://host/a?sig=abc", "HTTPS://host/a"),
        ("https://host/a#access_token=abc", "https://host/a"),
        ("https://host/a#chapter", "https://host/a#chapter"),
    ],
)
def test_addresses_are_shown_without_credentials(text: str, expected: str) -> None:
    assert redact(text, {}) == expected


@pytest.mark.parametrize(
    "uri",
    [
        *("s3://KEY:canary@bucket/a", "s3://KEY:can/ary@bucket/a", "s3://canary@bucket"),
        *("az://u:canary@c/a", "gs://canary@b/a", "https://u:canary@host/a.tar"),
        *("https://u:p@canary@host/a.tar", "file://u:canary@localhost/a"),
        "https://u:canary?x@host/a",
    ],
)
def test_an_address_with_a_user_or_key_is_refused_without_repeating_it(uri: str) -> None:
    with pytest.raises(LaunchError, match="no user, key or password in an address") as caught:
        open_storage(uri)
    assert "canary" not in str(caught.value)


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
