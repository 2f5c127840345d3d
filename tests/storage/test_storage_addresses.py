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


@pytest.mark.parametrize("uri", ["", "s3://", "s3:///a", "file://otherhost/a", "a\0b"])
def test_an_incomplete_address_is_refused(uri: str) -> None:
    with pytest.raises(LaunchError):
        open_storage(uri)


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
