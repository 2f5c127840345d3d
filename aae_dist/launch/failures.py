"""Failed workers: their root cause in one line, and results that carry a user's error."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

from aae_dist.errors import AaeDistError, LaunchError

# What the surviving ranks report when another one died: never the cause.
_COLLATERAL = re.compile(r"gloo|nccl|connection (reset|closed|refused)|peer|broken pipe", re.I)
_DEATHS = ("ActorDiedError", "RayActorError", "WorkerCrashedError")
_FRAME = re.compile(r"[\s|]+File ")
_LINK = "For further information visit"
MAX_CHARS = 300
PROCESS_DIED = "its process died"
T = TypeVar("T")


class WorkersFailedError(LaunchError):
    """Workers failed more often than `launch.max_failures` allows; not the user's mistake."""

    exit_code = 1


@dataclass(frozen=True)
class WorkerResult(Generic[T]):
    """What a worker returns: a value, or a user error that a restart would only repeat."""

    value: T | None = None
    error: AaeDistError | None = None

    def unwrap(self) -> T:
        """Return the value, or raise the error."""
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
    """Return the number of the line that names a traceback's last frame."""
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
