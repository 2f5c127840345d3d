"""Tables of metrics on the terminal or in a job log."""

import math
from collections.abc import Mapping

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

MEANINGS = {
    "reconstruction/mse": "squared error per pixel",
    "reconstruction/sum_half": "half squared error per image",
    "prior_match/c2st": "0.5 is a perfect match",
    "prior_match/sliced_wasserstein": "1.0 is a perfect match",
    "prior_match/mmd": "1.0 is a perfect match",
    "prior_match/num_samples": "codes compared with the prior",
    "discriminator/accuracy_prior": "prior samples recognised",
    "discriminator/accuracy_codes": "latent codes recognised",
    "samples_seen": "training images, all ranks",
    "throughput/samples_per_second": "training images, all ranks",
}
"""What a metric says, short enough for a line of 80 characters; in the order of the table."""

_GROUPS = ("reconstruction/", "prior_match/", "discriminator/", "loss/")


def results(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics that tell how a run went, without those that serve to watch one."""
    return {
        name: value
        for name, value in metrics.items()
        if name in MEANINGS
        or name.startswith(_GROUPS)
        or (name.startswith("skipped_updates/") and value > 0)
    }


def print_metrics(metrics: Mapping[str, float], title: str) -> None:
    """Print one metric a line on stdout, known ones first, with what they mean."""
    order = list(MEANINGS)
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    table.add_column("metric", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("meaning")
    for name in sorted(metrics, key=lambda n: (order.index(n) if n in order else len(order), n)):
        table.add_row(name, number(metrics[name]), MEANINGS.get(name, ""))
    Console(markup=False, highlight=False).print(table)


def number(value: float) -> str:
    """Return a number with four significant digits, whole ones with their thousands marked."""
    if math.isfinite(value) and value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:.4g}"
