"""Why these parameters are recommended: score and constraints of every candidate by latent size."""

import json
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from aae_dist.report import charts
from aae_dist.report.view import PERFECT, ReportView, format_value, label
from aae_dist.sweeps.recommendation import SIZE_KEYS, Candidate, size_of

MAX_PANELS = 3
MAX_GROUPS = len(charts.COLOURS)


def draw(view: ReportView) -> Figure | None:
    """Draw one panel per score and per constraint; None unless latent sizes are swept."""
    found = view.recommendation
    candidates = [c for c in found.candidates if size_of(c.parameters) is not None]
    if len({c.size for c in candidates}) < 2:
        return None
    names = [*view.objective.names, *(name for name, _ in view.objective.constraints)][:MAX_PANELS]
    figure = charts.new_figure(8.6, 3.9)
    grid = figure.subplots(1, len(names), squeeze=False)[0]
    groups = list(dict.fromkeys(group_of(c) for c in candidates))
    for place, (name, axes) in enumerate(zip(names, grid, strict=True)):
        is_score = place < len(view.objective.names)
        _panel(axes, view, candidates, groups, place if is_score else None, name)
    shown = groups[:MAX_GROUPS]
    entries = [(charts.mark(*charts.look_of(groups, group)), group) for group in shown if group]
    ring = charts.mark(
        charts.PAPER, "o", markeredgecolor=charts.INK, markeredgewidth=2, markersize=11
    )
    word = "recommended" if found.state == "chosen" else "nearest"
    charts.legend(figure, [*entries, (ring, word)])
    return figure


def caption(view: ReportView) -> str:
    """Return the caption."""
    bounds = " and ".join(f"{label(name)} {bound:g}" for name, bound in view.objective.constraints)
    limit = (
        f" Of a constraint the value is shown below which a new seed stays with 90 % confidence; "
        f"the dotted line is what is allowed ({bounds}), and hollow points are above it."
        if bounds
        else ""
    )
    span = dimension_of_data(view)
    band = (
        " The grey band is the intrinsic dimension of the data, by both estimates." if span else ""
    )
    return (
        "Why: each point is the mean over the seeds of one choice of parameters, with one standard "
        f"error, by latent size.{limit}{band}"
    )


def dimension_of_data(view: ReportView) -> tuple[float, float] | None:
    """Return the lower and the higher estimate of the data's intrinsic dimension."""
    for row in view.rows:
        found = [row.metric(f"data/dimension_{by}") for by in ("twonn", "mle")]
        known = [value for value in found if value is not None]
        if known:
            return min(known), max(known)
    return None


def group_of(candidate: Candidate) -> str:
    """Return everything but the latent size in words; candidates that share it are joined."""
    shown = []
    for key, value in candidate.parameters.items():
        if key == SIZE_KEYS[0]:
            continue
        if key == SIZE_KEYS[1] and isinstance(value, dict):
            value = {k: v for k, v in value.items() if k != "latent_dim"}
        shown.append(f"{key.rsplit('.', 1)[-1]} {format_value(json.loads(json.dumps(value)))}")
    return ", ".join(shown)


def _panel(
    axes: Axes,
    view: ReportView,
    candidates: Sequence[Candidate],
    groups: Sequence[str],
    place: int | None,
    name: str,
) -> None:
    """Draw the score at `place`, or, without one, the upper bounds of the constraint `name`."""
    charts.style_axes(axes, title=label(name), x="latent size")
    bounds = dict(view.objective.constraints)
    values = []
    for group in groups:
        own = sorted((c for c in candidates if group_of(c) == group), key=lambda c: c.size)
        heights = [c.bounds[name] if place is None else c.score[place] for c in own]
        errors = [(c.standard_error or 0.0) if place == 0 else 0.0 for c in own]
        colour, marker = charts.look_of(groups, group)
        sizes = [c.size for c in own]
        axes.errorbar(sizes, heights, yerr=errors, color=colour, linewidth=1.4, elinewidth=1.2)
        for candidate, height in zip(own, heights, strict=True):
            kept = view.objective.is_kept(candidate.bounds)
            is_chosen = candidate is view.recommendation.chosen
            axes.plot(
                [candidate.size], [height], marker, zorder=4 if is_chosen else 3,
                color=colour if kept else charts.PAPER,
                markersize=11 if is_chosen else 6.5,
                markeredgecolor=charts.INK if is_chosen else colour,
                markeredgewidth=2 if is_chosen else 1.2,
            )  # fmt: skip
        values += heights
    if (span := dimension_of_data(view)) is not None:
        axes.axvspan(*span, color=charts.FAINT, alpha=0.25, linewidth=0, zorder=0)
    if place is None:
        axes.axhline(bounds[name], color=charts.INK, linewidth=1.2, linestyle=":")
    if name in PERFECT:
        axes.axhline(PERFECT[name], color=charts.FAINT, linewidth=1, linestyle="--")
    _axes(axes, sorted({c.size for c in candidates}), values)


def _axes(axes: Axes, sizes: Sequence[float], values: Sequence[float]) -> None:
    charts.scale(axes, "x", sizes)
    charts.scale(axes, "y", values)
    if len(sizes) <= 12:
        axes.xaxis.set_major_locator(FixedLocator(list(sizes)))
        axes.xaxis.set_minor_locator(NullLocator())
