"""Where metrics go: console, metrics.jsonl, Weights & Biases."""

from aae_dist.tracking.sinks import (
    Console,
    ConsoleSink,
    JsonLinesSink,
    MetricSink,
    OpenConsole,
    Record,
    open_console,
)
from aae_dist.tracking.wandb_sink import WandbSink, open_wandb

__all__ = [
    "Console",
    "ConsoleSink",
    "JsonLinesSink",
    "MetricSink",
    "OpenConsole",
    "Record",
    "WandbSink",
    "open_console",
    "open_wandb",
]
