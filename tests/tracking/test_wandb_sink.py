"""Against the real wandb, with servers that are down, hang or refuse."""

import http.server
import io
import os
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from aae_dist.tracking.wandb_sink import WandbSink

pytest.importorskip("wandb", reason="the engine's tests also pass without wandb")
pytestmark = pytest.mark.run


@contextmanager
def server(status: int | None) -> Iterator[str]:
    """Run a W&B server that answers `status` to everything, or never answers."""
    released = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if status is None:
                released.wait(60)
            self.send_response(status or 500)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        do_GET = do_POST  # noqa: N815 (the name that http.server calls)

        def log_message(self, *arguments: object) -> None:
            pass

    class Quiet(http.server.ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            pass  # the client was killed

    with Quiet(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        released.set()
        running.shutdown()
        thread.join()


def open_sink(folder: Path, mode: str, lines: list[str], close_seconds: float, **more) -> WandbSink:
    start = {
        "mode": mode,
        "project": "tests",
        "entity": None,
        "group": None,
        "tags": ["a"],
        "name": "digits",
        "id": "0123456789abcdef",
        "config": {"run": {"name": "digits"}},
        "dir": str(folder),
        "init_seconds": 10.0,
        "finish_seconds": 5.0,
    }
    return WandbSink(start, folder, lines.append, more.pop("keep", lambda _: None), close_seconds)


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (4, 4)).save(buffer, format="png")
    return buffer.getvalue()


def log_seconds(sink: WandbSink) -> float:
    """Return the median time that a record takes: on a busy machine a few take long."""
    seconds = []
    for step in range(200):
        started = time.perf_counter()
        sink.log({"step": step, "loss/reconstruction": 1.0, "lr/generator": float("nan")})
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False


def processes_started_for(pid: int) -> list[int]:
    """Return wandb-core processes that serve the process `pid`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            arguments = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"wandb-core" in arguments[0] and str(pid).encode() in arguments:
            found.append(int(path.parent.name))
    return [pid for pid in found if alive(pid)]


@pytest.fixture(autouse=True)
def no_settings_of_this_machine(monkeypatch, tmp_path):
    for name in [n for n in os.environ if n.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


def test_an_offline_run_holds_records_and_pictures_and_leaves_no_process(tmp_path):
    lines, kept = [], []
    folder = tmp_path / "local"

    def keep(path: Path) -> None:
        kept.extend(str(p.relative_to(path)) for p in path.rglob("*") if p.is_file())

    sink = open_sink(folder, "offline", lines, 50, keep=keep)
    assert log_seconds(sink) < 0.005
    sink.picture("latent_codes", png(), 200)
    sink.close({"step": 200, "loss/reconstruction": 0.5}, "finished")
    sink.close({}, "finished")
    assert [line.split(",")[0] for line in lines] == ["W&B wrote offline"]
    assert sink.num_dropped == 0
    (log,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    content = log.read_bytes()
    assert content.count(b"loss/reconstruction") >= 200
    assert b"pictures/latent_codes" in content
    assert any("media/images/pictures/latent_codes" in name for name in kept)
    assert processes_started_for(sink._process.pid) == []


def test_a_server_that_never_answers_costs_a_bounded_time_at_the_end_only(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    lines: list[str] = []
    with server(status=None) as url:
        monkeypatch.setenv("WANDB_BASE_URL", url)
        sink = open_sink(tmp_path / "local", "online", lines, close_seconds=4)
        assert log_seconds(sink) < 0.005
        started = time.monotonic()
        sink.close({"step": 1}, "finished")
        assert time.monotonic() - started < 30
    assert "W&B writes offline" in lines[0]
    assert len(lines) <= 3
    give_up = time.monotonic() + 10
    while processes_started_for(sink._process.pid) and time.monotonic() < give_up:
        time.sleep(0.1)
    assert processes_started_for(sink._process.pid) == []


@pytest.mark.slow
@pytest.mark.parametrize("trouble", ["refuses the key", "is down"])
def test_a_run_that_cannot_be_opened_online_is_written_offline(tmp_path, monkeypatch, trouble):
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    lines: list[str] = []
    with server(status=401) as url, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        down = f"http://127.0.0.1:{closed.getsockname()[1]}"
        monkeypatch.setenv("WANDB_BASE_URL", down if trouble == "is down" else url)
        sink = open_sink(tmp_path / "local", "online", lines, close_seconds=50)
        assert log_seconds(sink) < 0.005
        sink._connected.wait(40)
        sink.close({"step": 1}, "finished")
    assert len(lines) == 2, lines
    assert lines[0].startswith("W&B writes offline, for `wandb sync` to upload later: ")
    assert lines[1].startswith("W&B wrote offline, to ")
    (log,) = (tmp_path / "local").glob("wandb/offline-run-*/run-*.wandb")
    assert log.read_bytes().count(b"loss/reconstruction") >= 200


def test_a_process_that_stops_working_is_ended(tmp_path):
    lines: list[str] = []
    sink = open_sink(tmp_path / "local", "offline", lines, close_seconds=2)
    while sink._process is None:
        time.sleep(0.01)
    os.kill(sink._process.pid, signal.SIGSTOP)
    assert log_seconds(sink) < 0.005
    started = time.monotonic()
    sink.close({"step": 1}, "finished")
    assert time.monotonic() - started < 30
    assert "all in metrics.jsonl" in lines[-1]
    assert not alive(sink._process.pid)


def test_a_full_queue_drops_and_counts(tmp_path):
    lines: list[str] = []
    start = {"mode": "offline"}
    sink = WandbSink(start, tmp_path / "w", lines.append, lambda _: None, 2, queue_length=5)
    for step in range(2000):
        sink.log({"step": step})
    assert sink.num_dropped >= 1900
    sink.close({}, "finished")
    assert any("W&B was too slow" in line for line in lines)


def test_a_copy_that_fails_is_a_line(tmp_path):
    def keep(path: Path) -> None:
        raise OSError("bucket is gone")

    lines: list[str] = []
    sink = WandbSink({"mode": "offline"}, tmp_path / "w", lines.append, keep, close_seconds=2)
    sink.close({}, "finished")
    assert lines[-1] == "W&B files were not copied to the run's folder: bucket is gone"


def test_the_process_ends_when_training_is_killed(tmp_path):
    script = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from aae_dist.tracking.wandb_sink import WandbSink\n"
        "sink = WandbSink({'mode': 'offline'}, Path(sys.argv[1]), print, print)\n"
        "while sink._process is None: time.sleep(0.01)\n"
        "print(sink._process.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    training = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "w")], stdout=subprocess.PIPE
    )
    with training:
        pid = int(training.stdout.readline())
        training.kill()
    give_up = time.monotonic() + 40
    while alive(pid) and time.monotonic() < give_up:
        time.sleep(0.1)
    assert not alive(pid)


def test_the_training_process_never_imports_wandb():
    code = "import sys, aae_dist.tracking; sys.exit('wandb' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
