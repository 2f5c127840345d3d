"""All that a process reads of a bucket goes through one client: connections, credentials."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from helpers.object_server import ObjectServer, serving

from aae_dist.storage import open_storage

CREDENTIALS = {"AccessKeyId": "a", "SecretAccessKey": "s", "Token": "t"}
NUM_SHARDS = 24


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectServer]:
    """Serve a bucket, and credentials as a pod with a role gets them."""
    token = tmp_path / "token"
    token.write_text("who I am")
    with serving() as server:
        server.files = {f"/bucket/{n}.tar": b"x" * 100 for n in range(NUM_SHARDS)}
        answer = {**CREDENTIALS, "Expiration": "2099-01-01T00:00:00Z"}
        server.files["/role"] = json.dumps(answer).encode()
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("AWS_REGION", "us-east-1")
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.address)
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{server.address}/role")
        monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", str(token))
        yield server


def read(number: int) -> bytes:
    return open_storage("s3://bucket", 600.0).read(f"{number}.tar")


def test_many_shards_take_few_connections_and_one_request_for_credentials(
    server: ObjectServer,
) -> None:
    assert all(read(number) == b"x" * 100 for number in range(NUM_SHARDS))
    assert server.requests["/role"] == 1
    assert server.connections <= 6


def test_threads_share_a_client(server: ObjectServer) -> None:
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(read, range(NUM_SHARDS))) == {b"x" * 100}
    assert server.requests["/role"] <= 4, "one, or one for each thread that came at the same time"
    assert server.connections <= 12


def test_another_environment_is_another_client(
    server: ObjectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read(0)
    with serving() as other:
        other.files["/bucket/0.tar"] = b"other"
        monkeypatch.setenv("AWS_ENDPOINT_URL", other.address)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        assert read(0) == b"other"
