"""Vectors as lines: number against place, a small panel for each sample."""

from matplotlib.figure import Figure
from torch import Tensor

COLUMNS = 4
PANEL_INCHES = (1.6, 0.9)
TITLE_INCHES = 0.4
ORIGINAL, OTHER = "#000000", "#d55e00"


def is_vectors(samples_kCHW: Tensor) -> bool:
    """Return whether samples are rows of numbers rather than images."""
    return tuple(samples_kCHW.shape[1:3]) == (1, 1)


def lines(samples_k11D: Tensor, others_k11D: Tensor | None, title: str) -> Figure:
    """Draw each sample, and over it what stands at the same place of `others_k11D`.

    Args:
        samples_k11D: vectors, floats or uint8.
        others_k11D: as many, in another colour; None for none.
        title: what the picture shows.
    """
    rows = -(-len(samples_k11D) // COLUMNS)
    width, height = COLUMNS * PANEL_INCHES[0], rows * PANEL_INCHES[1] + TITLE_INCHES
    figure = Figure(figsize=(width, height))
    top = 1 - TITLE_INCHES / height
    figure.subplots_adjust(0.05, 0.2 / rows, 0.99, top, wspace=0.25, hspace=0.35)
    low, high = 0.0, 0.0
    for place, vector in enumerate(samples_k11D):
        axes = figure.add_subplot(rows, COLUMNS, place + 1)
        axes.plot(vector.flatten().numpy(), color=ORIGINAL, linewidth=0.8)
        if others_k11D is not None:
            axes.plot(others_k11D[place].flatten().numpy(), color=OTHER, linewidth=0.8)
        axes.tick_params(labelsize=5)
        low, high = min(low, axes.get_ylim()[0]), max(high, axes.get_ylim()[1])
    for axes in figure.axes:
        axes.set_ylim(low, high)  # one scale, so that panels can be compared
    figure.text(0.5, (1 + top) / 2, title, ha="center", va="center", fontsize=9)
    return figure
