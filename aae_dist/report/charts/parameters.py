"""Scores by the swept parameters: one panel per parameter and score, and parallel coordinates."""

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import mean

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from aae_dist.report import charts
from aae_dist.report.view import PERFECT, RankedTrial, ReportView, Value, format_value, label
from aae_dist.sweeps.recommendation import SEED

FIRST = "model.latent_dim"
MAX_KEYS = 6
MAX_STEPS = 12
"""Largest number of distinct values that count as a grid, whose means are joined by a line."""
MAX_AXES = 10
MAX_NAMED = 6  # largest number of distinct values that all get a label; otherwise only both ends do
LOGARITHMIC_FROM = 30.0
BELOW = -0.1  # height for a missing parameter or a score that is not finite
Places = Mapping[Value | None, float]  # height of each value of one axis, in [0, 1]


def draw(view: ReportView) -> Figure | None:
    """Draw one row per varied key, with one panel per score; None without scores."""
    rows = [row for row in view.rows if row.trial.state == "finished"]
    keys = keys_of(view)
    if not keys or not rows or view.plane is None:
        return None
    figure = charts.new_figure(8.6, 2.9 * len(keys) + 0.4)
    grid = figure.subplots(len(keys), 2, squeeze=False)
    for key, pair in zip(keys, grid, strict=True):
        for metric, axes in zip(view.plane, pair, strict=True):
            _panel(axes, view, rows, key, metric)
    groups = view.groups
    charts.legend(figure, [(charts.mark(*charts.look_of(groups, g)), g) for g in groups if g])
    return figure


def caption(view: ReportView) -> str:
    """Return the caption of the panels."""
    others = [key for key in view.varied if key not in (view.group_key, *keys_of(view)[:1])]
    spread = ", ".join(others) if others else f"repeats with other values of {SEED}"
    return (
        "Scores by swept parameter: dots are finished trials, lines their means; the band from "
        f"lowest to highest is the spread over everything else that was varied ({spread})."
    )


def keys_of(view: ReportView) -> tuple[str, ...]:
    """Return the keys that get a row: the latent size first, without seeds and the colour's key."""
    keys = sorted((k for k in view.varied if k not in (SEED, view.group_key)), key=FIRST.__ne__)
    if not keys and view.group_key:
        keys = [view.group_key]
    return tuple(keys[:MAX_KEYS])


def _panel(
    axes: Axes, view: ReportView, rows: Sequence[RankedTrial], key: str, metric: str
) -> None:
    charts.style_axes(axes, title=label(metric), x=key, y="")
    places = _places(axes, [row.parameters[key] for row in rows if key in row.parameters])
    values = []
    for group in view.groups:
        points = [
            (places[row.parameters[key]], value)
            for row in rows
            if view.group(row) == group
            and key in row.parameters
            and (value := row.metric(metric)) is not None
        ]
        values += [value for _, value in points]
        _curve(axes, points, charts.look_of(view.groups, group), len(places) > MAX_STEPS)
    if metric in PERFECT:
        axes.axhline(PERFECT[metric], color=charts.FAINT, linewidth=1, linestyle="--")
    if values:
        charts.scale(axes, "y", values)


def _curve(
    axes: Axes, points: Sequence[tuple[float, float]], look: tuple[str, str], many: bool
) -> None:
    colour, marker = look
    style = {"color": colour, "markeredgewidth": 0}
    axes.plot(*_columns(points), marker, markersize=4, alpha=0.8 if many else 0.45, **style)  # type: ignore[arg-type]
    if many or not points:
        return
    at: dict[float, list[float]] = {}
    for x, y in sorted(points):
        at.setdefault(x, []).append(y)
    means = [(x, mean(ys)) for x, ys in at.items()]
    axes.plot(*_columns(means), f"{marker}-", markersize=6, linewidth=1.6, **style)  # type: ignore[arg-type]
    if any(len(ys) > 1 for ys in at.values()):
        low, high = [min(ys) for ys in at.values()], [max(ys) for ys in at.values()]
        axes.fill_between(list(at), low, high, color=colour, alpha=0.14, linewidth=0)


def _places(axes: Axes, values: Sequence[Value]) -> Mapping[Value, float]:
    different = list(dict.fromkeys(values))
    numbers = sorted(v for v in different if isinstance(v, float))
    if len(numbers) < len(different):
        words: list[Value] = [*numbers, *(v for v in different if isinstance(v, str))]
        axes.set_xlim(-0.5, len(words) - 0.5)
        names = [charts.plain(format_value(word), 14) for word in words]
        axes.set_xticks(range(len(words)), names, parse_math=False)
        return {word: float(i) for i, word in enumerate(words)}
    if numbers:
        charts.scale(axes, "x", numbers)
    if len(numbers) <= MAX_STEPS:
        axes.xaxis.set_major_locator(FixedLocator(numbers))
        axes.xaxis.set_minor_locator(NullLocator())
    return {number: number for number in numbers}


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def draw_parallel(view: ReportView) -> Figure | None:
    """Draw one line per ranked trial, the best one bold; None for fewer than two."""
    rows = [row for row in view.rows if row.rank is not None]
    metrics = view.metrics[: MAX_AXES // 2]
    keys = view.varied[: MAX_AXES - len(metrics)]
    if len(rows) < 2 or not keys:
        return None
    figure = charts.new_figure(8.6, 4.4)
    axes = figure.add_subplot()
    values = [[*map(row.parameters.get, keys), *map(row.metric, metrics)] for row in rows]
    columns = [heights(column) for column in zip(*values, strict=True)]
    for row, own in reversed(list(zip(rows, values, strict=True))):
        line = [places[value] for value, places in zip(own, columns, strict=True)]
        _line(axes, line, row, len(rows))
    for at, places in enumerate(columns):
        _names(axes, at, places)
    _finish(axes, [*keys, *(label(name) for name in metrics)])
    return figure


def parallel_caption(view: ReportView) -> str:
    """Return the caption of the parallel coordinates."""
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
        {"color": charts.INK, "linewidth": 2.6, "zorder": 3}
        if row.rank == 1
        else {"color": colours(0.1 + 0.75 * share), "linewidth": 1.2, "alpha": 0.75, "zorder": 2}
    )
    axes.plot(range(len(line)), line, **style)  # type: ignore[arg-type]


def _names(axes: Axes, at: int, places: Places) -> None:
    """Label values next to their axis: all of them, or only both ends."""
    values = [value for value in places if value is not None]
    shown = values if len(values) <= MAX_NAMED else [values[0], values[-1]]
    style = {"fontsize": 8, "color": charts.INK, "va": "center", "parse_math": False, "zorder": 4}
    paper = {"facecolor": charts.PAPER, "alpha": 0.75, "pad": 0.6, "linewidth": 0}
    for value in shown:
        text = charts.plain(format_value(value, 3), 14)
        axes.text(at + 0.03, places[value], text, bbox=paper, **style)  # type: ignore[arg-type]


def _finish(axes: Axes, names: Sequence[str]) -> None:
    axes.set_facecolor(charts.PAPER)
    for at in range(len(names)):
        axes.axvline(at, color=charts.FAINT, linewidth=1, zorder=1)
    axes.set_xlim(-0.1, len(names) - 1 + 0.35)
    axes.set_ylim(BELOW - 0.05, 1.06)
    axes.set_yticks([])
    # On two lines, so that neighbouring labels do not overlap.
    wrapped = [charts.plain(name).replace(".", ".\n", 1).replace(" ", "\n", 1) for name in names]
    axes.set_xticks(range(len(names)), wrapped, fontsize=9, color=charts.INK, parse_math=False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
