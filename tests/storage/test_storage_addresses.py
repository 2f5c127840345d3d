"""Addresses: which are understood, how parts are joined, and what a wrong one is told."""

from pathlib import Path

import pytest

from aae_dist.errors import LaunchError
from aae_dist.storage import is_remote, join, open_storage


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
    with pytest.raises(LaunchError, match="az://container: .*Account must be specified"):
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
