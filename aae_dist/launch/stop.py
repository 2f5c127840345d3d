"""SIGTERM and Ctrl-C as a request: the first one asks to stop, a second one ends at once."""

import os
import signal
import socket
import threading
import time
from types import FrameType
from typing import Any, Protocol

SIGNALS = (signal.SIGTERM, signal.SIGINT)
ECHO_SECONDS = 2.0
"""torchrun and shells repeat one Ctrl-C to their children: what follows this soon is an echo."""

HANDLER_SECONDS = 0.5
"""Time for the handler itself, which ends the process in the usual way where it can."""


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

    Python takes signals in the main thread only: entered elsewhere, this changes nothing. Handlers
    wait until the main thread comes back to Python, which a rank that waits for another one in a
    collective may not do for minutes; so a thread also reads what arrives, from a socket that
    Python's own C code writes to at once.
    """

    stop_as = "interrupted"

    def __init__(self) -> None:
        self.requested = False
        self._first = 0.0
        self._previous: dict[signal.Signals, Any] = {}
        self._sockets: tuple[socket.socket, socket.socket] | None = None
        self._previous_descriptor = -1

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            self._sockets = ours, pythons = socket.socketpair()
            pythons.setblocking(False)
            self._previous_descriptor = signal.set_wakeup_fd(pythons.fileno())
            threading.Thread(target=_end_by_second, args=(ours, self), daemon=True).start()
            self._previous = {s: signal.signal(s, self._handle) for s in SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self._sockets:
            signal.set_wakeup_fd(self._previous_descriptor)
            self._sockets[1].close()  # which ends the thread

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self._first:
            self.requested, self._first = True, now
        elif now - self._first > ECHO_SECONDS:
            # The default action ends this process without running any more Python.
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)


def _end_by_second(arrived: socket.socket, signals: StopSignals) -> None:
    """End the process by a second signal that its main thread does not take."""
    first = 0.0
    with arrived:
        while numbers := arrived.recv(64):
            for number in numbers:
                now = time.monotonic()
                if number not in SIGNALS:
                    continue
                if not first:
                    first, signals.requested = now, True
                elif now - first > ECHO_SECONDS:
                    time.sleep(HANDLER_SECONDS)
                    os._exit(128 + number)  # as a shell would call the signal
