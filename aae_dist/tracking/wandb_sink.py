"""Weights & Biases behind a bounded queue and a process of its own.

Nothing here can stop or slow down training: `log` only fills a queue, a full queue drops and
counts, and `close` ends the process if the server does not answer in time. All metrics are in
metrics.jsonl whatever happens here.
"""

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from aae_dist.tracking import wandb_process
from aae_dist.tracking.json_lines import finite
from aae_dist.tracking.sinks import Record

QUEUE_LENGTH = 10_000
CLOSE_SECONDS = 20.0
LOG_NAME = "wandb_process.log"

Request = dict[str, Any]


class WandbSink:
    """Sends records and pictures to the process that `wandb_process` is.

    Args:
        start: What opens the run there (see `wandb_process._init`).
        folder: Node-local folder of W&B's own files.
        write: Shows one line.
        keep_files: Copies the folder into the run's folder, called once at the end.
        close_seconds: Longest time that `close` waits for the server.
        queue_length: Requests that wait at most; more are dropped.
    """

    def __init__(
        self,
        start: Mapping[str, Any],
        folder: Path,
        write: Callable[[str], None],
        keep_files: Callable[[Path], None],
        close_seconds: float = CLOSE_SECONDS,
        queue_length: int = QUEUE_LENGTH,
    ) -> None:
        self._folder, self._write, self._keep_files = folder, write, keep_files
        self._close_seconds = close_seconds
        self._queue: queue.Queue[Request] = queue.Queue(queue_length)
        self._process: subprocess.Popen[bytes] | None = None
        self._closing = threading.Event()
        self.num_dropped = 0
        self._sender = threading.Thread(target=self._send_all, args=(dict(start),), daemon=True)
        self._sender.start()

    def log(self, record: Record) -> None:
        """Queue one log point."""
        self._put({"record": finite(record)})

    def picture(self, name: str, png: bytes, step: int) -> None:
        """Queue one picture."""
        self._put({"picture": name, "png": png, "step": step})

    def close(self, summary: Record, state: str) -> None:
        """Send the summary, wait a bounded time for the server, copy the files."""
        deadline = time.monotonic() + self._close_seconds
        if not self._closing.is_set():
            self._closing.set()
            with suppress(queue.Full):
                last = {"close": finite(summary), "state": state}
                self._queue.put(last, timeout=self._close_seconds)
            self._end_process(deadline)
            self._copy_files()

    def _put(self, request: Request) -> None:
        try:
            self._queue.put_nowait(request)
        except queue.Full:
            self.num_dropped += 1

    def _send_all(self, start: Request) -> None:
        try:
            self._process = process = _start_process(self._folder)
        except OSError as error:
            self._write(f"W&B is off: its process could not be started: {error}")
            return
        reader = threading.Thread(target=self._show_answers, args=(process,), daemon=True)
        reader.start()
        # A process that has ended, or was ended, breaks the pipe; what is left is dropped.
        with suppress(OSError, ValueError):
            _send(process, start)
            while True:
                request = self._queue.get()
                _send(process, self._with_file(request))
                if "close" in request:
                    break
        with suppress(OSError):
            assert process.stdin is not None
            process.stdin.close()
        reader.join()

    def _show_answers(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self._write(json.loads(line)["line"])

    def _with_file(self, request: Request) -> Request:
        """Pass a picture on as a file: W&B copies it."""
        if "png" not in request:
            return request
        path = self._folder / f"{request['picture']}-{request['step']}.png"
        path.write_bytes(request["png"])
        return {name: value for name, value in request.items() if name != "png"} | {
            "path": str(path)
        }

    def _end_process(self, deadline: float) -> None:
        self._sender.join(max(deadline - time.monotonic(), 0))
        process = self._process
        if process is None:
            return
        try:
            status = process.wait(max(deadline - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            self._write(
                f"W&B did not take all metrics within {self._close_seconds:.0f} s and was left "
                "behind; they are all in metrics.jsonl"
            )
            process.kill()
            process.wait()
            self._sender.join(5)
            return
        if status:
            self._write(f"W&B ended with status {status}; see {LOG_NAME}")
        if self.num_dropped:
            self._write(
                f"W&B was too slow: {self.num_dropped} log points are in metrics.jsonl only"
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
