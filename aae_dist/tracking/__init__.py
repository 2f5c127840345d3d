"""Where metrics go: console, metrics.jsonl, Weights & Biases."""

from aae_dist.tracking.metric_log import MetricLog
from aae_dist.tracking.sinks import MetricSink, OpenConsole, open_console
from aae_dist.tracking.wandb_sink import open_wandb

__all__ = ["MetricLog", "MetricSink", "OpenConsole", "open_console", "open_wandb"]
