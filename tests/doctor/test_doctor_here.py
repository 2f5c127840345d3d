"""`aae-dist doctor` on one machine, and its probes against real servers and folders."""

import http.server
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest

from aae_dist.cli import main
from aae_dist.doctor import probes

pytestmark = pytest.mark.run  # waits for time-outs, servers or pictures

BASE = ["run.name=x", "data.train=builtin://digits/train", "train.steps=1", "launch.kind=local"]


@contextmanager
def server(status):
    class Answer(http.server.BaseHTTPRequestHandler):
        def reply(self):
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = reply

        def log_message(self, format, *args):
            return None

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as found:
        threading.Thread(target=found.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{found.server_port}"
        found.shutdown()


def test_this_machine_is_fit_and_nothing_is_left_behind(tmp_path, capsys):
    runs = tmp_path / "runs"
    assert main(["doctor", *BASE, f"run.storage={runs}", "wandb.mode=disabled"]) == 0
    out = capsys.readouterr().out
    for subject in ("versions", "gpus", "/dev/shm", "disk", "storage", "wandb"):
        assert f"ok   {subject}" in out
    assert "all is well" in out
    assert not [path for path in runs.rglob("*") if path.is_file() and "lock" not in path.name]


def test_a_sweep_is_examined_as_a_run_is(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    quick = Path(__file__).parents[2] / "configs" / "sweep" / "quick.yaml"
    assert main(["doctor", str(quick), f"run.storage={tmp_path}", "wandb.mode=disabled"]) == 0
    assert "ok   storage" in capsys.readouterr().out


def test_without_a_configuration_it_says_what_it_did_not_check(capsys, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert main(["doctor"]) == 0
    assert "storage, W&B and resources were not checked" in capsys.readouterr().out


def test_storage_in_a_bucket_is_used_for_real(s3):
    uri = f"{s3()}/runs"
    assert probes.storage(uri, "host") == ""
    assert probes.hosts_seen(uri) == {"host"}
    assert probes.hosts_seen(uri) == set()


def test_no_permission_to_write_is_red(capsys, monkeypatch):
    with server(403) as url:
        for name, value in (("ENDPOINT_URL", url), ("ACCESS_KEY_ID", "k"), ("REGION", "r")):
            monkeypatch.setenv(f"AWS_{name}", value)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
        assert main(["doctor", *BASE, "run.storage=s3://b/runs", "wandb.mode=disabled"]) == 2
    out = capsys.readouterr().out
    [line] = [line for line in out.splitlines() if line.startswith("RED")]
    assert "storage" in line
    assert "permission" in line
    assert "->" in line
    assert "1 problem found" in out


@pytest.mark.parametrize(("status", "ok"), [(200, False), (401, True), (403, True), (500, False)])
def test_a_dashboard_must_refuse_who_has_no_token(status, ok):
    with server(status) as url:
        [finding] = probes.dashboard(url)
    assert finding.ok is ok
    assert bool(finding.advice) is not ok


@pytest.mark.parametrize(("status", "ok"), [(200, True), (404, True), (503, False)])
def test_wandb_is_asked(status, ok):
    with server(status) as url:
        [finding] = probes.wandb(url)
    assert finding.ok is ok


def test_wandb_that_nobody_reaches_is_red(monkeypatch):
    [finding] = probes.wandb("http://127.0.0.1:9")
    assert not finding.ok
    assert "wandb.mode=offline" in finding.advice
