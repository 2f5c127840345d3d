"""Where metrics go: console, metrics.jsonl, Weights & Biases."""

from aae_dist.tracking.sinks import JsonLinesSink, MetricSink, OpenConsole, open_console
from aae_dist.tracking.wandb_sink import open_wandb

__all__ = ["JsonLinesSink", "MetricSink", "OpenConsole", "open_console", "open_wandb"]
