"""Weights & Biases behind a bounded queue and a process of its own.

Nothing here can stop or slow down training: `log` only fills a queue, a full queue drops and
counts, and `close` ends the process if the server does not answer in time. All metrics are in
metrics.jsonl whatever happens here.
"""

import importlib.util
import json
import netrc
import os
import queue
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from aae_dist.config import RunConfig
from aae_dist.storage import Storage, is_remote, join
from aae_dist.tracking import sinks, wandb_process
from aae_dist.utils.text import redacted, strip_environment

QUEUE_LENGTH = 10_000
CLOSE_SECONDS = 20.0
LOG_NAME = "wandb_process.log"

Request = dict[str, Any]


class WandbSink:
    """Sends records and pictures to the process of `wandb_process`.

    `start` is the request that opens the run. `keep_files` copies the node-local folder of W&B's
    own files into the run's folder, once at the end. `close` waits for the server at most
    `close_seconds`; of more than `queue_length` waiting requests the rest are dropped. `kept_at` is
    the address of the run's folder, for the line that says how to upload what was written offline.
    """

    def __init__(
        self,
        start: Mapping[str, Any],
        folder: Path,
        write: Callable[[str], None],
        keep_files: Callable[[Path], None],
        close_seconds: float = CLOSE_SECONDS,
        queue_length: int = QUEUE_LENGTH,
        kept_at: str = "",
    ) -> None:
        self._folder, self._write, self._keep_files = folder, write, keep_files
        self._close_seconds, self._kept_at = close_seconds, kept_at
        self._queue: queue.Queue[Request] = queue.Queue(queue_length)
        self._process: subprocess.Popen[bytes] | None = None
        self._connected, self._given_up, self._closed = threading.Event(), False, False
        self._is_online = start["mode"] == "online"
        self.num_dropped = 0
        self._sender = threading.Thread(target=self._serve, args=(dict(start),), daemon=True)
        self._sender.start()

    def log(self, record: sinks.Record) -> None:
        self._put({"record": sinks.finite(record)})

    def picture(self, name: str, png: bytes, step: int) -> None:
        self._put({"picture": name, "png": png, "step": step})

    def close(self, summary: sinks.Summary, state: str) -> None:
        if self._closed:
            return
        self._closed = True
        deadline = time.monotonic() + self._close_seconds
        with suppress(queue.Full):
            words = {name: value for name, value in summary.items() if isinstance(value, str)}
            numbers = {name: v for name, v in summary.items() if not isinstance(v, str)}
            last = {"close": {**sinks.finite(numbers), **words}, "state": state}
            self._queue.put(last, timeout=self._close_seconds / 2)
        # A server that does not answer leaves the second half of the time to write offline.
        if self._is_online and not self._connected.wait(self._close_seconds / 2):
            self._kill()
        self._sender.join(max(deadline - time.monotonic(), 0))
        if self._sender.is_alive():
            self._give_up()
        if self.num_dropped:
            self._write(f"W&B was too slow: {self.num_dropped} requests are in the run folder only")
        self._copy_files()
        for path in sorted(self._folder.glob("wandb/offline-run-*")):
            self._write(self._how_to_sync(path.name))

    def _how_to_sync(self, name: str) -> str:
        place = join(self._kept_at or str(self._folder), "wandb", name)
        where = f"W&B wrote offline, to {place}."
        if is_remote(place):
            return f"{where} Upload: copy that folder to this machine, then wandb sync {name}"
        return f"{where} Upload: wandb sync {shlex.quote(place)}"

    def _put(self, request: Request) -> None:
        try:
            self._queue.put_nowait(request)
        except queue.Full:
            self.num_dropped += 1

    def _serve(self, start: Request) -> None:
        """Open the run, offline if the server cannot be reached, and send what the queue holds."""
        problem = None
        for mode in ["online", "offline"] if self._is_online else ["offline"]:
            if problem is not None:
                self._write(f"W&B writes offline, for `wandb sync` to upload later: {problem}")
            problem = self._serve_as({**start, "mode": mode})
            self._connected.set()
            if problem is None:
                return
        if not self._given_up:
            self._write(f"W&B is off: {problem}")

    def _serve_as(self, start: Request) -> str | None:
        """Serve in one mode to the end, or return the reason that the run could not be opened."""
        try:
            process = _start_process(self._folder)
        except OSError as error:
            return f"its process could not be started: {error}"
        self._process = process
        if self._given_up:
            self._kill()
        try:
            problem = _problem_of_opening(process, start)
            if problem is None:
                self._connected.set()
                self._send_all(process)
            else:
                self._kill()
        finally:
            _close_pipes(process)
        return problem

    def _send_all(self, process: subprocess.Popen[bytes]) -> None:
        """Send requests until the last, then wait for the process to finish the upload."""
        # A process that has ended, or was ended, breaks the pipe; what is left is dropped.
        with suppress(OSError):
            while True:
                request = self._queue.get()
                _send(process, self._with_file(request))
                if "close" in request:
                    break
        _close_pipes(process)
        status = process.wait()
        if status and not self._given_up:
            self._write(f"W&B ended early with status {status}; see {LOG_NAME}")

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _with_file(self, request: Request) -> Request:
        """Pass a picture on as a file: W&B copies it."""
        if "png" not in request:
            return request
        path = self._folder / f"{request['picture']}-{request['step']}.png"
        path.write_bytes(request["png"])
        return {name: value for name, value in request.items() if name != "png"} | {
            "path": str(path)
        }

    def _give_up(self) -> None:
        self._given_up = True
        self._kill()
        self._sender.join(1)
        self._write(
            f"W&B did not take all metrics within {self._close_seconds:.0f} s and was left behind; "
            "they are all in metrics.jsonl"
        )

    def _copy_files(self) -> None:
        try:
            self._keep_files(self._folder)
        except Exception as error:  # a lost copy must not fail a finished run
            self._write(f"W&B files were not copied to the run's folder: {error}")


def _start_process(folder: Path) -> subprocess.Popen[bytes]:
    folder.mkdir(parents=True, exist_ok=True)
    # WANDB_SERVICE would join another process's service, which outlives or precedes this run.
    environment = {name: v for name, v in os.environ.items() if name != "WANDB_SERVICE"}
    with (folder / LOG_NAME).open("ab") as log:
        return subprocess.Popen(
            # -P: the script's folder stays off the module path, where our names could hide others.
            [sys.executable, "-P", wandb_process.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=environment,
            # Signals for the training's process group, like Ctrl-C, must not reach it.
            start_new_session=True,
        )


def _send(process: subprocess.Popen[bytes], request: Request) -> None:
    assert process.stdin is not None
    process.stdin.write(json.dumps(request).encode() + b"\n")
    process.stdin.flush()


def _problem_of_opening(process: subprocess.Popen[bytes], start: Request) -> str | None:
    """Have the process open the run; return its error message, None if it succeeded."""
    assert process.stdout is not None
    try:
        _send(process, start)
        answer = process.stdout.readline()
    except OSError as error:
        return f"its process ended: {error}"
    if not answer:
        return "the run could not be opened in time"
    problem = json.loads(answer).get("problem")
    return None if problem is None else str(problem)


def _close_pipes(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            # Closing flushes what a broken pipe did not take.
            with suppress(OSError):
                pipe.close()


INIT_SECONDS = 30.0
MARGIN_SECONDS = 6.0
"""Time that closing leaves for everything but the upload."""
DEFAULT_SERVER = "https://api.wandb.ai"
SAME_MODES = {"run": "online", "dryrun": "offline", "shared": "online"}


def open_wandb(
    config: RunConfig,
    run_id: str,
    storage: Storage,
    folder: Path,
    write: Callable[[str], None],
    classes: Mapping[str, int] | None = None,
) -> WandbSink | None:
    """Return the sink, or None where W&B is off; `write` gets one line that says why.

    `run_id` is the run's own, the same after every resume and of no other run.
    W&B's files lie in the node-local `folder` and are copied to `wandb/` of the run at the end.
    """
    strip_environment()
    installed = importlib.util.find_spec("wandb") is not None
    mode, line = decide_mode(config.wandb.mode, os.environ, installed, Path.home())
    if line:
        write(line)
    if mode == "disabled":
        return None
    keep_files = partial(copy_files, storage=storage)
    start = start_request(config, run_id, mode, folder)
    if classes:  # W&B shows them in the run's configuration
        start["config"]["classes"] = dict(classes)
    return WandbSink(start, folder, write, keep_files, kept_at=storage.uri)


def decide_mode(
    wanted: str, environment: Mapping[str, str], installed: bool, home: Path
) -> tuple[str, str]:
    """Return online, offline or disabled, and a line for the user or nothing."""
    # WANDB_MODE, set by the user who starts the job, takes precedence over the configuration.
    override = environment.get("WANDB_MODE", "")
    mode = SAME_MODES.get(override, override) or wanted
    if mode == "disabled":
        return "disabled", "W&B is off (WANDB_MODE)" if override else ""
    if not installed:
        return "disabled", "W&B is off: not installed (pip install 'aae_dist[wandb]')"
    if mode == "offline" or has_key(environment, home):
        return ("offline" if mode == "offline" else "online"), ""
    if mode == "auto":
        return "disabled", "W&B is off: no API key (set WANDB_API_KEY or run `wandb login`)"
    return "offline", (
        "W&B has no API key (WANDB_API_KEY or `wandb login`): writing offline; "
        "`wandb sync` uploads the run's wandb folder later"
    )


def has_key(environment: Mapping[str, str], home: Path) -> bool:
    """Return whether W&B will find credentials for its server."""
    if environment.get("WANDB_API_KEY") or environment.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    named = environment.get("NETRC")
    for path in [Path(named)] if named else [home / ".netrc", home / "_netrc"]:
        # An address that is none, a home that does not exist, a file that is no text: no key.
        with suppress(OSError, ValueError, RuntimeError, netrc.NetrcParseError):
            host = urlsplit(environment.get("WANDB_BASE_URL") or DEFAULT_SERVER).hostname or ""
            if netrc.netrc(str(path.expanduser())).authenticators(host):
                return True
    return False


def start_request(config: RunConfig, run_id: str, mode: str, folder: Path) -> dict[str, Any]:
    """Return the request that opens the run in the W&B process."""
    return config.wandb.model_dump(mode="json") | {
        "mode": mode,
        "name": config.run.title or config.run.name,
        "id": run_id,
        "config": redacted(config.model_dump(mode="json")),
        "dir": str(folder),
        "init_seconds": INIT_SECONDS,
        "finish_seconds": CLOSE_SECONDS - MARGIN_SECONDS,
    }


def copy_files(folder: Path, storage: Storage) -> None:
    """Copy W&B's run folders to `wandb/` of the run, links and debug logs left out."""
    root = folder / "wandb"
    for path in sorted(root.rglob("*")):
        inside = path.relative_to(root)
        links = any(
            (root / Path(*inside.parts[: i + 1])).is_symlink() for i in range(len(inside.parts))
        )
        if path.is_file() and not links and "logs" not in inside.parts:
            storage.upload(f"wandb/{inside.as_posix()}", path)
