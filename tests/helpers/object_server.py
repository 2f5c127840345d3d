"""A small object server over real HTTP, with ranges, entity tags and faults on demand.

S3 clients (path style) and plain web clients both read from it. A fault is consumed by one GET of
its path; later GETs go well again.
"""

import hashlib
import re
import socket
import struct
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, urlsplit

_TIME = "Tue, 01 Jul 2025 00:00:00 GMT"
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


@dataclass(frozen=True)
class Fault:
    """What goes wrong in one answer."""

    kind: str
    """status, reset, short, long, etag, stall, whole, redirect."""
    value: int = 0
    """The status, or the bytes of the body that still arrive."""
    location: str = ""


class ObjectServer(ThreadingHTTPServer):
    """Files by path; `faults` by path, used up in order; `requests` counts GETs by path.

    `connections` counts those that were opened. Faults of "HEAD /path" hit HEADs. `tags` says how
    the server tells versions apart: by strong or by weak tags, by the time alone, or not at all.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        """Listen on a free port of the loopback interface."""
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, list[Fault]] = defaultdict(list)
        self.requests: dict[str, int] = defaultdict(int)
        self.connections = 0
        self.ranges: list[tuple[str, int, int]] = []
        self.tags = "strong"
        self.modified: dict[str, str] = {}
        self.lock = threading.Lock()
        self.closing = threading.Event()

    @property
    def address(self) -> str:
        """The server's http:// address."""
        return f"http://127.0.0.1:{self.server_port}"

    def get_request(self) -> tuple[socket.socket, object]:
        """Count a connection and take it."""
        self.connections += 1
        return super().get_request()

    def next_fault(self, path: str) -> Fault | None:
        """Count a GET and take the next fault of its path; '*' are faults of any path."""
        with self.lock:
            if not path.startswith("HEAD "):
                self.requests[path] += 1
            for key in (path,) if path.startswith("HEAD ") else (path, "*"):
                if self.faults[key]:
                    return self.faults[key].pop(0)
        return None

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: clients that hang up are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Head and body are two packets: the second would wait 40 ms for word of the first.
    disable_nagle_algorithm = True
    server: ObjectServer

    def do_HEAD(self) -> None:
        fault = self.server.next_fault(f"HEAD {self.path}")
        if fault and fault.kind == "status":
            return self._refuse(fault.value)
        if fault and fault.kind in ("reset", "stall"):
            return self._body(b"", fault)
        data = self.server.files.get(self.path)
        if data is None:
            return self._refuse(404)
        return self._head(200, len(data), _etag(data))

    def do_GET(self) -> None:
        fault = self.server.next_fault(self.path)
        data = self.server.files.get(self.path)
        if fault and fault.kind == "status":
            return self._refuse(fault.value)
        if fault and fault.kind == "redirect":
            return self._refuse(302, fault.location)
        if data is None:
            parts = urlsplit(self.path)
            query = dict(parse_qsl(parts.query))
            return self._list(parts.path, query) if "list-type" in query else self._refuse(404)
        etag = _etag(data) if not (fault and fault.kind == "etag") else '"another"'
        wanted = self.headers.get("If-Match")
        if wanted is not None and (wanted != etag or self.server.tags != "strong"):
            return self._refuse(412)
        return self._answer(data, etag, fault or Fault("none"))

    def _answer(self, data: bytes, etag: str, fault: Fault) -> None:
        found = _RANGE.fullmatch(self.headers.get("Range", ""))
        if not found or fault.kind == "whole":
            self._head(200, len(data), etag)
            return self._body(data, fault)
        start, end = int(found[1]), min(int(found[2] or len(data)) + 1, len(data))
        if start >= len(data):
            return self._refuse(416)
        body = data[start:end]
        with self.server.lock:
            self.server.ranges.append((self.path, start, len(body)))
        if fault.kind == "short":
            body = body[: fault.value]
        total = len(data) + (1000 if fault.kind == "long" else 0)
        extra = {"Content-Range": f"bytes {start}-{end - 1}/{total}"}
        self._head(206, len(body), etag, extra)
        return self._body(body, fault)

    def _body(self, body: bytes, fault: Fault) -> None:
        if fault.kind not in ("reset", "stall"):
            self.wfile.write(body)
            return
        self.wfile.write(body[: fault.value])
        self.wfile.flush()
        if fault.kind == "stall":
            self.server.closing.wait(60)
        # Linger 0: close() sends a reset instead of an orderly end.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True

    def _head(
        self, status: int, length: int, etag: str, extra: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        headers = {"Content-Length": str(length), "Accept-Ranges": "bytes"}
        if self.server.tags in ("strong", "weak"):
            headers["ETag"] = etag if self.server.tags == "strong" else f"W/{etag}"
        if self.server.tags != "none":
            headers["Last-Modified"] = self.server.modified.get(self.path, _TIME)
        for name, value in {**headers, **(extra or {})}.items():
            self.send_header(name, value)
        self.end_headers()

    def _list(self, bucket: str, query: dict[str, str]) -> None:
        """Answer S3's ListObjectsV2, all in one page."""
        top, prefix = bucket.rstrip("/") + "/", query.get("prefix", "")
        lines, folders = [], set[str]()
        for path, data in sorted(self.server.files.items()):
            key = path.removeprefix(top)
            if not path.startswith(top) or not key.startswith(prefix):
                continue
            if "delimiter" in query and "/" in key[len(prefix) :]:
                folders.add(prefix + key[len(prefix) :].split("/")[0] + "/")
                continue
            lines.append(
                f"<Contents><Key>{key}</Key><Size>{len(data)}</Size><ETag>{_etag(data)}</ETag>"
                "<LastModified>2025-07-01T00:00:00.000Z</LastModified></Contents>"
            )
        lines += [f"<CommonPrefixes><Prefix>{name}</Prefix></CommonPrefixes>" for name in folders]
        body = "<ListBucketResult>" + "".join(lines) + "</ListBucketResult>"
        self._head(200, len(body), '"list"')
        self.wfile.write(body.encode())

    def _refuse(self, status: int, location: str = "") -> None:
        self.send_response(status)
        if location:
            self.send_header("Location", location)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@lru_cache
def _etag(data: bytes) -> str:
    return f'"{hashlib.md5(data).hexdigest()}"'


@contextmanager
def serving() -> Iterator[ObjectServer]:
    """Run a server for the length of the block."""
    with ObjectServer() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.closing.set()
            server.shutdown()
            thread.join()
