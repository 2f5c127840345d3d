"""What a store answers to conditional writes: conflicts are tried again, lacks are named."""

import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from aae_dist.errors import StorageError
from aae_dist.storage import Storage, bucket, clients, open_storage

CODES = {501: "NotImplemented", 409: "ConditionalRequestConflict"}


class Store(ThreadingHTTPServer):
    """A bucket that treats conditional writes as `mode` says, as some S3-compatible stores do."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.mode = "heed"
        self.num_conflicts = 0
        self.conflicts = Counter[str]()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Head and body are two packets: the second would wait 40 ms for word of the first.
    disable_nagle_algorithm = True
    server: Store

    def do_PUT(self) -> None:  # noqa: N802
        body, store = self.rfile.read(int(self.headers["Content-Length"])), self.server
        new, tag = self.headers.get("If-None-Match"), self.headers.get("If-Match")
        if (new or tag) and store.mode == "501":
            return self._answer(501)
        if (new or tag) and store.conflicts[self.path] < store.num_conflicts:
            store.conflicts[self.path] += 1
            return self._answer(409)
        wrong = (new and self.path in store.files) or (tag and tag != self._tag())
        if wrong and store.mode != "ignore":
            return self._answer(412)
        store.files[self.path] = body
        return self._answer(200)

    def do_GET(self) -> None:  # noqa: N802
        found = self.server.files.get(self.path)
        self._answer(404 if found is None else 200, found or b"")

    do_HEAD = do_GET  # noqa: N815

    def do_POST(self) -> None:  # noqa: N802
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        deleted = b""
        for key in re.findall("<Key>(.*?)</Key>", body):  # obstore deletes one file as a list, too
            self.server.files.pop(f"/bucket/{key}", None)
            deleted += f"<Deleted><Key>{key}</Key></Deleted>".encode()
        self._answer(200, b"<DeleteResult>" + deleted + b"</DeleteResult>")

    def _tag(self) -> str:
        return f'"{hash(self.server.files.get(self.path))}"'

    def _answer(self, status: int, body: bytes = b"") -> None:
        body = f"<Error><Code>{CODES[status]}</Code></Error>".encode() if status in CODES else body
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", self._tag())
        self.send_header("Last-Modified", "Mon, 30 Nov 2026 00:00:00 GMT")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def store(s3_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    for name, value in s3_environment.items():
        monkeypatch.setenv(name, value)
    # obstore repeats what was answered by 501 or 409, too, each time after a longer wait.
    monkeypatch.setattr(clients, "DATA", {**clients.DATA, "max_retries": 1})
    with Store() as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def folder(store: Store) -> Storage:
    return open_storage("s3://bucket/run")


def test_a_conflict_means_try_again_not_that_the_file_exists(store: Store, folder: Storage) -> None:
    store.num_conflicts = 2
    assert folder.create("MANIFEST.json", b"one")
    assert folder.read("MANIFEST.json") == b"one"
    assert not folder.create("MANIFEST.json", b"two")
    store.conflicts.clear()
    assert folder.replace("MANIFEST.json", b"two", expected=b"one")
    assert store.conflicts.total() == 2
    folder.check_writable()


@pytest.mark.run
def test_a_conflict_without_an_end_is_one_line(
    store: Store, folder: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket, "_MAX_CONFLICTS", 3)
    store.num_conflicts = 1000
    writes: list[Callable[[], bool]] = [
        lambda: folder.create("x", b"1"),
        lambda: folder.replace("x", b"2", expected=b"1"),
    ]
    for write in writes:
        with pytest.raises(StorageError, match=r"^s3://bucket/run/x: .*409.*Try again[^\n]*$"):
            write()
        folder.write("x", b"1")


def test_a_store_without_conditional_writes_is_told_what_it_lacks(
    store: Store, folder: Storage
) -> None:
    store.mode = "501"
    writes: list[Callable[[], object]] = [
        folder.check_writable,
        lambda: folder.create("x", b"1"),
        lambda: folder.replace("x", b"2", expected=b"1"),
    ]
    folder.write("x", b"1")
    for write in writes:
        with pytest.raises(StorageError, match=r"^[^\n]*lacks conditional writes \(If-[^\n]*$"):
            write()
    assert not [key for key in store.files if re.search("probe", key)]


def test_a_store_that_ignores_conditions_is_refused_before_a_run_starts(
    store: Store, folder: Storage
) -> None:
    store.mode = "ignore"
    with pytest.raises(StorageError, match=r"ignores If-None-Match"):
        folder.check_writable()
    assert not store.files
