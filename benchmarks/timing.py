"""Paired timing: both sides in one process, in turns, so that a noisy machine hits both alike."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import torch


def paired_seconds(
    sides: dict[str, Callable[[], object]], rounds: int, warmup: int = 3
) -> dict[str, list[float]]:
    """Return seconds of each side in each round; sides take turns in alternating order."""
    names = list(sides)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(warmup):
        for run in sides.values():
            run()
    for number in range(rounds):
        for name in names if number % 2 == 0 else reversed(names):
            started = time.perf_counter()
            sides[name]()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def median_ratio(top: Sequence[float], bottom: Sequence[float]) -> tuple[float, float, float]:
    """Return the median of the rounds' ratios, and their quartiles."""
    ratios = sorted(a / b for a, b in zip(top, bottom, strict=True))
    low, middle, high = statistics.quantiles(ratios, n=4)
    return middle, low, high


def print_header(title: str) -> None:
    """Print what a table in the docs must say: when, where, with what."""
    cpu = platform.processor() or platform.machine()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU {cpu}"
    print(f"## {title}")
    print(
        f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores, {device}, torch "
        f"{torch.__version__}, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}\n"
    )
