"""SIGTERM and Ctrl-C as a request: the first one asks to stop, a second one ends at once."""

import os
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any, Protocol

SIGNALS = (signal.SIGTERM, signal.SIGINT)
ECHO_SECONDS = 2.0
"""torchrun and shells repeat one Ctrl-C to their children: what follows this soon is an echo."""


class StopRequest(Protocol):
    """Says whether to stop, and what the stopped run counts as."""

    @property
    def requested(self) -> bool:
        """Whether somebody asked."""

    @property
    def stop_as(self) -> str:
        """interrupted, or pruned when a sweep's scheduler asked."""


class StopSignals:
    """While entered, turns signals into the flag `requested`.

    Python takes signals in the main thread only: entered elsewhere, this changes nothing.
    """

    stop_as = "interrupted"

    def __init__(self) -> None:
        self.requested = False
        self._first = 0.0
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            self._previous = {s: signal.signal(s, self._handle) for s in SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.requested:
            self.requested, self._first = True, now
        elif now - self._first > ECHO_SECONDS:
            # The default action ends this process without running any more Python.
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
