"""Tables of metrics on the terminal or in a job log."""

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

MEANINGS = {
    "reconstruction/mse": "mean squared error per pixel",
    "reconstruction/sum_half": "half the summed squared error per image",
    "prior_match/c2st": "accuracy of telling codes from prior samples, 0.5 is a perfect match",
    "prior_match/sliced_wasserstein": "distance to the prior, 1.0 is a perfect match",
    "prior_match/mmd": "distance to the prior, 1.0 is a perfect match",
    "prior_match/num_samples": "codes and prior samples compared",
    "discriminator/accuracy_prior": "prior samples that the discriminator recognises",
    "discriminator/accuracy_codes": "latent codes that the discriminator recognises",
    "throughput/samples_per_second": "training images per second, all ranks",
}


def print_metrics(metrics: Mapping[str, float], title: str) -> None:
    """Print one metric a line on stdout, sorted by name, with what it means where we know it."""
    table = Table(title=title, title_justify="left")
    table.add_column("metric", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("meaning")
    for name, value in sorted(metrics.items()):
        table.add_row(name, number(value), MEANINGS.get(name, ""))
    Console(markup=False, highlight=False).print(table)


def number(value: float) -> str:
    """Return a number with four significant digits, whole ones with their thousands marked."""
    if value == int(value) if abs(value) < 1e15 else False:
        return f"{int(value):,}"
    return f"{value:.4g}"
