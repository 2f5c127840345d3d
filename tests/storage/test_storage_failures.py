"""Places that cannot be used say so in one clear line, and soon."""

import contextlib
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from obstore.exceptions import GenericError, PermissionDeniedError

from aae_dist.config import load_config
from aae_dist.errors import LaunchError, StorageError
from aae_dist.storage import Storage, local, open_storage
from aae_dist.storage.bucket import bucket_errors
from aae_dist.training.checkpointer import finished_before

Operation = Callable[[Storage], object]
OPERATIONS: list[Operation] = [
    lambda storage: storage.check_writable(),
    lambda storage: storage.read("x"),
    lambda storage: storage.write("x", b""),
    lambda storage: storage.create("x", b""),
    lambda storage: storage.list(),
    lambda storage: storage.folders(),
]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_bucket_that_does_not_exist(s3: Callable[[], str], operation: Operation) -> None:
    with pytest.raises(LaunchError, match=r"^s3://no-such-bucket\S*: the bucket does not exist.*$"):
        operation(open_storage("s3://no-such-bucket/runs"))


def test_no_permission(forbidding_s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", forbidding_s3)
    for operation in OPERATIONS:
        with pytest.raises(LaunchError, match=r"^s3://bucket\S*: no permission \(403\).*$"):
            operation(open_storage("s3://bucket/runs"))


@pytest.mark.parametrize(
    ("error", "https", "s3"),
    [
        (PermissionDeniedError("403"), "does not give it to everybody", "Give these credentials"),
        (GenericError("error sending request"), "address and the network", "AWS_ENDPOINT_URL"),
    ],
)
def test_of_a_web_server_no_setting_of_buckets_is_advised(
    error: Exception, https: str, s3: str
) -> None:
    for uri, advice in (("https://host/a.tar", https), ("s3://bucket/a.tar", s3)):
        with pytest.raises(StorageError, match=rf"^{uri}: .*{advice}"), bucket_errors(uri):
            raise error


def test_a_server_that_is_not_there(s3: Callable[[], str], monkeypatch: pytest.MonkeyPatch) -> None:
    uri = s3()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    started = time.monotonic()
    with pytest.raises(LaunchError, match="cannot be reached"):
        open_storage(uri).check_writable()
    assert time.monotonic() - started < 15


def test_a_start_asks_an_ailing_server_three_times_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    class Ailing(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:  # noqa: N802
            asked.append(self.path)
            self.send_response(503)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    overrides = ["run={name: a, storage: s3://bucket/runs}", "data.train=x.tar", "train.steps=5"]
    config = load_config([], overrides).config
    with contextlib.contextmanager(_serve)(Ailing) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server)
        with pytest.raises(LaunchError, match=r"^s3://bucket/runs/a/summary\.json: "):
            finished_before(config)
    assert len(asked) == 3  # what reads data asks seven times, over up to a minute


@pytest.fixture
def forbidding_s3(s3: Callable[[], str]) -> Iterator[str]:
    """Run a server that answers every request with 403, as S3 does to a stranger."""

    class Forbid(SimpleHTTPRequestHandler):
        def refuse(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(403)
            body = b"<Error><Code>AccessDenied</Code></Error>"
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = refuse  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    yield from _serve(Forbid)


def _serve(handler: Callable[..., SimpleHTTPRequestHandler]) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def web(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Iterator[str]:
    """Serve tmp_path by plain HTTP, as any web server would."""
    yield from _serve(partial(SimpleHTTPRequestHandler, directory=str(tmp_path)))


@pytest.mark.parametrize(
    ("address", "variable", "advice"),
    [
        ("s3://b/x", None, "name and AWS_ENDPOINT_URL."),
        ("s3://b/x", "AWS_ENDPOINT_URL_S3", "name and AWS_ENDPOINT_URL_S3."),
        ("az://b/x", None, "name and AZURE_STORAGE_ENDPOINT."),
        ("gs://b/x", None, "check its name."),
    ],
)
def test_the_variable_of_the_stores_own_address_is_advised(monkeypatch, address, variable, advice):
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AZURE_STORAGE_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    if variable:
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    with pytest.raises(LaunchError, match=re.escape(advice)), bucket_errors(address):
        raise FileNotFoundError("NoSuchBucket")


def test_a_web_server_is_read_but_never_written(web: str, tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "000.tar").write_bytes(b"tar bytes")
    storage = open_storage(f"{web}/shards")
    assert storage.read("000.tar") == b"tar bytes"
    assert storage.size("000.tar") == 9
    assert storage.size("001.tar") is None
    with pytest.raises(FileNotFoundError, match=r"shards/001.tar: no such file"):
        storage.read("001.tar")
    with pytest.raises(LaunchError, match="read-only"):
        storage.write("x", b"")
    with pytest.raises(LaunchError, match="cannot be listed"):
        storage.list()


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(LaunchError, match=f"^{tmp_path}/file: it is a file, not a folder"):
        open_storage(str(tmp_path / "file")).check_writable()
    with pytest.raises(LaunchError, match="a part of the path is a file"):
        open_storage(str(tmp_path / "file" / "below")).check_writable()


CHECK_AS_NOBODY = """
import os, sys
from aae_dist.errors import LaunchError
from aae_dist.storage import open_storage
os.setuid(65534)
try:
    open_storage(sys.argv[1]).check_writable()
except LaunchError as error:
    print(error)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody without permission")
def test_a_folder_without_permission() -> None:
    command = [sys.executable, "-c", CHECK_AS_NOBODY, "/usr/aae_dist_runs"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == (
        "/usr/aae_dist_runs: no permission to write there. Use another folder or ask for access.\n"
    )


def test_a_failed_write_keeps_the_old_bytes_and_no_temporary_file(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    storage.write("x", b"old")
    with pytest.raises(FileNotFoundError):
        storage.upload("x", tmp_path / "absent")
    (tmp_path / "folder").mkdir()
    with pytest.raises(LaunchError, match="it is a folder, not a file"):
        storage.write("folder", b"new")
    assert storage.read("x") == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "x"]


def test_what_a_killed_writer_left_is_swept(tmp_path: Path) -> None:
    (tmp_path / ".x.1-1.aae-tmp").write_bytes(b"half")
    (tmp_path / ".y.1-1.aae-tmp").write_bytes(b"being written now")
    os.utime(tmp_path / ".x.1-1.aae-tmp", (1, 1))
    open_storage(str(tmp_path)).check_writable()
    assert [path.name for path in tmp_path.iterdir()] == [".y.1-1.aae-tmp"]


def _count_wins(attempt: Callable[[int], bool], num_threads: int) -> int:
    barrier = threading.Barrier(num_threads)
    wins: list[bool] = []

    def run(number: int) -> None:
        barrier.wait()
        wins.append(attempt(number))

    threads = [threading.Thread(target=run, args=(n,)) for n in range(num_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(wins)


def test_of_many_who_race_one_wins(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    for turn in range(10):
        key = f"lock-{turn}"
        assert _count_wins(lambda n, key=key: storage.create(key, b"%d" % n), 8) == 1
        now = storage.read(key)
        wins = _count_wins(lambda n, key=key, now=now: storage.replace(key, b"r%d" % n, now), 8)
        assert wins == 1


def test_a_file_that_another_writer_renames_meanwhile_is_no_failure(tmp_path, monkeypatch):
    # What a listing may still show: two nodes that probe one new folder at the same moment.
    gone = tmp_path / f".other.1-1{local.TEMPORARY}"
    monkeypatch.setattr(local.Path, "glob", lambda folder, pattern: iter([gone]))
    open_storage(str(tmp_path)).check_writable()
