"""Scores by each swept parameter, with their spread over everything else."""

from collections.abc import Mapping, Sequence
from statistics import mean

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator

from aae_dist.report.charts.pareto import scale
from aae_dist.report.charts.style import (
    FAINT,
    colour_of,
    legend,
    marker_of,
    new_figure,
    plain,
    style_axes,
)
from aae_dist.report.view import PERFECT, SEED, RankedTrial, ReportView, Value, format_value, label

FIRST = "model.latent_dim"
MAX_KEYS = 6
MAX_STEPS = 12
"""Largest number of distinct values that count as a grid, whose means are joined by a line."""


def draw(view: ReportView) -> Figure | None:
    """Draw one row per varied key, with one panel per score; None without scores."""
    rows = [row for row in view.rows if row.trial.state == "finished"]
    keys = keys_of(view)
    if not keys or not rows or view.plane is None:
        return None
    figure = new_figure(8.6, 2.9 * len(keys) + 0.4)
    grid = figure.subplots(len(keys), 2, squeeze=False)
    for key, pair in zip(keys, grid, strict=True):
        for metric, axes in zip(view.plane, pair, strict=True):
            _panel(axes, view, rows, key, metric)
    entries = [
        (Line2D([], [], color=colour_of(view.groups, g), marker=marker_of(view.groups, g)), g)
        for g in view.groups
        if g
    ]
    legend(figure, entries)
    return figure


def caption(view: ReportView) -> str:
    """Return the caption."""
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
    style_axes(axes, title=label(metric), x=key, y="")
    places = _places(axes, [row.parameters[key] for row in rows if key in row.parameters])
    values = []
    for number, group in enumerate(view.groups):
        points = [
            (places[row.parameters[key]], value)
            for row in rows
            if view.group(row) == group
            and key in row.parameters
            and (value := row.metric(metric)) is not None
        ]
        values += [value for _, value in points]
        _curve(axes, points, number, len(view.groups), len(places), view)
    if metric in PERFECT:
        axes.axhline(PERFECT[metric], color=FAINT, linewidth=1, linestyle="--")
    if values:
        scale(axes, "y", values)


def _curve(
    axes: Axes,
    points: Sequence[tuple[float, float]],
    number: int,
    num_groups: int,
    num_places: int,
    view: ReportView,
) -> None:
    group = view.groups[number]
    colour = colour_of(view.groups, group)
    marker = marker_of(view.groups, group)
    style = {"color": colour, "markeredgewidth": 0}
    many = num_places > MAX_STEPS
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
    """Return the position of each value; set ticks for text values and grids."""
    different = list(dict.fromkeys(values))
    numbers = sorted(v for v in different if isinstance(v, float))
    if len(numbers) < len(different):
        words: list[Value] = [*numbers, *(v for v in different if isinstance(v, str))]
        axes.set_xlim(-0.5, len(words) - 0.5)
        axes.set_xticks(
            range(len(words)), [plain(format_value(w), 14) for w in words], parse_math=False
        )
        return {word: float(i) for i, word in enumerate(words)}
    if numbers:
        scale(axes, "x", numbers)
    if len(numbers) <= MAX_STEPS:
        axes.xaxis.set_major_locator(FixedLocator(numbers))
        axes.xaxis.set_minor_locator(NullLocator())
    places: dict[Value, float] = {number: number for number in numbers}
    return places


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]
