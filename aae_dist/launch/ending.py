"""How runs end: requests to stop, and failed workers with their root cause in one line."""

import os
import re
import signal
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Generic, TypeVar, cast

from aae_dist.errors import AaeDistError, LaunchError

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""SIGHUP says that the terminal was closed; under nohup it is ignored, and stays so."""
ECHO_SECONDS = 2.0
"""torchrun and shells repeat one Ctrl-C to their children: what follows this soon is an echo."""

HANDLER_SECONDS = 0.5
"""Time for the handler itself, which ends the process in the usual way where it can."""
# What the surviving ranks report when another one died: never the cause.
_COLLATERAL = re.compile(r"gloo|nccl|connection (reset|closed|refused)|peer|broken pipe", re.I)
_DEATHS = ("ActorDiedError", "RayActorError", "WorkerCrashedError")
_FRAME = re.compile(r"[\s|]+File ")
_LINK = "For further information visit"
MAX_CHARS = 300
PROCESS_DIED = "its process died"
T = TypeVar("T")


class StopReason(StrEnum):
    """Why a run was asked to stop; also the state that it then ends in."""

    INTERRUPTED = "interrupted"  # by a user or the cluster; the same command resumes the run
    PRUNED = "pruned"  # by a sweep's scheduler


class StopToken:
    """A thread-safe request to stop. The first reason wins; a child also follows its parent."""

    def __init__(self, parent: "StopToken | None" = None) -> None:
        self._parent = parent
        self._reason: StopReason | None = None
        self._lock = threading.RLock()  # a signal's handler may interrupt `request` itself

    def request(self, reason: StopReason = StopReason.INTERRUPTED) -> None:
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
        return self.reason is not None


class StopSignals:
    """While entered, SIGTERM, Ctrl-C and a closed terminal request a stop; a second signal ends it.

    A second SIGHUP does not: the kernel and the shell both send one. What is printed from then on
    goes nowhere.
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
        self._terminals: list[int] = []

    def __enter__(self) -> StopToken:
        if threading.current_thread() is threading.main_thread():
            self._sockets = ours, pythons = socket.socketpair()
            pythons.setblocking(False)
            self._previous_descriptor = signal.set_wakeup_fd(pythons.fileno())
            self._terminals = [number for number in (0, 1, 2) if _is_terminal(number)]
            arguments = (ours, self._token, self._terminals)
            threading.Thread(target=_read_signals, args=arguments, daemon=True).start()
            self._previous = {
                number: signal.signal(number, self._handle)
                for number in SIGNALS
                if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN
            }
        return self._token

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self._sockets:
            signal.set_wakeup_fd(self._previous_descriptor)
            self._sockets[1].close()  # which ends the thread

    def _handle(self, number: int, frame: object) -> None:
        now = time.monotonic()
        if number == signal.SIGHUP:
            _close(self._terminals)
        if not self._first:
            self._first = now
            self._token.request()
        elif number == signal.SIGHUP:
            return
        elif now - self._first > ECHO_SECONDS:
            # The default action ends this process without running any more Python.
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)


def _is_terminal(descriptor: int) -> bool:
    try:
        return os.isatty(descriptor)
    except OSError:  # closed
        return False


def _close(terminals: Sequence[int]) -> None:
    """Let what is printed to a terminal that is gone go nowhere; it would be an OSError (EIO)."""
    nowhere = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for descriptor in terminals:
        os.dup2(nowhere, descriptor)
    os.close(nowhere)


def _read_signals(arrived: socket.socket, token: StopToken, terminals: Sequence[int]) -> None:
    """Request a stop at the first signal; end the process by a second that the handler misses."""
    first = 0.0
    with arrived:
        while numbers := arrived.recv(64):
            for number in numbers:
                now = time.monotonic()
                if number not in SIGNALS:
                    continue
                if number == signal.SIGHUP:
                    _close(terminals)
                if not first:
                    first = now
                    token.request()
                elif number != signal.SIGHUP and now - first > ECHO_SECONDS:
                    time.sleep(HANDLER_SECONDS)
                    os._exit(128 + number)  # as a shell would call the signal


class WorkersFailedError(LaunchError):
    """Workers failed more often than `launch.max_failures` allows; not the user's mistake."""

    exit_code = 1


@dataclass(frozen=True)
class WorkerResult(Generic[T]):
    """What a worker returns: a value, or a user error that a restart would only repeat."""

    value: T | None = None
    error: AaeDistError | None = None

    def unwrap(self) -> T:
        if self.error is not None:
            raise self.error
        return cast(T, self.value)


def root_cause(failures: Mapping[int, BaseException]) -> tuple[int, str]:
    """Return the rank that failed first and its error, ignoring failures it caused in its peers."""
    lines = {rank: last_line(error) for rank, error in sorted(failures.items())}
    own = {rank: text for rank, text in lines.items() if not is_collateral(text)}
    return next(iter((own or lines).items()), (0, "unknown cause"))


def is_collateral(text: str) -> bool:
    """Return whether an error is what a rank reports when another one died."""
    return _COLLATERAL.search(text) is not None


def last_line(error: BaseException) -> str:
    """Return an error as one line: its class and what it says."""
    inner = getattr(error, "health_check_failure", error)
    text, name = str(inner), type(inner).__name__
    if name in _DEATHS and _last_frame(text.splitlines()) is None:
        return PROCESS_DIED
    # torch has an error of this name for a GPU's memory, whose own words are the better ones.
    if name == "OutOfMemoryError" and type(inner).__module__ == "ray.exceptions":
        return "its process was ended, since its node ran out of memory"
    if _last_frame(text.splitlines()) is not None or isinstance(inner, LaunchError):
        return condensed(text)
    return condensed(f"{name}: {text}" if text.strip() else name)


def condensed(text: str) -> str:
    """Return the text of an error or a traceback as one line of at most `MAX_CHARS` characters.

    Of a traceback that is what follows its last frame: the exception's class and all that it says,
    since its last line may be a link (pydantic) or a hint for developers (CUDA).
    """
    lines = text.splitlines()
    frame = _last_frame(lines)
    if frame is not None:
        # The frame's code stands indented below it.
        rest = range(frame + 1, len(lines))
        lines = lines[next((n for n in rest if not lines[n].startswith((" ", "\t"))), len(lines)) :]
    parts = [line.strip() for line in lines]
    parts = [part for part in parts if part and not part.startswith(_LINK)]
    ends = [part + (" " if part.endswith((".", ":", ",", ";")) else "; ") for part in parts]
    return "".join(ends).strip("; ")[:MAX_CHARS] or "unknown"


def _last_frame(lines: Sequence[str]) -> int | None:
    return next((n for n in reversed(range(len(lines))) if _FRAME.match(lines[n])), None)


def explain(error: BaseException, max_failures: int, logs: str) -> WorkersFailedError:
    """Return the error to raise for what `TorchTrainer.fit` raised."""
    failures = getattr(error, "worker_failures", None)
    if failures:
        rank, cause = root_cause(failures)
        what = f"rank {rank} failed, and launch.max_failures={max_failures} restarts are used up"
    else:
        cause = last_line(getattr(error, "controller_failure", error))
        what = "Ray Train failed"
    return WorkersFailedError(f"{what}: {cause}. All workers' logs are in {logs} on their nodes.")
