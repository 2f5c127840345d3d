"""Reconstruction error against the match with the prior, one point per trial."""

from collections.abc import Sequence
from functools import partial
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from aae_dist.report import charts
from aae_dist.report.view import PERFECT, RankedTrial, ReportView, format_value, label
from aae_dist.sweeps import objective, recommendation

MAX_ANNOTATED = 40  # largest number of trials whose points are annotated with a parameter
DRAWN = {"finished": 1.0, "running": 0.55, "interrupted": 0.55, "pruned": 0.75}
"""Opacity of a point by the trial's state; other states are not drawn."""


def draw(view: ReportView) -> Figure | None:
    """Draw the plane of the two scores; None when no trial has both."""
    if view.plane is None:
        return None
    x, y = view.plane
    drawn = [row for row in view.rows if row.trial.state in DRAWN]
    rows = [row for row in drawn if None not in (row.metric(x), row.metric(y))]
    if not rows:
        return None
    figure = charts.new_figure(8.6, 5.6)
    axes = figure.add_subplot()
    charts.style_axes(axes, x=label(x), y=label(y))
    kinds: dict[tuple[str, str, bool], list[RankedTrial]] = {}
    for row in rows:
        kinds.setdefault((view.group(row), row.trial.state, row.is_best), []).append(row)
    for similar in kinds.values():
        _points(axes, view, similar)
    _annotate(axes, view, rows)
    _front(axes, view, rows)
    for name, line in ((y, axes.axhline), (x, axes.axvline)):
        if name in PERFECT:
            line(PERFECT[name], color=charts.FAINT, linewidth=1, linestyle="--", zorder=1)
        for bound in (b for constrained, b in view.objective.constraints if constrained == name):
            line(bound, color=charts.INK, linewidth=1, linestyle=":", zorder=1)
    charts.scale(axes, "x", [row.metric(x) or 0.0 for row in rows])
    charts.scale(axes, "y", [row.metric(y) or 0.0 for row in rows])
    charts.legend(figure, _entries(view, rows))
    return figure


def caption(view: ReportView) -> str:
    """Return the caption."""
    x, y = view.plane or ("", "")
    key = annotated_key(view)
    return (
        f"{label(x)} against {label(y)}, one point per trial"
        f"{f' with its {key}' if key else ''}. The line joins the trials of the Pareto "
        "front; bars are 95 % intervals; the dashed line is a perfect match"
        f"{', the dotted one a constraint' if view.objective.constraints else ''}."
    )


def _points(axes: Axes, view: ReportView, rows: Sequence[RankedTrial]) -> None:
    """Draw all trials of one group and state together: 300 single calls take seconds."""
    x, y = view.plane or ("", "")
    at = [[row.metric(name) or 0.0 for row in rows] for name in (x, y)]
    group, state, best = view.group(rows[0]), rows[0].trial.state, rows[0].is_best
    (colour, marker), alpha = charts.look_of(view.groups, group), DRAWN[state]
    axes.errorbar(
        at[0], at[1], xerr=_bars(rows, x), yerr=_bars(rows, y), fmt="none", ecolor=colour,
        alpha=0.35 * alpha, elinewidth=1.1,
    )  # fmt: skip
    axes.plot(
        *at, marker, markersize=8.5 if best else 7, alpha=alpha,
        color=charts.PAPER if state == "pruned" else colour, zorder=3 if best else 2,
        markeredgecolor=charts.INK if best else colour, markeredgewidth=1.6 if best else 1.2,
    )  # fmt: skip


def _bars(rows: Sequence[RankedTrial], metric: str) -> list[list[float]] | None:
    reach = [
        (max(value - interval[0], 0.0), max(interval[1] - value, 0.0))
        if (value := row.metric(metric)) is not None and (interval := row.interval(metric))
        else (0.0, 0.0)
        for row in rows
    ]
    below, above = [low for low, _ in reach], [high for _, high in reach]
    return [below, above] if any(below) or any(above) else None


def _annotate(axes: Axes, view: ReportView, rows: Sequence[RankedTrial]) -> None:
    x, y = view.plane or ("", "")
    key = annotated_key(view)
    style = {"fontsize": 8, "color": charts.INK, "alpha": 0.85, "parse_math": False}
    for row in rows:
        if key and key in row.parameters:
            at = (row.metric(x) or 0.0, row.metric(y) or 0.0)
            note = charts.plain(format_value(row.parameters[key]), 16)
            axes.annotate(note, at, xytext=(6, 4), textcoords="offset points", **style)  # type: ignore[arg-type]


def annotated_key(view: ReportView) -> str | None:
    """Return the key whose value annotates the points: the first numeric one."""
    if len(view.rows) > MAX_ANNOTATED:
        return None
    for key in view.varied:
        is_number = all(isinstance(row.parameters.get(key, 0.0), float) for row in view.rows)
        if is_number and key not in (view.group_key, recommendation.SEED):
            return key
    return None


def _front(axes: Axes, view: ReportView, rows: Sequence[RankedTrial]) -> None:
    x, y = view.plane or ("", "")
    finished = [row for row in rows if row.trial.state == "finished"]
    finished = [row for row in finished if view.objective.is_kept(row.trial.metrics)]
    points = [(row.metric(x) or 0.0, row.metric(y) or 0.0) for row in finished]
    modes: list[objective.Mode] = ["max" if view.mode(name) == "max" else "min" for name in (x, y)]
    front = sorted({points[i] for i in objective.pareto_front(points, modes)})
    if len(front) > 1:
        # Steps, because between two trials of the front nothing better than both is known.
        xs, ys = zip(*front, strict=True)
        where: Literal["post", "pre"] = "post" if modes[0] == "min" else "pre"
        axes.step(xs, ys, where=where, color=charts.INK, linewidth=1, alpha=0.5, zorder=1)


def _entries(view: ReportView, rows: Sequence[RankedTrial]) -> list[tuple[Line2D, str]]:
    mark, present = partial(charts.mark, linestyle="none"), {view.group(row) for row in rows}
    groups = [group for group in view.groups if group and group in present]
    entries = [(mark(*charts.look_of(view.groups, group)), group) for group in groups]
    states = {row.trial.state for row in rows}
    if "pruned" in states:
        entries.append((mark(charts.PAPER, "o", markeredgecolor=charts.INK), "pruned"))
    if states & {"running", "interrupted"}:
        entries.append((mark(charts.INK, "o", alpha=0.55), "not finished"))
    best = mark(charts.PAPER, "o", markeredgecolor=charts.INK, markeredgewidth=1.8, markersize=9)
    entries.append((best, "Pareto front" if view.objective.is_pareto else "best"))
    return entries
