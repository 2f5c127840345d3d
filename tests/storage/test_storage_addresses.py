"""Addresses: which are understood, how parts are joined, and what a wrong one is told."""

from pathlib import Path

import pytest
from obstore.store import HTTPStore

from aae_dist.config import load_config
from aae_dist.errors import ConfigError, LaunchError
from aae_dist.storage import is_remote, join, open_storage
from aae_dist.storage.bucket import BucketStorage


def test_a_path_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert open_storage("runs/../runs/a/").uri == str(tmp_path / "runs" / "a")
    assert open_storage("~/runs").uri == str(tmp_path / "home" / "runs")
    assert open_storage(f"file://{tmp_path}/with%20space").uri == f"{tmp_path}/with space"


def test_opening_creates_nothing(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path / "absent"))
    assert storage.list() == []
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("s3://bucket/", "s3://bucket"),
        ("s3://bucket/a/b/", "s3://bucket/a/b"),
        ("gs://bucket/a", "gs://bucket/a"),
        ("https://host:8080/a", "https://host:8080/a"),
    ],
)
def test_remote_addresses_lose_the_last_slash(uri: str, expected: str) -> None:
    assert open_storage(uri).uri == expected


def test_azure_takes_its_account_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    assert open_storage("az://container/a").uri == "az://container/a"
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME")
    with pytest.raises(LaunchError, match="az://container: .*AZURE_STORAGE_ACCOUNT_NAME"):
        open_storage("az://container/a")


@pytest.mark.parametrize("uri", ["ftp://host/x", "pipe:cat /etc/passwd", "http://host/x", "s4://b"])
def test_an_unknown_scheme_is_told_the_known_ones(uri: str) -> None:
    with pytest.raises(LaunchError, match=r"not supported.*file://, s3://, gs://, az://"):
        open_storage(uri)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "127.9.8.7"])
def test_plain_http_is_for_this_machine(host: str) -> None:
    assert open_storage(f"http://{host}:8000/a").uri == f"http://{host}:8000/a"


@pytest.mark.parametrize(
    "host",
    [
        *("169.254.169.254", "2852039166", "0xa9fea9fe", "0251.0376.0251.0376", "0xa9.0xfe.43518"),
        *("[::ffff:169.254.169.254]", "[64:ff9b::a9fe:a9fe]", "[64:ff9b:1::a9fe:a9fe]"),
        *("[2002:a9fe:a9fe::]", "[::a9fe:a9fe]", "[2001:db8::5efe:a9fe:a9fe]", "[fe80::1%25eth0]"),
        *("[2001:0:1234::1:5601:5601]", "[fd00:ec2::254]", "100.100.100.200", "169.254.170.2."),
        *("metadata.google.internal.", "%31%36%39.254.169.254", "169\u3002254\u3002169\u3002254"),
    ],
)
def test_no_spelling_of_a_metadata_server_passes(host: str) -> None:
    with pytest.raises(LaunchError, match="where machines keep their credentials"):
        open_storage(f"https://{host}/latest")


@pytest.mark.parametrize("host", ["[64:ff9b::808:808]", "8.8.8.8", "12345.org", "[2001:db8::1]"])
def test_other_hosts_pass(host: str) -> None:
    assert open_storage(f"https://{host}/a").uri == f"https://{host}/a"


@pytest.mark.parametrize("uri", ["", "s3://", "s3:///a", "file://otherhost/a", "a\0b"])
def test_an_incomplete_address_is_refused(uri: str) -> None:
    with pytest.raises(LaunchError):
        open_storage(uri)


@pytest.mark.parametrize(
    "uri", [" s3://bucket/runs", "\ts3://KEY:HIDDEN@b", "s3:///KEY:HIDDEN@b/x"]
)
def test_a_slip_before_the_bucket_makes_no_local_folder_and_repeats_no_key(uri: str) -> None:
    with pytest.raises(LaunchError) as caught:
        open_storage(uri)
    assert "HIDDEN" not in str(caught.value)


def test_a_bucket_address_cannot_climb() -> None:
    with pytest.raises(LaunchError, match="is no storage key"):
        open_storage("s3://bucket/a/../../other")


def test_parts_are_joined_below() -> None:
    assert join("s3://bucket", "a", "b/c") == "s3://bucket/a/b/c"
    assert join("/runs/", "a") == "/runs/a"
    assert join("/", "a") == "/a"
    with pytest.raises(LaunchError, match="is no storage key"):
        join("/runs", "../other")


def test_only_buckets_and_web_servers_are_remote() -> None:
    assert is_remote("s3://bucket")
    assert is_remote("https://host")
    assert not is_remote("file:///x")
    assert not is_remote("/x/y:z")


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("s3a://b/runs", "Write s3://BUCKET/folder"),
        ("r2://b/runs", "Write s3://BUCKET/folder"),
        ("gcs://b/runs", "Write gs://BUCKET/folder"),
        ("abfss://c@a.dfs.core.windows.net/x", "az://CONTAINER/folder, .*AZURE_STORAGE_ACCOUNT_N"),
        ("wasbs://c@a.blob.core.windows.net/x", "az://CONTAINER/folder"),
        ("s3://<bucket>/runs", "'<bucket>' is no name of a bucket"),
        ("s3://b:9000/runs", "'b:9000' is no name .*The port belongs to AWS_ENDPOINT_URL"),
        ("s3://arn:aws:s3:::b/runs", "is no name of a bucket"),
        ("gs://my bucket/runs", "is no name of a bucket"),
        (r"C:\runs", "no path of this machine. Mount it"),
        (r"\\server\share", "no path of this machine"),
        ("me@host:/runs", "me@host:... would be a name in the current folder"),
        ("b.s3.amazonaws.com/runs", "no path of this machine"),
        ("  ", "it is empty"),
    ],
)
def test_an_address_of_another_kind_is_told_what_to_write(uri: str, words: str) -> None:
    with pytest.raises(LaunchError, match=words) as caught:
        open_storage(uri)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "uri",
    [
        *("https://s3.amazonaws.com/b/a.tar", "https://b.s3.us-east-1.amazonaws.com/a.tar"),
        *("https://a.blob.core.windows.net/c/a.tar", "https://storage.googleapis.com/b/a.tar"),
    ],
)
def test_a_public_file_of_a_cloud_is_a_file_of_a_web_server(uri: str) -> None:
    folder, _, _ = uri.rpartition("/")
    storage = open_storage(folder)
    assert isinstance(storage, BucketStorage)
    assert isinstance(storage._store, HTTPStore)
    with pytest.raises(LaunchError, match="a web server is read-only"):
        storage.check_writable()


@pytest.mark.parametrize(
    ("variables", "uri", "words"),
    [
        ({"AWS_ACCESS_KEY_ID": "k"}, "s3://b", "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
        ({"AWS_SECRET_ACCESS_KEY": "k" * 8}, "s3://b", "AWS_ACCESS_KEY_ID and AWS_SECRET"),
        ({}, "az://c", "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY"),
    ],
)
def test_half_of_the_credentials_is_told_which(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], uri: str, words: str
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AZURE_STORAGE_ACCOUNT_NAME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(LaunchError, match=f"no credentials were found. Set {words}"):
        open_storage(uri)


def test_an_empty_run_storage_is_one_line() -> None:
    for value in ("''", "' '"):
        with pytest.raises(ConfigError, match=r"run.storage: it is empty. Write a path"):
            load_config([], ["run.name=a", "data.train=b", "train.steps=1", f"run.storage={value}"])
