"""An HTTP proxy in front of an S3 server that answers badly on demand."""

import http.client
import re
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

_HOP = {"connection", "transfer-encoding", "keep-alive", "content-length"}


@dataclass
class Rule:
    """What happens to requests whose 'METHOD path' matches `pattern`, `count` times."""

    kind: str
    """status, reset, stall, lost (the server got it, the answer is lost), half (of the body), other
    (200 with another body)."""
    pattern: str
    count: int = 1_000_000
    status: int = 503
    seconds: float = 5.0
    struck: int = 0

    def takes(self, request: str) -> bool:
        if self.struck >= self.count or not re.search(self.pattern, request):
            return False
        self.struck += 1
        return True


class FaultyProxy(ThreadingHTTPServer):
    """Passes requests on to `upstream`, http://host:port, unless a rule takes them."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, upstream: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = urlsplit(upstream).netloc
        self.rules: list[Rule] = []
        self.requests: list[str] = []
        self.lock = threading.Lock()
        self.closing = threading.Event()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def rule_for(self, request: str) -> Rule | None:
        with self.lock:
            self.requests.append(request)
            return next((rule for rule in self.rules if rule.takes(request)), None)

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: clients that hang up are part of the tests."""


@dataclass
class _Answer:
    status: int
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Head and body are two packets: the second would wait 40 ms for word of the first.
    disable_nagle_algorithm = True
    server: FaultyProxy

    def handle_any(self) -> None:
        rule = self.server.rule_for(f"{self.command} {self.path}")
        length = int(self.headers.get("Content-Length") or 0)
        if rule and rule.kind == "reset":
            self.rfile.read(length // 2)
            return self._reset()
        if rule and rule.kind == "stall":
            self.server.closing.wait(rule.seconds)
            return self._reset()
        body = self.rfile.read(length)
        if rule and rule.kind == "status":
            return self._send(_Answer(rule.status, [], _error(rule.status)))
        answer = self._pass_on(body)
        if rule and rule.kind == "lost":
            return self._reset()
        if rule and rule.kind == "other":
            return self._send(_Answer(200, answer.headers, b"<html>please log in</html>"))
        if rule and rule.kind == "half":
            return self._send(answer, len(answer.body) // 2)
        return self._send(answer)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = handle_any

    def _pass_on(self, body: bytes) -> _Answer:
        connection = http.client.HTTPConnection(self.server.upstream, timeout=60)
        headers = {k: v for k, v in self.headers.items() if k.lower() not in _HOP}
        connection.request(self.command, self.path, body, headers)
        got = connection.getresponse()
        answer = _Answer(got.status, got.getheaders(), got.read())
        connection.close()
        return answer

    def _send(self, answer: _Answer, cut: int | None = None) -> None:
        self.send_response_only(answer.status)
        length = str(len(answer.body))
        for name, value in answer.headers:
            if name.lower() == "content-length" and self.command == "HEAD":
                length = value
            elif name.lower() not in _HOP:
                self.send_header(name, value)
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body[:cut])
        if cut is not None:
            self.wfile.flush()
            self._reset()

    def _reset(self) -> None:
        # Linger 0: close() sends a reset instead of an orderly end.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *_: object) -> None:
        pass


def _error(status: int) -> bytes:
    code = {403: "AccessDenied", 503: "SlowDown", 500: "InternalError"}.get(status, "Error")
    return f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()


@contextmanager
def proxying(upstream: str) -> Iterator[FaultyProxy]:
    """Run a proxy for the length of the block."""
    with FaultyProxy(upstream) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield proxy
        finally:
            proxy.closing.set()
            proxy.shutdown()
            thread.join()
