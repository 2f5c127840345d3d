"""What to say when ranks fail: the cause in one line, and where the rest is."""

import re
from collections.abc import Mapping

from aae_dist.errors import LaunchError

# What the surviving ranks say when another one died: never the cause.
_COLLATERAL = re.compile(r"gloo|nccl|connection (reset|closed|refused)|peer|broken pipe", re.I)
MAX_CHARS = 300


class WorkersFailedError(LaunchError):
    """Workers failed more often than `launch.max_failures` allows; not the user's mistake."""

    exit_code = 1


def root_cause(failures: Mapping[int, BaseException]) -> tuple[int, str]:
    """Return the rank that failed of itself and its last line, not those whom it took along."""
    lines = {rank: last_line(error) for rank, error in sorted(failures.items())}
    own = {rank: text for rank, text in lines.items() if not is_collateral(text)}
    return next(iter((own or lines).items()), (0, "unknown cause"))


def is_collateral(text: str) -> bool:
    """Return whether an error is what a rank says when another one died."""
    return _COLLATERAL.search(text) is not None


def last_line(error: BaseException) -> str:
    """Return an error as one line: of a traceback its last line, which names the exception."""
    inner = getattr(error, "health_check_failure", error)
    if type(inner).__name__ in ("ActorDiedError", "RayActorError", "WorkerCrashedError"):
        return "its process died"
    # torch has an error of this name for a GPU's memory, whose own words are the better ones.
    if type(inner).__name__ == "OutOfMemoryError" and type(inner).__module__ == "ray.exceptions":
        return "its process was ended, since its node ran out of memory"
    text = str(inner).strip()
    if "\n" not in text and not isinstance(inner, LaunchError):
        text = f"{type(inner).__name__}: {text}"
    return text.splitlines()[-1].strip()[:MAX_CHARS]


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
