"""Metrics of a run for Prometheus: every Ray node serves those of its processes as text."""

import math
import re
from typing import Any

from aae_dist.tracking.sinks import Record

PREFIX = "aae_dist_"
"""Ray adds its own before it: `loss/generator` is served as `ray_aae_dist_loss_generator`."""


class PrometheusSink:
    """Shows the newest value of each metric of rank 0's records as a gauge, by the run's name."""

    def __init__(self, run: str) -> None:
        """Say that the run trains; to be made in a process of a Ray cluster."""
        from ray.util.metrics import Gauge

        self._make: Any = Gauge
        self._tags = {"run": run}
        self._gauges: dict[str, Any] = {}
        self._set("training", 1.0)

    def log(self, record: Record) -> None:
        """Take one log point; values that are not finite are left out."""
        for name, value in record.items():
            if math.isfinite(value):
                self._set(name, float(value))

    def picture(self, name: str, png: bytes, step: int) -> None:
        """Prometheus has no pictures."""

    def close(self, summary: Record, state: str) -> None:
        """Say that the run trains no longer."""
        self._set("training", 0.0)

    def _set(self, name: str, value: float) -> None:
        if name not in self._gauges:
            described = f"{name} of a run, as in its metrics.jsonl"
            self._gauges[name] = self._make(gauge_name(name), described, tag_keys=("run",))
        self._gauges[name].set(value, tags=self._tags)


def gauge_name(metric: str) -> str:
    """Return the name that Ray is told: letters, digits and underscores."""
    return PREFIX + re.sub(r"[^a-zA-Z0-9_]", "_", metric)
