"""What `aae-dist submit --address` says and returns, whatever the dashboard answers."""

import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from aae_dist.cli import main
from aae_dist.launch.submit.jobs import Log, exit_code

pytestmark = pytest.mark.ray

RUN = ["submit", "run.name=x", "run.storage=s3://b/runs", "data.train=builtin://digits/train"]
RUN += ["train.steps=1"]


@contextmanager
def dashboard(status):
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format, *args):
            return None

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("status", [401, 403])
def test_a_dashboard_that_wants_a_token(status, capsys, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with dashboard(status) as url:
        assert main([*RUN, "--address", url]) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert "RAY_AUTH_TOKEN" in line


def test_nobody_at_the_address():
    # In a process of its own: Ray reads RAY_AUTH_MODE once, and other tests have set it.
    command = [sys.executable, "-m", "aae_dist", *RUN, "--address", "http://127.0.0.1:9"]
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    [line] = done.stderr.strip().splitlines()
    assert "no Ray dashboard answers at http://127.0.0.1:9" in line


def test_an_address_that_is_none(capsys):
    assert main([*RUN, "--address", "localhost"]) == 2
    assert "http://HOST:8265" in capsys.readouterr().err


def test_a_wrong_configuration_is_told_before_anybody_is_asked(capsys):
    assert main([*RUN, "train.setps=1", "--address", "http://127.0.0.1:9"]) == 2
    assert "train.setps" in capsys.readouterr().err


def test_a_log_is_shown_once_however_often_it_is_tailed(capsys):
    log = Log()
    for text in ("one\n", "two\n"):
        log.take(text)
    log.rewind()
    log.take("one\ntwo\nth")
    log.take("ree, stopped at step 3 as asked, with a checkpoint of that step\n")
    assert capsys.readouterr().out.startswith("one\ntwo\nthree, stopped")
    assert log.saved


def test_a_sweep_that_was_stopped_has_saved_too():
    log = Log()
    log.take("aae-dist: /runs/s: stopped as asked, each running trial with a checkpoint. The\n")
    assert exit_code("STOPPED", None, log.saved) == 4


@pytest.mark.parametrize(
    ("status", "driver", "saved", "code"),
    [
        ("SUCCEEDED", 0, False, 0),
        ("FAILED", 2, False, 2),
        ("FAILED", 3, False, 3),
        ("FAILED", None, False, 1),
        ("FAILED", -9, False, 137),
        ("STOPPED", None, True, 4),
        ("STOPPED", None, False, 2),
    ],
)
def test_the_exit_code_is_that_of_the_run(status, driver, saved, code):
    assert exit_code(status, driver, saved) == code
