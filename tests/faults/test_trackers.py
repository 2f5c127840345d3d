"""A W&B server that hangs, refuses or is down costs the steps nothing."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from helpers.equality import assert_bit_equal, summary
from helpers.fleet import finish

pytestmark = [pytest.mark.distributed, pytest.mark.slow, pytest.mark.timeout(580)]

STEPS, ROUNDS = 300, 2
NOISE = 1.3
"""Two runs of the same kind differ by so much on a busy machine; each side's best run counts."""


def seconds_of_steps(folder: Path, name: str, *items: str, **environment: str) -> float:
    base = [f"run.storage={folder}", f"run.name={name}", f"train.steps={STEPS}"]
    base += ["train.log_every_steps=5", "data.validation=null", *items]
    finish(folder, *base, ranks=1, **environment)
    return float(summary(f"{folder}/{name}")["metrics"]["goodput/useful_seconds"])


@contextlib.contextmanager
def hanging() -> Iterator[str]:
    """Accept connections and never answer."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@contextlib.contextmanager
def refusing() -> Iterator[str]:
    """Answer everything with 401."""

    class Refuse(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(401)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_POST = do_PUT = answer

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Refuse) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@contextlib.contextmanager
def closed() -> Iterator[str]:
    """Give an address where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    yield f"http://127.0.0.1:{port}"


@pytest.mark.parametrize(
    ("number", "what", "server"),
    [("23a", "hangs", hanging), ("23b", "answers 401", refusing), ("23c", "is down", closed)],
)
def test_a_server_in_trouble_costs_the_steps_nothing(
    number: str, what: str, server, tmp_path: Path, row
) -> None:
    line = row(number, f"the W&B server {what}", "step time within noise of none, the run finishes")
    without, with_server = [], []
    with server() as url:
        environment = {"WANDB_BASE_URL": url, "WANDB_API_KEY": "0" * 40, "WANDB_SILENT": "true"}
        for number_of in range(ROUNDS):
            none = seconds_of_steps(tmp_path, f"none-{number_of}")
            online = seconds_of_steps(
                tmp_path, f"online-{number_of}", "wandb.mode=online", **environment
            )
            without.append(none)
            with_server.append(online)
    ratio = min(with_server) / min(without)
    line.seen.append(f"steps took {ratio:.2f} x")
    assert ratio < NOISE
    assert_bit_equal(f"{tmp_path}/online-0", f"{tmp_path}/none-0", STEPS)
