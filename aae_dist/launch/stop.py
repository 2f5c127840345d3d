"""Requests to stop: a token that training polls; signals, schedulers and drivers set it."""

import os
import signal
import socket
import threading
import time
from enum import StrEnum
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)
ECHO_SECONDS = 2.0
"""torchrun and shells repeat one Ctrl-C to their children: what follows this soon is an echo."""

HANDLER_SECONDS = 0.5
"""Time for the handler itself, which ends the process in the usual way where it can."""


class StopReason(StrEnum):
    """Why a run was asked to stop; also the state that it then ends in."""

    INTERRUPTED = "interrupted"
    """By a user or the cluster; the same command resumes the run."""
    PRUNED = "pruned"
    """By a sweep's scheduler."""


class StopToken:
    """A thread-safe request to stop. The first reason wins; a child also follows its parent."""

    def __init__(self, parent: "StopToken | None" = None) -> None:
        self._parent = parent
        self._reason: StopReason | None = None
        self._lock = threading.RLock()  # a signal's handler may interrupt `request` itself

    def request(self, reason: StopReason = StopReason.INTERRUPTED) -> None:
        """Ask to stop."""
        with self._lock:
            if self.reason is None:
                self._reason = reason

    @property
    def reason(self) -> StopReason | None:
        """Why to stop, None while there is no request."""
        if self._reason is None and self._parent is not None:
            return self._parent.reason
        return self._reason

    @property
    def requested(self) -> bool:
        """Whether to stop."""
        return self.reason is not None


class StopSignals:
    """While entered, SIGTERM and Ctrl-C request a stop; a second signal ends the process at once.

    Python takes signals in the main thread only: entered in another one, this changes nothing.
    Handlers run when the main thread comes back to Python, which a rank that waits for another one
    in a collective may not do for minutes; so a thread also reads what arrives, from a socket that
    Python's own C code writes to at once.
    """

    def __init__(self) -> None:
        self._token = StopToken()
        self._first = 0.0
        self._previous: dict[signal.Signals, Any] = {}
        self._sockets: tuple[socket.socket, socket.socket] | None = None
        self._previous_descriptor = -1

    def __enter__(self) -> StopToken:
        if threading.current_thread() is threading.main_thread():
            self._sockets = ours, pythons = socket.socketpair()
            pythons.setblocking(False)
            self._previous_descriptor = signal.set_wakeup_fd(pythons.fileno())
            threading.Thread(target=_read_signals, args=(ours, self._token), daemon=True).start()
            self._previous = {s: signal.signal(s, self._handle) for s in SIGNALS}
        return self._token

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self._sockets:
            signal.set_wakeup_fd(self._previous_descriptor)
            self._sockets[1].close()  # which ends the thread

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self._first:
            self._first = now
            self._token.request()
        elif now - self._first > ECHO_SECONDS:
            # The default action ends this process without running any more Python.
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)


def _read_signals(arrived: socket.socket, token: StopToken) -> None:
    """Request a stop at the first signal; end the process by a second that the handler misses."""
    first = 0.0
    with arrived:
        while numbers := arrived.recv(64):
            for number in numbers:
                now = time.monotonic()
                if number not in SIGNALS:
                    continue
                if not first:
                    first = now
                    token.request()
                elif now - first > ECHO_SECONDS:
                    time.sleep(HANDLER_SECONDS)
                    os._exit(128 + number)  # as a shell would call the signal
