"""The report's charts, and the style that they share."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

DOTS_PER_INCH = 130
LOGARITHMIC_FROM = 8.0
"""Ratio of the largest to the smallest value from which an axis is logarithmic."""
MARKERS = "osD^vPX*"
PAPER, INK, FAINT = "#ffffff", "#1c2430", "#8a94a3"
COLOURS = ("#2f6db5", "#d95f30", "#2a9163", "#b8860b", "#8457ad", "#128a9c", "#b83b72", "#6f6f6f")
"""Distinguishable without red or green; one per group, the last for all other groups. A dark page
inverts the images and rotates the hues back, so that one rendering serves both."""


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure that makes room for its labels; sizes in inches."""
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08)
    return Figure(figsize=(width, height), facecolor=PAPER, layout=layout)


def style_axes(axes: Axes, title: str = "", x: str = "", y: str = "") -> None:
    """Set the report's colours and the labels, which are shown literally (no math)."""
    axes.set_facecolor(PAPER)
    axes.grid(color=FAINT, alpha=0.22, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(which="both", colors=INK, labelsize=9)
    words: Mapping[str, Any] = {"color": INK, "parse_math": False}
    axes.set_xlabel(plain(x), fontsize=10, **words)
    axes.set_ylabel(plain(y), fontsize=10, **words)
    axes.set_title(plain(title), fontsize=11, loc="left", **words)


def legend(figure: Figure, entries: Sequence[tuple[Line2D, str]]) -> None:
    """Put a legend below the figure; without entries, none."""
    if not entries:
        return
    handles, labels = zip(*entries, strict=True)
    # matplotlib leaves out labels that begin with an underscore.
    shown = [f" {plain(text)}" if text.startswith("_") else plain(text) for text in labels]
    box = figure.legend(
        list(handles), shown, loc="outside lower center", ncols=min(len(shown), 6),
        fontsize=9, frameon=False, labelcolor=INK,
    )  # fmt: skip
    for text in box.get_texts():
        text.set_parse_math(False)


def look_of(groups: Sequence[str], group: str) -> tuple[str, str]:
    """Return a group's colour, and its marker for readers who cannot tell the colours apart."""
    index = groups.index(group)
    return COLOURS[min(index, len(COLOURS) - 1)], MARKERS[min(index, len(MARKERS) - 1)]


def mark(colour: str, marker: str, **style: Any) -> Line2D:
    """Return a group's entry in a legend."""
    return Line2D([], [], color=colour, marker=marker, **style)


def scale(axes: Axes, which: str, values: Sequence[float]) -> None:
    """Make an axis logarithmic where its values call for it, with ticks in plain numbers."""
    low, high = min(values), max(values)
    if low <= 0 or high < LOGARITHMIC_FROM * low:
        return
    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def plain(text: str, longest: int = 48) -> str:
    """Return text on one line, limited to characters that every font has."""
    shown = "".join(c if c.isprintable() else " " for c in text)
    shown = shown.encode("latin-1", "replace").decode("latin-1")
    return shown if len(shown) <= longest else shown[: longest - 3] + "..."
