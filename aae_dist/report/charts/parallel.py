"""Parallel coordinates: one line per trial, through its parameters and scores."""

import math
from collections.abc import Callable, Mapping, Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from aae_dist.report.charts.style import FAINT, INK, PAPER, new_figure, plain
from aae_dist.report.view import RankedTrial, ReportView, Value, format_value, label, number

MAX_AXES = 10
MAX_NAMED = 6
"""Largest number of distinct values that all get a label; otherwise only both ends do."""
LOGARITHMIC_FROM = 30.0
BELOW = -0.1
"""Height for a missing parameter or a score that is not finite."""

Places = Mapping[Value | None, float]
"""Height of each value of one axis, in [0, 1]."""


def draw(view: ReportView) -> Figure | None:
    """Draw all ranked trials, the best one bold; None for fewer than two."""
    rows = [row for row in view.rows if row.rank is not None]
    metrics = view.metrics[: MAX_AXES // 2]
    keys = view.varied[: MAX_AXES - len(metrics)]
    if len(rows) < 2 or not keys:
        return None
    figure = new_figure(8.6, 4.4)
    axes = figure.add_subplot()
    values = [
        [*(row.parameters.get(key) for key in keys), *(row.metric(name) for name in metrics)]
        for row in rows
    ]
    columns = [heights(column) for column in zip(*values, strict=True)]
    for row, own in reversed(list(zip(rows, values, strict=True))):
        line = [places[value] for value, places in zip(own, columns, strict=True)]
        _line(axes, line, row, len(rows))
    for at, places in enumerate(columns):
        _names(axes, at, places)
    _finish(axes, [*keys, *(label(name) for name in metrics)])
    return figure


def caption(view: ReportView) -> str:
    """Return the caption."""
    return (
        "Each line is a finished trial, through its parameters and its scores; the better its "
        "rank, the stronger its colour, the best one bold."
    )


def heights(values: Sequence[Value | None]) -> Places:
    """Return the heights of the values of one axis.

    Numbers by size, logarithmic if their range is wide. If any value is text, all are spaced
    equally, the first one on top. A missing value is below the axis.
    """
    different = [value for value in dict.fromkeys(values) if value is not None]
    numbers = [value for value in different if isinstance(value, float)]
    if len(numbers) < len(different):
        step = 1 / max(len(different) - 1, 1)
        return {value: 1 - i * step for i, value in enumerate(different)} | {None: BELOW}
    if not numbers:
        return {None: BELOW}
    low, high = min(numbers), max(numbers)
    far = low > 0 and high > LOGARITHMIC_FROM * low
    as_shown: Callable[[float], float] = math.log if far else float
    span = as_shown(high) - as_shown(low)
    at: dict[Value | None, float] = {
        v: (as_shown(v) - as_shown(low)) / span if span else 0.5 for v in sorted(numbers)
    }
    return at | {None: BELOW}


def _line(axes: Axes, line: Sequence[float], row: RankedTrial, num_rows: int) -> None:
    share = ((row.rank or 1) - 1) / max(num_rows - 1, 1)
    # Strong colours for the best trials, without the lightest end of the colour map.
    colours = matplotlib.colormaps["viridis"]
    style = (
        {"color": INK, "linewidth": 2.6, "zorder": 3}
        if row.rank == 1
        else {"color": colours(0.1 + 0.75 * share), "linewidth": 1.2, "alpha": 0.75, "zorder": 2}
    )
    axes.plot(range(len(line)), line, **style)  # type: ignore[arg-type]


def _names(axes: Axes, at: int, places: Places) -> None:
    """Label values next to their axis: all of them, or only both ends."""
    values = [value for value in places if value is not None]
    shown = values if len(values) <= MAX_NAMED else [values[0], values[-1]]
    style = {"fontsize": 8, "color": INK, "va": "center", "parse_math": False, "zorder": 4}
    paper = {"facecolor": PAPER, "alpha": 0.75, "pad": 0.6, "linewidth": 0}
    for value in shown:
        text = number(value, 3) if isinstance(value, float) else format_value(value)
        axes.text(at + 0.03, places[value], plain(text, 14), bbox=paper, **style)  # type: ignore[arg-type]


def _finish(axes: Axes, names: Sequence[str]) -> None:
    axes.set_facecolor(PAPER)
    for at in range(len(names)):
        axes.axvline(at, color=FAINT, linewidth=1, zorder=1)
    axes.set_xlim(-0.1, len(names) - 1 + 0.35)
    axes.set_ylim(BELOW - 0.05, 1.06)
    axes.set_yticks([])
    # On two lines, so that neighbouring labels do not overlap.
    wrapped = [plain(name).replace(".", ".\n", 1).replace(" ", "\n", 1) for name in names]
    axes.set_xticks(range(len(names)), wrapped, fontsize=9, color=INK, parse_math=False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
