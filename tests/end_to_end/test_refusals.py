"""Each mistake ends in one clear line and exit code 2, as a new user would meet it."""

import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from helpers.runs import TINY

from aae_dist.cli import main
from aae_dist.storage import open_storage
from aae_dist.training.lock import RunLock

Refused = Callable[..., str]


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Return a function that trains with overrides and returns the one line of the refusal."""

    def run(*items: str) -> str:
        base = ["run.name=x", f"run.storage={tmp_path}/runs", "launch.kind=local", "train.steps=2"]
        assert main(["train", *base, *TINY, "data.validation=null", *items]) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1, lines
        return lines[0]

    return run


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ("train.setps=3", r"unknown key.*train\.steps"),
        ("train.steps=many", r"train\.steps.*whole number.*many"),
        ("prior.kind=swis_roll", r"prior\.kind.*swiss_roll"),
        ("prior.kind=custom", r"prior\.path"),
        ("data.train=/nowhere/at/all", r"/nowhere/at/all.*"),
        ("data.train=s3://a-bucket-that-is-not-there/x", r"a-bucket-that-is-not-there"),
        ("run.storage=s3://a-bucket-that-is-not-there/runs", r"a-bucket-that-is-not-there"),
        ("run.storage=ftp://host/runs", r"ftp"),
    ],
)
def test_a_wrong_setting(item: str, words: str, refused: Refused, s3: object) -> None:
    assert re.search(words, refused(item)), refused(item)


def test_latent_3_with_a_prior_that_exists_in_2_dimensions_only(refused: Refused) -> None:
    line = refused("model.latent_dim=3", "prior.kind=swiss_roll")
    assert "swiss_roll exists in 2 dimensions only (got model.latent_dim=3)" in line


def test_a_folder_without_shards(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert f"{tmp_path}/empty" in refused(f"data.train={tmp_path}/empty")


def test_a_second_writer_of_a_live_run(refused: Refused, tmp_path: Path) -> None:
    with RunLock.acquire(open_storage(f"{tmp_path}/runs/x"), "another launch"):
        assert f"{tmp_path}/runs/x" in refused()


def test_a_file_where_the_storage_should_be(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    assert "runs" in refused()


class Forbidding(BaseHTTPRequestHandler):
    def answer(self) -> None:
        self.send_response(403)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = answer  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:
        return None


@pytest.fixture
def forbidding(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Forbidding)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    yield
    server.shutdown()
    server.server_close()


def test_no_permission_for_a_bucket(refused: Refused, forbidding: None) -> None:
    assert re.search(
        r"s3://bucket/runs.*(permission|allowed|403)", refused("run.storage=s3://bucket/runs")
    )
