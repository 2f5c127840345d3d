"""What `aae_dist.train` returns: how the run ended, its metrics, and the trained networks."""

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from html import escape
from typing import TYPE_CHECKING, Any

from aae_dist.inference.trained_run import TrainedRun, load_run
from aae_dist.storage import Storage, open_storage, read_or_none
from aae_dist.tracking import metric_log, sinks
from aae_dist.utils.text import four_digits

if TYPE_CHECKING:
    import pandas

PICTURES = ("latent", "reconstructions", "prior_samples", "losses")
"""Names of the pictures that a notebook shows, where the run has them, in this order."""


class History(list[dict[str, Any]]):
    """The records of a run, in the order of their steps: one dictionary per log point."""

    def to_pandas(self) -> "pandas.DataFrame":
        """Return a table with one row per record, indexed by `step`.

        Raises:
            ImportError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError:
            raise ImportError("history.to_pandas() needs pandas: pip install pandas") from None
        frame = pandas.DataFrame(list(self))
        return frame.set_index("step") if len(frame) else frame


@dataclass(frozen=True, repr=False)
class TrainingResult:
    """How a run ended.

    Attributes:
        state: finished; already_finished: in an earlier call, and nothing was trained; interrupted:
            by Ctrl-C or a callback, with a checkpoint, and the same call resumes the run.
        step: steps done since the start of the run.
        metrics: the newest value of every metric by name (docs/metrics.md).
        verdict: how good a finished run is: `match` (good, fair, poor or None without validation
            data), `reconstruction`, `alarms`, `advice`, `text` (a list of lines).
        uri: the run's folder.
    """

    state: str
    step: int
    metrics: dict[str, float]
    verdict: dict[str, Any] | None
    uri: str
    held: Sequence[Any] = field(default=(), repr=False)
    """Samples in memory, so that `run.evaluate()` finds them."""

    @cached_property
    def history(self) -> History:
        """All records of metrics.jsonl: a list of dictionaries, which has `to_pandas()`."""
        return History(metric_log.read_records(self._folder))

    @cached_property
    def run(self) -> TrainedRun:
        """The trained networks, from the newest checkpoint; see `aae_dist.load_run`."""
        return load_run(self.uri)

    @property
    def pictures(self) -> dict[str, bytes]:
        """The run's pictures by name, each the bytes of a PNG."""
        names = sorted(entry.key for entry in self._folder.list("pictures"))
        found = {n: read_or_none(self._folder, n) for n in names if n.endswith(".png")}
        return {
            name.removeprefix("pictures/").removesuffix(".png"): png
            for name, png in found.items()
            if png is not None
        }

    @property
    def _folder(self) -> Storage:
        return open_storage(self.uri)

    def __repr__(self) -> str:
        scores = "".join(f", {label} {text}" for label, text in self._scores().items())
        return f"<TrainingResult {self.state} at step {self.step:,}{scores}: {self.uri}>"

    def _scores(self) -> dict[str, str]:
        return {
            label: four_digits(self.metrics[name])
            for name, label in sinks.LABELS.items()
            if name in self.metrics
        }

    def _repr_html_(self) -> str:
        """Return a page for notebooks: state, scores, verdict and pictures."""
        rows = {"state": f"{self.state} at step {self.step:,}", **self._scores(), "run": self.uri}
        table = "".join(
            f"<tr><th style='text-align:left'>{escape(key)}</th><td>{escape(value)}</td></tr>"
            for key, value in rows.items()
        )
        lines = "".join(f"<p>{escape(line)}</p>" for line in (self.verdict or {}).get("text", ()))
        pictures = self.pictures
        names = [name for name in PICTURES if name in pictures]
        names += [name for name in pictures if name not in names]
        images = "".join(
            f"<img alt='{escape(name)}' style='max-width:32em;margin:4px' "
            f"src='data:image/png;base64,{b64encode(pictures[name]).decode()}'>"
            for name in names
        )
        return f"<table>{table}</table>{lines}<div>{images}</div>"
