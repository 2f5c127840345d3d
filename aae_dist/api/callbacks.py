"""Functions of the user's own that a run calls at log points, evaluations and checkpoints."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from aae_dist.errors import ConfigError
from aae_dist.launch.ending import StopToken

Metrics = dict[str, float]


class Callback:
    """Base of callbacks: override what is needed. Any object with one of the methods will do.

    All run in the thread that trains, on rank 0, between two steps: training waits for them. A
    method that returns True asks the run to stop: it saves a checkpoint and ends as interrupted,
    and the same call resumes it. An exception stops it in the same way, and is then raised by
    `aae_dist.train`.
    """

    def on_log(self, metrics: Metrics) -> bool | None:
        """Take a log point: `step`, `epoch`, `samples_seen` and metrics by name (docs/metrics.md).

        Metrics of an evaluation at the same step are part of it.
        """

    def on_evaluate(self, metrics: Metrics) -> bool | None:
        """Take the metrics of an evaluation: `step`, `prior_match/c2st`, `reconstruction/mse`, ...

        All are floats; docs/metrics.md has their meanings and units.
        """

    def on_checkpoint(self, checkpoint: dict[str, Any]) -> bool | None:
        """Take a checkpoint that is stored: `step`, `uri` of its folder, `best`."""


METHODS = ("on_log", "on_evaluate", "on_checkpoint")


class Callbacks:
    """Calls the callbacks of a run; a sink of metrics.

    Attributes:
        error: the first exception of a callback, to be raised when the run has ended.
    """

    def __init__(self, callbacks: Sequence[Any]) -> None:
        """Check the callbacks; ConfigError for one that has none of the methods."""
        given = callbacks if isinstance(callbacks, list | tuple) else (callbacks,)
        for callback in given:
            if isinstance(callback, type):
                raise ConfigError(
                    f"callbacks: {callback.__name__} is a class; give an object, "
                    f"{callback.__name__}()"
                )
            if not any(callable(getattr(callback, name, None)) for name in METHODS):
                raise ConfigError(
                    f"callbacks: {type(callback).__name__} has none of {', '.join(METHODS)}; "
                    "derive it from aae_dist.Callback"
                )
        self._callbacks: Sequence[Any] = given
        self._stop = StopToken()
        self.error: BaseException | None = None

    def attach(self, stop: StopToken) -> None:
        """Let the callbacks stop the run by `stop`."""
        self._stop = stop

    # The sink.

    def log(self, record: Mapping[str, float | int]) -> None:
        if any(name.startswith(("loss/", "lr/")) for name in record):
            self._call("on_log", dict(record))
        if "reconstruction/mse" in record:
            self._call("on_evaluate", dict(record))

    def picture(self, name: str, png: bytes, step: int) -> None:
        pass

    def close(self, summary: Mapping[str, float | int | str], state: str) -> None:
        pass

    def on_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Call all for a stored checkpoint."""
        self._call("on_checkpoint", checkpoint)

    def _call(self, name: str, argument: dict[str, Any]) -> None:
        for callback in self._callbacks:
            method: Callable[[dict[str, Any]], Any] | None = getattr(callback, name, None)
            if method is None or self.error is not None:
                continue
            try:
                if method(dict(argument)) is True:
                    self._stop.request()
            except BaseException as error:  # noqa: BLE001 - raised again when the run has ended
                error.add_note(f"in {name} of {type(callback).__name__}, step {argument['step']}")
                self.error = error
                self._stop.request()
