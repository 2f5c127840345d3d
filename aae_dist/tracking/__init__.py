"""Where metrics go: console, metrics.jsonl, Weights & Biases."""

from aae_dist.tracking.console import ConsoleSink, open_console
from aae_dist.tracking.json_lines import JsonLinesSink
from aae_dist.tracking.sinks import Console, MetricSink, OpenConsole, Record
from aae_dist.tracking.wandb_open import open_wandb
from aae_dist.tracking.wandb_sink import WandbSink

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
