"""Curves of a run's metrics, drawn from its records."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import EngFormatter, LogLocator, NullLocator, StrMethodFormatter

COLUMNS = 3
COLOURS = ("#0072b2", "#d55e00", "#009e73")
"""Blue, vermilion and green of Okabe and Ito, which the colour-blind tell apart."""
STYLES = ("-", "--", "-.")


@dataclass(frozen=True)
class Panel:
    """One plot: names and labels of its curves, and the value that a perfect match would have."""

    title: str
    curves: tuple[tuple[str, str], ...]
    perfect: float | None = None
    logarithmic: bool = False


EVALUATION_PANELS = (
    Panel("squared error per pixel (validation)", (("reconstruction/mse", ""),)),
    Panel("accuracy of a two-sample test (C2ST)", (("prior_match/c2st", ""),), perfect=0.5),
    Panel(
        "distance to the prior / that of a perfect match",
        (("prior_match/sliced_wasserstein", "sliced Wasserstein"), ("prior_match/mmd", "MMD")),
        perfect=1.0,
        logarithmic=True,
    ),
    Panel(
        "discriminator accuracy",
        (("discriminator/accuracy_prior", "prior"), ("discriminator/accuracy_codes", "codes")),
        perfect=0.5,
    ),
)


def loss_curves(records: Sequence[Mapping[str, Any]], caption: str = "") -> Figure:
    """Draw every loss, and what evaluations measured, against the samples seen.

    Args:
        records: Log points as in metrics.jsonl; a record need not have every metric.
        caption: What they are of, for the title.
    """
    present = {name: None for record in records for name in record if _has(record, name)}
    losses = [name for name in present if name.startswith("loss/")]
    panels = [Panel(f"{name.removeprefix('loss/')} loss", ((name, ""),)) for name in losses]
    panels += [p for p in EVALUATION_PANELS if any(name in present for name, _ in p.curves)]
    rows = max(1, -(-len(panels) // COLUMNS))
    figure = Figure(
        figsize=(4.2 * COLUMNS, 2.9 * rows), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1)
    )
    axes = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    for place, panel in zip(axes, panels, strict=False):
        _draw(place, panel, records)
    for empty in axes[len(panels) :]:
        empty.set_axis_off()
    if caption:
        figure.suptitle(caption, fontsize=12)
    return figure


def _draw(axes: Axes, panel: Panel, records: Sequence[Mapping[str, Any]]) -> None:
    for (name, label), colour, style in zip(panel.curves, COLOURS, STYLES, strict=False):
        points = [(r.get("samples_seen", r["step"]), r[name]) for r in records if _has(r, name)]
        if not points:
            continue
        x, y = np.array(points, dtype=float).T
        # Few points are evaluations: shown one by one. Many are log points: a line says it all.
        marker = "o" if len(x) <= 30 else None
        axes.plot(x, y, style, color=colour, lw=1.4, marker=marker, ms=3.5, label=label)
    if panel.perfect is not None:
        axes.axhline(panel.perfect, color="0.5", linewidth=1, linestyle=":", label="perfect match")
    if panel.logarithmic:
        axes.set_yscale("log")
        # 1, 2, 5, 10, ... instead of powers of ten, of which such a panel often has one at most.
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
    if panel.perfect is not None:
        axes.legend(fontsize=8, frameon=False)
    axes.set_title(panel.title, fontsize=10)
    axes.set_xlabel("samples seen", fontsize=9)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _has(record: Mapping[str, Any], name: str) -> bool:
    return record.get(name) is not None
