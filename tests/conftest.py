"""Fixtures that the tests of several packages share."""

import gc
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from urllib.error import URLError

import pytest
from helpers.fault_table import pytest_runtest_makereport, pytest_sessionfinish, row
from helpers.pods import template_environment
from hypothesis import HealthCheck, settings

__all__ = ["pytest_runtest_makereport", "pytest_sessionfinish", "row"]

# Ray and its workers have the variables under test that they have in the head's pod.
os.environ.update(template_environment("kind-cpu-train", "head"))
# Ray reads these once a process, for all tests to come; our launcher sets them before that.
os.environ["RAY_AUTH_MODE"] = "token"
# Else Ray takes the token of ~/.ray, where it writes one when somebody starts it by hand.
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")

# Where nohup starts the tests they ignore a closed terminal, and so would every run under test.
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# How long an example takes says more of what else the machine does than of the test.
settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any machine")

START_SECONDS = 60.0
RUN_SECONDS = 240
"""Longest test that starts a run or ranks: a busy machine takes a minute to import torch."""


FILE_MARKS = re.compile(r"^pytestmark = (\[.*?\]|[^\n]*)$", re.MULTILINE | re.DOTALL)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Import no file whose tests are all left out: Ray takes a second, W&B another."""
    left_out = re.findall(r"not (\w+)", config.option.markexpr)
    is_plain = config.option.markexpr == " and ".join(f"not {mark}" for mark in left_out)
    if not left_out or not is_plain or collection_path.suffix != ".py":
        return None
    found = FILE_MARKS.search(collection_path.read_text())
    marks = re.findall(r"pytest\.mark\.(\w+)", found[1]) if found else []
    return True if set(marks) & set(left_out) else None


def pytest_collection_finish() -> None:
    """Spare the garbage collector what lives as long as the tests: modules, and the tests."""
    gc.collect()
    gc.freeze()
    # Full collections took 2 s of CPU time per process; now there are a fifth as many.
    gc.set_threshold(2_000, 10, 50)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give tests that start runs or ranks more time, unless they say how much."""
    for item in items:
        starts = any(map(item.get_closest_marker, ("run", "distributed")))
        if starts and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(RUN_SECONDS))


@pytest.fixture
def pictures() -> None:
    """Ask for the pictures of runs that train in this process."""


@pytest.fixture(autouse=True)
def _cheaper(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the pictures of runs, half of the time of a short one, for who does not ask.

    And the fsync of unit tests, whose files need not survive a crash of the machine: 2,500 of 1 to
    3 ms each.
    """
    if not any(map(request.node.get_closest_marker, ("run", "distributed", "ray"))):
        monkeypatch.setattr(os, "fsync", lambda file: None)
    elif "pictures" not in request.fixturenames and request.node.get_closest_marker("run"):
        from aae_dist.training.recorder import Recorder

        monkeypatch.setattr(Recorder, "_draw", lambda recorder, shown: None)


def free_port() -> int:
    """Return a TCP port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_it_answers(url: str, server: subprocess.Popen[bytes]) -> None:
    """Return when `url` answers; fail when the server ends or stays silent too long."""
    give_up = time.monotonic() + START_SECONDS
    while time.monotonic() < give_up and server.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=1).close()
        except (URLError, OSError):
            time.sleep(0.05)
        else:
            return
    pytest.fail(f"the S3 server at {url} did not start")


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """Run moto's S3 server as a process of its own, over real HTTP; yield its address."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        wait_until_it_answers(address, server)
        yield address
    finally:
        server.kill()
        server.wait()


@pytest.fixture(scope="session")
def s3_environment(s3_server: str) -> dict[str, str]:
    """Return the variables that make obstore, and child processes, talk to the test's server."""
    return {
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
    }


_numbers = count()


@pytest.fixture
def s3(s3_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Callable[[], str]:
    """Set the environment for the test; return a function that makes a bucket and gives its URI."""
    for name, value in s3_environment.items():
        monkeypatch.setenv(name, value)

    def make_bucket() -> str:
        name = f"bucket-{next(_numbers)}"
        url = f"{s3_environment['AWS_ENDPOINT_URL']}/{name}"
        request = urllib.request.Request(url, method="PUT", data=b"")
        urllib.request.urlopen(request, timeout=30).close()
        return f"s3://{name}"

    return make_bucket
