"""The records of a run, written by rank 0: console, metrics.jsonl, pictures, W&B, goodput."""

import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from aae_dist.config import RunConfig
from aae_dist.evaluation import EvaluationImages
from aae_dist.tracking import MetricLog, MetricSink, OpenConsole, open_console, open_wandb
from aae_dist.training.folder import BAD_SAMPLES, RunFolder, RunState

PARTS = ("useful", "data_wait", "checkpoint", "evaluation", "record", "stall", "restart")
"""Every second of a run counts as exactly one of these."""
STALL_FACTOR, STALL_SECONDS = 2.0, 1.0
"""Steps between two log points stall when they take this many times as long as usual, and this
much longer: a machine that sleeps or is paused, a rank that waits for another one."""

NO_CLASSES: Mapping[str, int] = {}
Clock = Callable[[], float]


class Goodput:
    """Divides the wall time since the run's first start into parts, over all of its attempts.

    The time between the checkpoint that an attempt starts from and its first finished step is
    `restart`: the steps that were lost, the time until the restart, and the start itself.
    """

    def __init__(
        self,
        saved: Mapping[str, Any] | None = None,
        clock: Clock = time.monotonic,
        wall: Clock = time.time,
    ) -> None:
        """Start the clock; `saved` is `metadata` in the checkpoint that this attempt starts from.

        `clock` gives monotonic seconds, `wall` seconds since 1970, to compare with an earlier
        attempt's.
        """
        self._clock, self._wall = clock, wall
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._current = "restart"  # until the first step is done
        self._mark = clock()
        # Steps since the last log point, their seconds, and the usual seconds per step.
        self._lap_steps, self._lap_seconds, self._usual = 0, 0.0, 0.0
        if saved:
            self._seconds |= {part: saved["seconds"].get(part, 0.0) for part in PARTS}
            if not saved["finished"]:  # a finished run lost no time until it was extended
                self._seconds["restart"] += max(0.0, wall() - saved["at"])

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the time inside as this part; of nested parts the innermost one."""
        self._account()
        outer, self._current = self._current, name
        try:
            yield
        finally:
            self._account()
            self._current = outer

    def step_done(self) -> None:
        self._account()
        self._current = "useful"
        self._lap_steps += 1

    def restart(self) -> None:
        """Count as `restart` until the next step is done: the run rolled back to a checkpoint."""
        self._account()
        self._current = "restart"
        self._lap_steps, self._lap_seconds = 0, 0.0

    def metrics(self) -> dict[str, float]:
        """Return the metrics of a log point, and detect a stall since the one before."""
        self._account()
        self._detect_stall()
        wall = sum(self._seconds.values())
        parts = {f"goodput/{part}_seconds": round(s, 3) for part, s in self._seconds.items()}
        useful = self._seconds["useful"] / max(wall, 1e-9)
        return {
            "goodput/fraction": round(useful, 4),
            "goodput/wall_seconds": round(wall, 3),
        } | parts

    def metadata(self, finished: bool) -> dict[str, Any]:
        """Return the values for a checkpoint: an attempt that starts from it continues counting."""
        self._account()
        return {"seconds": dict(self._seconds), "at": self._wall(), "finished": finished}

    def _account(self) -> None:
        now = self._clock()
        passed, self._mark = now - self._mark, now
        self._seconds[self._current] += passed
        if self._current == "useful":
            self._lap_seconds += passed

    def _detect_stall(self) -> None:
        steps, took = self._lap_steps, self._lap_seconds
        self._lap_steps, self._lap_seconds = 0, 0.0
        if steps == 0:
            return
        excess = took - self._usual * steps
        if self._usual and took > STALL_FACTOR * self._usual * steps + STALL_SECONDS:
            self._seconds["stall"] += excess
            self._seconds["useful"] -= excess
        else:
            self._usual += (took / steps - self._usual) / (8 if self._usual else 1)


Metrics = Mapping[str, float]


class Recorder:
    """Fans records and pictures out to the sinks and the run's folder."""

    def __init__(
        self,
        config: RunConfig,
        folder: RunFolder,
        run_id: str,
        resumed_step: int,
        total_steps: int,
        line: Callable[[str], None],
        more: Sequence[MetricSink] = (),
        console: OpenConsole | None = None,
        classes: Mapping[str, int] = NO_CLASSES,
    ) -> None:
        """Open the sinks in addition to `more`; metrics past `resumed_step` are truncated.

        `classes` are the labels of the data by their names.
        """
        title = config.run.title or config.run.name
        self._folder, self._line, self._name = folder, line, title
        self._local = tempfile.TemporaryDirectory(prefix="aae_dist-", ignore_cleanup_errors=True)
        path = Path(self._local.name)
        self.metric_log = MetricLog(folder.storage, resumed_step)
        self._console = (console or partial(open_console, line))(total_steps, resumed_step)
        wandb = open_wandb(config, run_id, folder.storage, path / "wandb", line, classes)
        own = (self._console, self.metric_log, wandb)
        self.sinks: list[MetricSink] = [*(sink for sink in own if sink is not None), *more]
        self.latest: dict[str, float] = {}
        self._bad_uploaded = b""
        self._bad_lines: list[bytes] = []
        self._images: EvaluationImages | None = None  # of the next record
        self._has_drawn = False
        for name, value in self.metric_log.history.latest.items():
            self.latest[name] = math.nan if value is None else value

    def show(self, shown: EvaluationImages) -> None:
        """Draw an evaluation's pictures together with the next record, which has its metrics."""
        self._images = shown

    def record(self, metrics: Metrics) -> None:
        self.latest |= metrics
        for sink in self.sinks:
            sink.log(metrics)
        if self._images is not None:
            self._draw(self._images)
            self._images = None

    def on_step(self, step: int) -> None:
        self._console.on_step(step)

    def _draw(self, shown: EvaluationImages | None) -> None:
        self._has_drawn, step = True, int(self.latest["step"])
        caption = f"{self._name}, step {step:,}"
        try:
            # Imported here: matplotlib takes seconds, and the first step must not wait for it.
            from aae_dist.evaluation.class_pictures import draw_classes
            from aae_dist.evaluation.pictures import draw_all, loss_curves
            from aae_dist.utils.arrays import figure_to_png

            points = self.metric_log.history.points()
            images = draw_all(shown, caption) if shown is not None else {}
            images |= draw_classes(shown, caption) if shown is not None else {}
            images["losses"] = figure_to_png(loss_curves(points, caption))
            for name, image in images.items():
                self._folder.storage.write(f"pictures/{name}.png", image)
                for sink in self.sinks:
                    sink.picture(name, image, step)
        except Exception as error:  # errors of matplotlib or the storage must not end training
            self._line(f"pictures of step {step} failed: {type(error).__name__}: {error}")

    def set_bad_samples(self, lines: bytes) -> None:
        """Set the contents of bad_samples.jsonl for the next upload."""
        self._bad_lines = [lines]

    def add_bad_samples(self, lines: bytes) -> None:
        self._bad_lines.append(lines)

    def truncate(self, step: int) -> None:
        """Drop the metrics past `step`, which the run rolls back to."""
        self.metric_log.truncate(step)

    def alarms(self) -> dict[str, int]:
        """Return the step at which each alarm was first raised."""
        return dict(self.metric_log.history.alarms)

    def upload(self) -> None:
        """Write what is new of the metrics, and bad_samples.jsonl if it changed."""
        # Only appended to or replaced, so this thread may read it.
        bad_lines = b"".join(self._bad_lines)
        if bad_lines != self._bad_uploaded:
            self._folder.storage.write(BAD_SAMPLES, bad_lines)
            self._bad_uploaded = bad_lines
        self.metric_log.upload()

    def close(self, state: RunState, verdict: Mapping[str, Any] | None = None) -> None:
        """Upload the metrics and close the sinks, which get the verdict in words."""
        # Without validation data the losses are drawn here; an interrupted run, which has to exit
        # soon, leaves that to the run that resumes it.
        if not self._has_drawn and self.latest and state in (RunState.FINISHED, RunState.DIVERGED):
            self._draw(None)
        self.upload()
        words = {}
        if verdict:
            words = {
                "verdict/match": verdict["match"] or "unknown",
                "verdict/text": "\n".join(verdict["text"]),
            }
        self.abandon(state.value, words)

    def abandon(self, state: str = "failed", words: Mapping[str, str] | None = None) -> None:
        """Close the sinks, without an upload; `words` is part of the summary."""
        for sink in self.sinks:
            sink.close({**self.latest, **(words or {})}, state)
        self._local.cleanup()
