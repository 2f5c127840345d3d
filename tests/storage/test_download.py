"""Whole files over HTTP that goes wrong: the bytes are right, or the refusal is, and in time."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.object_server import Fault, ObjectServer, serving

from aae_dist.errors import LaunchError, StorageError
from aae_dist.storage import download, open_storage
from aae_dist.storage.download import Download

pytestmark = pytest.mark.run  # waits for time-outs, servers or pictures

DATA = os.urandom(3 << 20)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectServer]:
    monkeypatch.setattr(download, "RANGE_BYTES", 1 << 20)
    with serving() as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.address)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        monkeypatch.setenv("AWS_REGION", "us-east-1")
        server.files["/bucket/a.tar"] = DATA
        yield server


def fetched(server: ObjectServer, path: Path, scheme: str = "s3", seconds: float = 6) -> bytes:
    """Download the file as the cache does; return what arrived."""
    uri = "s3://bucket" if scheme == "s3" else f"{server.address}/bucket"
    storage = open_storage(uri, patience_seconds=seconds)
    entry = storage.stat("a.tar")
    assert entry is not None
    deadline = time.monotonic() + seconds
    with path.open("w+b") as file:
        Download(storage, entry, deadline).write_to(file.fileno())
    return path.read_bytes()


@pytest.mark.parametrize("scheme", ["s3", "http"])
@pytest.mark.parametrize(
    "fault",
    [
        None,
        Fault("status", 503),
        Fault("status", 500),
        Fault("reset", 0),
        Fault("reset", 300_000),
        Fault("short", 100_000),
        Fault("short", 0),
        Fault("long"),
    ],
)
def test_a_fault_that_passes_leaves_no_trace(
    server: ObjectServer, tmp_path: Path, scheme: str, fault: Fault | None
) -> None:
    server.faults["/bucket/a.tar"] = [fault, fault] if fault else []
    assert fetched(server, tmp_path / "a", scheme) == DATA


def test_a_stalled_body_goes_on_where_it_stood(server: ObjectServer, tmp_path: Path) -> None:
    server.faults["/bucket/a.tar"] = [Fault("stall", 700_000)]
    started = time.monotonic()
    assert fetched(server, tmp_path / "a", seconds=2) == DATA
    assert time.monotonic() - started < 15
    # What had arrived is not asked for again.
    assert sum(length for _, _, length in server.ranges) < len(DATA) + 400_000


def test_parts_are_asked_for_once_each(server: ObjectServer, tmp_path: Path) -> None:
    fetched(server, tmp_path / "a")
    assert sorted(start for _, start, _ in server.ranges) == [0, 1 << 20, 2 << 20]


@pytest.mark.parametrize(
    ("fault", "times", "reason"),
    [
        (Fault("status", 403), 1, "forbidden"),
        (Fault("etag"), 1, "changed"),
        (Fault("status", 503), 99, "unreachable"),
        (Fault("reset", 1000), 999, "unreachable"),
        (Fault("short", 0), 99, "unreachable"),
        (Fault("stall", 1000), 99, "unreachable"),
    ],
)
def test_what_does_not_pass_is_said_in_time(
    server: ObjectServer, tmp_path: Path, fault: Fault, times: int, reason: str
) -> None:
    server.faults["/bucket/a.tar"] = [fault] * times
    started = time.monotonic()
    with pytest.raises(StorageError, match=r"^s3://bucket/a\.tar: .*\.$") as caught:
        fetched(server, tmp_path / "a", seconds=0.8)
    assert caught.value.reason == reason
    assert time.monotonic() - started < 15
    if times == 1:
        assert sum(server.requests.values()) <= 4, "what is final is not tried again"


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://127.0.0.1/a", "/bucket/a.tar"])
def test_a_redirect_to_another_scheme_or_in_a_loop_ends_soon(
    server: ObjectServer, tmp_path: Path, location: str
) -> None:
    server.faults["/bucket/a.tar"] = [Fault("redirect", location=location)] * 999
    started = time.monotonic()
    with pytest.raises(StorageError, match=r"/bucket/a\.tar: "):
        fetched(server, tmp_path / "a", "http", seconds=0.8)
    assert time.monotonic() - started < 15
    assert b"root:" not in (tmp_path / "a").read_bytes()
    assert sum(server.requests.values()) < 400


def test_a_file_that_is_gone(server: ObjectServer, tmp_path: Path) -> None:
    server.faults["/bucket/a.tar"] = [Fault("status", 404)]
    with pytest.raises(FileNotFoundError, match=r"a\.tar: no such file"):
        fetched(server, tmp_path / "a")


@pytest.mark.parametrize("scheme", ["s3", "http"])
def test_a_server_without_ranges_gives_the_whole(
    server: ObjectServer, tmp_path: Path, scheme: str
) -> None:
    server.faults["/bucket/a.tar"] = [Fault("whole")] * 10
    assert fetched(server, tmp_path / "a", scheme) == DATA


@pytest.mark.parametrize(
    "uri",
    [
        "http://example.com/a",
        "http://169.254.169.254/a",
        "https://169.254.169.254/latest",
        "https://[fe80::1]/a",
        "https://[::ffff:169.254.169.254]/a",
        "https://2852039166/a",
        "https://0xa9fea9fe/a",
        "https://metadata.google.internal/a",
        "https://user:secret@host/a",
        "https://secret@host/a",
        "ftp://host/a",
        "pipe:touch x",
        "PIPE:touch x",
    ],
)
def test_addresses_that_are_not_asked(uri: str) -> None:
    with pytest.raises(LaunchError) as caught:
        open_storage(uri)
    assert "secret" not in str(caught.value)


def test_plain_http_is_for_the_endpoint_that_was_set_alone(
    server: ObjectServer, tmp_path: Path
) -> None:
    # AWS_ENDPOINT_URL is plain http here; a web server may still not lead to plain http.
    storage = open_storage("https://127.0.0.1:1", patience_seconds=1)
    with pytest.raises(StorageError, match="reached. Check the address and the network"):
        storage.read("x")
