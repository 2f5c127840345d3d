"""The records of a run, written by rank 0: console, metrics.jsonl, pictures, W&B."""

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from aae_dist.config import RunConfig
from aae_dist.evaluation import EvaluationImages
from aae_dist.tracking import JsonLinesSink, MetricSink, OpenConsole, open_console, open_wandb
from aae_dist.training.reporter import RunState
from aae_dist.training.run.folder import RunFolder

Metrics = Mapping[str, float]


class Recorder:
    """Fans records and pictures out to the sinks and the run's folder."""

    def __init__(
        self,
        config: RunConfig,
        folder: RunFolder,
        resumed_step: int,
        total_steps: int,
        line: Callable[[str], None],
        more: Sequence[MetricSink] = (),
        console: OpenConsole | None = None,
    ) -> None:
        """Open the sinks in addition to `more`; metrics past `resumed_step` are truncated."""
        self._folder, self._line, self._name = folder, line, config.run.name
        self._local = tempfile.TemporaryDirectory(prefix="aae_dist-", ignore_cleanup_errors=True)
        path = Path(self._local.name)
        self.json_lines = JsonLinesSink(path / "metrics.jsonl", folder.read_metrics(), resumed_step)
        make = console or partial(open_console, line)
        self._console = make(total_steps, resumed_step)
        wandb = open_wandb(config, folder.storage, path / "wandb", line)
        self.sinks: list[MetricSink] = [
            self._console,
            self.json_lines,
            *([wandb] if wandb else []),
            *more,
        ]
        self.latest: dict[str, float] = {}
        self._uploaded = self._bad_uploaded = b""
        self._bad_lines: list[bytes] = []
        self._images: EvaluationImages | None = None
        self._has_drawn = False
        for record in self.json_lines.records():
            self.latest |= {name: math.nan if v is None else v for name, v in record.items()}

    def show(self, shown: EvaluationImages) -> None:
        """Draw an evaluation's pictures together with the next record, which has its metrics."""
        self._images = shown

    def record(self, metrics: Metrics) -> None:
        """Log one log point to all sinks."""
        self.latest |= metrics
        for sink in self.sinks:
            sink.log(metrics)
        if self._images is not None:
            self._draw(self._images)
            self._images = None

    def on_step(self, step: int) -> None:
        """Show progress between log points."""
        self._console.on_step(step)

    def _draw(self, shown: EvaluationImages | None) -> None:
        """Draw the losses, and the pictures of an evaluation if there is one."""
        self._has_drawn, step = True, int(self.latest["step"])
        caption = f"{self._name}, step {step:,}"
        try:
            # Imported here: matplotlib takes seconds, and the first step must not wait for it.
            from aae_dist.evaluation.pictures.curves import loss_curves
            from aae_dist.evaluation.pictures.images import draw_all
            from aae_dist.utils.arrays import figure_to_png

            images = draw_all(shown, caption) if shown is not None else {}
            images["losses"] = figure_to_png(loss_curves(self.json_lines.records(), caption))
            for name, image in images.items():
                self._folder.write_picture(name, image)
                for sink in self.sinks:
                    sink.picture(name, image, step)
        except Exception as error:  # errors of matplotlib or the storage must not end training
            self._line(f"pictures of step {step} failed: {type(error).__name__}: {error}")

    def set_bad_samples(self, lines: bytes) -> None:
        """Set the contents of bad_samples.jsonl for the next upload."""
        self._bad_lines = [lines]

    def add_bad_samples(self, lines: bytes) -> None:
        """Append lines to bad_samples.jsonl for the next upload."""
        self._bad_lines.append(lines)

    def truncate(self, step: int) -> None:
        """Drop the metrics past `step`, which the run rolls back to."""
        self.json_lines.truncate(step)

    def alarms(self) -> dict[str, int]:
        """Return the step at which each alarm was first raised."""
        first: dict[str, int] = {}
        for record in self.json_lines.records():
            for name in record:
                if name.startswith("alarm/") and record[name]:
                    first.setdefault(name.removeprefix("alarm/"), int(record["step"]))
        return first

    def upload(self) -> None:
        """Write metrics.jsonl and bad_samples.jsonl to the run's folder if they changed."""
        # Only appended to or replaced, so this thread may read it.
        bad_lines = b"".join(self._bad_lines)
        if bad_lines != self._bad_uploaded:
            self._folder.write_bad_samples(bad_lines)
            self._bad_uploaded = bad_lines
        content = self.json_lines.content()
        if content != self._uploaded:
            self._folder.write_metrics(content)
            self._uploaded = content

    def close(self, state: RunState) -> None:
        """Upload the metrics and close the sinks.

        Without validation data the losses are drawn here; an interrupted run, which has to exit
        soon, leaves that to the run that resumes it.
        """
        if not self._has_drawn and self.latest and state in (RunState.FINISHED, RunState.DIVERGED):
            self._draw(None)
        self.upload()
        for sink in self.sinks:
            sink.close(self.latest, state.value)
        self._local.cleanup()

    def abandon(self) -> None:
        """Close the sinks of a run that failed, without an upload."""
        for sink in self.sinks:
            sink.close(self.latest, "failed")
        self._local.cleanup()
