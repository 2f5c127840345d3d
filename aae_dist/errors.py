"""All errors that aae_dist raises on purpose.

AaeDistError
 |- ConfigError            the run's configuration is wrong; the message names the key and the fix
 |- DataError              shards, manifests or samples are missing, damaged or not as declared
 |   |- ShardError         a whole shard cannot be used, whatever is tried
 |   `- SampleError        one sample cannot be used
 |- CheckpointError        no checkpoint verifies, or one does not fit the run that resumes
 |- LaunchError            the run cannot start here: storage, resources, a second writer
 |   |- StorageError       a bucket or a web server refused, and why in one word
 |   |- RunBusyError       another process writes this run
 |   `- RanksDifferError   ranks diverged and rolling back did not help: suspect hardware
 |- TrainingDivergedError  too many consecutive updates had non-finite gradients
 `- Interrupted            a stop was asked for and a checkpoint was saved

A message states the problem, the value found, and the fix. Each class carries its exit code.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

_COMMANDS = {
    code: ascii(chr(code))[1:-1]
    for code in (*range(9), *range(11, 32), *range(127, 160), *range(0x202A, 0x202F))
} | {code: ascii(chr(code))[1:-1] for code in range(0x2066, 0x206A)}
"""Characters that command a terminal or reorder a line; a message may repeat a user's text."""
StorageReason = Literal["forbidden", "changed", "unreachable", "other"]
"""Why a bucket or a web server refused: forbidden and changed are final; unreachable means that all
retries failed; other is the server's own words."""
ShardReason = Literal[
    "missing", "unreadable", "forbidden", "changed", "unreachable", "size", "count", "damaged"
]
SampleReason = Literal["field", "image", "array", "size", "label", "unreadable", "damaged"]


class AaeDistError(Exception):
    """Base of all errors that aae_dist raises on purpose; catch this one.

    Its text is fit for a terminal: control characters in it are escaped.
    """

    exit_code = 2

    def __str__(self) -> str:
        return super().__str__().translate(_COMMANDS)


class ConfigError(AaeDistError):
    """The configuration is wrong."""


class DataError(AaeDistError):
    """Data is missing, damaged, or not what the manifest or the configuration says."""


class ShardError(DataError):
    """A whole shard cannot be used: all its samples are lost, those of other shards are not."""

    def __init__(self, message: str, reason: ShardReason = "damaged") -> None:
        super().__init__(message)
        self.reason = reason


class SampleError(DataError):
    """One sample cannot be used; the message lacks its name."""

    def __init__(self, message: str, reason: SampleReason = "damaged") -> None:
        super().__init__(message)
        self.reason = reason


class CheckpointError(AaeDistError):
    """A checkpoint cannot be used: it does not verify or does not fit this run."""


class LaunchError(AaeDistError):
    """The run cannot start or continue here."""


class StorageError(LaunchError):
    """A bucket or a web server refused."""

    def __init__(self, message: str, reason: StorageReason = "other") -> None:
        super().__init__(message)
        self.reason = reason


class RunBusyError(LaunchError):
    """Another process, which lives, writes this run."""


class RanksDifferError(LaunchError):
    """Ranks drifted apart, without a checkpoint to roll back to, or repeatedly."""

    exit_code = 1


class TrainingDivergedError(AaeDistError):
    """Gradients were not finite for `train.max_skipped_updates` consecutive updates."""

    exit_code = 3


class Interrupted(AaeDistError):
    """Stopped as requested, with a checkpoint if training had started; the same command resumes."""

    exit_code = 4


def packed(error: BaseException) -> list[str]:
    """Serialize an error for other processes: its class's name and its text, fit for JSON."""
    return [type(error).__name__, str(error)]


def unpacked(pair: Sequence[str]) -> AaeDistError:
    """Deserialize an error; one of another package becomes an AaeDistError."""
    name, message = pair
    return by_name(name)(message)


def by_name(name: str) -> type[AaeDistError]:
    """Return the error class called `name`, AaeDistError when it is none of ours."""
    classes = {c.__name__: c for c in _below(AaeDistError)}
    return classes.get(name, AaeDistError)


def _below(parent: type[AaeDistError]) -> Iterator[type[AaeDistError]]:
    for child in parent.__subclasses__():
        yield child
        yield from _below(child)
