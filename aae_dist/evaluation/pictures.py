"""Pictures of a run: images as a grid, latent codes over the prior, curves.

Figures are made without pyplot, so nothing is global and any thread may draw.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patheffects import withStroke
from matplotlib.ticker import EngFormatter, LogLocator, NullLocator, StrMethodFormatter
from numpy.typing import NDArray
from torch import Tensor

from aae_dist.evaluation.evaluator import EvaluationImages
from aae_dist.evaluation.vectors import TITLE_INCHES, is_lines, middle_slices, vectors
from aae_dist.priors import GaussianPrior, Prior
from aae_dist.utils.arrays import figure_to_png

PAIRS_PER_ROW = 8
GAP = 2  # pixels of margin around an image, before enlarging
CELL_INCHES = 0.8
PAPER = 1.0  # white, the colour of margins

Array = NDArray[Any]
Range = tuple[float, float]
PIXELS: Range = (0.0, 1.0)


def draw_all(shown: EvaluationImages, caption: str = "") -> dict[str, bytes]:
    """Return name -> PNG of every picture that one evaluation gives; all titles have `caption`."""
    pictures: dict[str, Callable[[], Figure]] = {
        "reconstructions": lambda: reconstructions(shown.originals, shown.reconstructions, caption),
        "prior_samples": lambda: decoded_samples(
            shown.decoded_prior, caption, range_of(shown.originals)
        ),
        "latent_codes": lambda: latent_codes(
            shown.codes, shown.labels, shown.prior_samples, caption, shown.classes, shown.prior
        ),
    }
    return {name: figure_to_png(draw()) for name, draw in pictures.items()}


def reconstructions(
    originals_kCHW: Tensor, reconstructions_kCHW: Tensor, caption: str = ""
) -> Figure:
    """Show each original, uint8 or floats, with its reconstruction below it.

    Bytes stand for pixels in [0, 1]. Floats are shown in their own range where that is larger;
    vectors and signals as `vectors` does, volumes by their middle slice.
    """
    shown = range_of(originals_kCHW)
    is_bytes = originals_kCHW.dtype == torch.uint8
    x_kCHW = originals_kCHW.float() / 255 if is_bytes else originals_kCHW
    if is_lines(x_kCHW):
        return vectors(x_kCHW, reconstructions_kCHW, caption)
    top = as_pictures(x_kCHW, shown)
    bottom = as_pictures(reconstructions_kCHW, shown)
    rows = []
    for start in range(0, len(top), PAIRS_PER_ROW):
        rows += [strip(half[start : start + PAIRS_PER_ROW]) for half in (top, bottom)]
        rows.append(np.full((2 * GAP, *rows[0].shape[1:]), PAPER, dtype=np.float32))
    title = "originals, and below each its reconstruction"
    return show(np.concatenate(rows[:-1]), title, caption)


def decoded_samples(images_kCHW: Tensor, caption: str = "", shown: Range = PIXELS) -> Figure:
    """Show samples decoded from the prior; `shown` are the values of black and white."""
    if is_lines(images_kCHW):
        return vectors(images_kCHW, None, caption)
    images = as_pictures(images_kCHW, shown)
    starts = range(0, len(images), PAIRS_PER_ROW)
    grid = np.concatenate([strip(images[start : start + PAIRS_PER_ROW]) for start in starts])
    return show(grid, "samples of the prior, decoded", caption)


def range_of(originals_kCHW: Tensor) -> Range:
    """Return the values of black and white: 0 and 1, or wider where floats are outside these."""
    if originals_kCHW.dtype == torch.uint8 or not originals_kCHW.numel():
        return PIXELS
    return min(0.0, float(originals_kCHW.min())), max(1.0, float(originals_kCHW.max()))


def as_pictures(images_kCHW: Tensor, shown: Range) -> Array:
    """Return [k, H, W, 3] in [0, 1]; other than three channels are shown as grey, by the first."""
    low, high = shown
    images_kCHW = middle_slices(images_kCHW)
    channels = ((images_kCHW - low) / (high - low)).clamp(0, 1).nan_to_num(0.5).permute(0, 2, 3, 1)
    colour = channels if channels.shape[-1] == 3 else channels[..., :1].expand(-1, -1, -1, 3)
    pictures: Array = colour.float().numpy()
    return pictures


def strip(images: Array) -> Array:
    """Return up to PAIRS_PER_ROW images side by side, with margins, padded to a full row."""
    missing = PAIRS_PER_ROW - len(images)
    margins = ((0, 0), (GAP, GAP), (GAP, GAP), (0, 0))
    framed = np.pad(images, margins, constant_values=PAPER)
    framed = np.pad(framed, ((0, missing), (0, 0), (0, 0), (0, 0)), constant_values=PAPER)
    return np.concatenate(list(framed), axis=1)


def show(grid: Array, title: str, caption: str) -> Figure:
    """Return a figure of pixels, [H, W, 3] in [0, 1], under its title."""
    height, width = grid.shape[:2]
    inches = PAIRS_PER_ROW * CELL_INCHES
    picture_inches, title_inches = inches * height / width, TITLE_INCHES
    figure = Figure(figsize=(inches, picture_inches + title_inches))
    share = picture_inches / (picture_inches + title_inches)
    axes = figure.add_axes((0, 0, 1, share))
    axes.imshow(grid, interpolation="nearest", aspect="auto", vmin=0, vmax=1)
    axes.set_axis_off()
    text, middle = _title(title, caption), (1 + share) / 2
    figure.text(0.5, middle, text, ha="center", va="center", fontsize=11)
    return figure


def _title(title: str, caption: str) -> str:
    return f"{caption}: {title}" if caption else title


MAX_POINTS = 4000  # codes drawn; more hide each other
BINS, FINE_BINS = 60, 200
INK = "#332288"
SAFE = (
    *("#332288", "#88ccee", "#117733", "#ddcc77", "#cc6677"),
    *("#aa4499", "#44aa99", "#999933", "#882255", "#ee7733"),
)
"""Colours that the colour-blind tell apart: Paul Tol's "muted", and one of his "vibrant"."""
NAMED_LABELS = 20  # up to this many labels are named one by one; more are shown by a colour scale
NAME_LENGTH = 18  # letters of a class's name that fit next to the plot
NO_NAMES: Mapping[int, str] = {}
GREYS = LinearSegmentedColormap.from_list("prior", ["#ffffff", "#7c7c7c"])

Limits = tuple[float, float]


def latent_codes(
    codes_nZ: Tensor,
    labels_n: Tensor,
    prior_mZ: Tensor,
    caption: str = "",
    classes: Mapping[int, str] = NO_NAMES,
    prior: Prior | None = None,
    colour: str = "label",
) -> Figure:
    """Draw codes as dots coloured by label over the prior's density in grey, with both marginals.

    Above two dimensions both are projected on the first two principal axes of the codes. Labels are
    int64, -1 where absent; `classes` are the names of some. The density is that of `prior` where it
    is known in the plane, else a histogram of `prior_mZ`.
    """
    # Project codes and prior to two dimensions.
    finite = codes_nZ.isfinite().all(1)
    if not bool(finite.any()):
        figure = Figure(figsize=(7.6, 6.6))
        figure.text(0.5, 0.5, "no latent code is finite", ha="center", va="center")
        return figure
    labels, codes_nZ = labels_n[finite].numpy(), codes_nZ[finite].double()
    codes, drawn, names = _in_plane(codes_nZ, prior_mZ.double())

    figure, main, top, right = _plot_with_marginals()
    limits = _equal_spans([_limits(codes[:, axis], drawn[:, axis]) for axis in range(2)])

    # Draw the prior's density, the codes over it, and the marginals.
    density = _known_density(prior, codes_nZ, limits)
    density = _density(drawn, limits) if density is None else density
    extent = (*limits[0], *limits[1])
    main.imshow(density, cmap=GREYS, extent=extent, origin="lower", aspect="auto")
    _scatter(main, codes, labels, classes, colour)
    level = _level_holding(density, 0.9)
    main.contour(density, levels=[level], extent=extent, colors="0.25", linewidths=0.9)
    main.set(xlim=limits[0], ylim=limits[1], xlabel=names[0], ylabel=names[1])
    _marginal(top, codes[:, 0], drawn[:, 0], limits[0], "vertical")
    _marginal(right, codes[:, 1], drawn[:, 1], limits[1], "horizontal")
    top.legend(loc="upper left", fontsize=7, frameon=False, borderpad=0)
    figure.suptitle(_title("latent codes over the prior", caption), fontsize=12)
    figure.text(
        0.5, 0.94, f"colour: {colour}; grey: density of the prior; line: 90 % of it",
        ha="center", va="center", fontsize=9, color="0.3",
    )  # fmt: skip
    return figure


def _plot_with_marginals() -> tuple[Figure, Axes, Axes, Axes]:
    """Return a figure with its main plot and the marginals above and right of it."""
    figure = Figure(figsize=(7.6, 6.6))
    grid = figure.add_gridspec(
        2, 2, width_ratios=(6, 1), height_ratios=(1, 6), wspace=0.04, hspace=0.04,
        left=0.1, right=0.86, top=0.92, bottom=0.08,
    )  # fmt: skip
    main = figure.add_subplot(grid[1, 0])
    top = figure.add_subplot(grid[0, 0], sharex=main)
    return figure, main, top, figure.add_subplot(grid[1, 1], sharey=main)


def principal_axes(codes_nZ: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the codes' mean [Z], first two principal axes [Z, 2] and shares of variance [2]."""
    # The sign of an axis is chosen so that its largest component is positive: pictures of one run
    # do not flip from one evaluation to the next.
    mean = codes_nZ.mean(0)
    centred = codes_nZ - mean
    variances, vectors = torch.linalg.eigh(centred.T @ centred / len(codes_nZ))
    axes = vectors[:, [-1, -2]]
    largest = axes.gather(0, axes.abs().argmax(0, keepdim=True))
    shares = variances[[-1, -2]] / variances.sum().clamp_min(1e-300)
    return mean, axes * largest.sign(), shares


def _in_plane(codes_nZ: Tensor, prior_mZ: Tensor) -> tuple[Array, Array, tuple[str, str]]:
    """Return codes and prior samples in two dimensions, and names of the two axes."""
    dim = codes_nZ.shape[1]
    if dim == 1:
        height = torch.linspace(-1, 1, len(codes_nZ), dtype=codes_nZ.dtype)[:, None]
        flat = torch.linspace(-1, 1, len(prior_mZ), dtype=prior_mZ.dtype)[:, None]
        spread = torch.cat([codes_nZ, height], 1), torch.cat([prior_mZ, flat], 1)
        return spread[0].numpy(), spread[1].numpy(), ("z", "position in the data")
    if dim == 2:
        return codes_nZ.numpy(), prior_mZ.numpy(), ("$z_1$", "$z_2$")
    mean, axes, shares = principal_axes(codes_nZ)
    first, second = (
        f"principal axis {i + 1} of the codes ({100 * share:.0f} % of variance, {dim} dimensions)"
        for i, share in enumerate(shares.tolist())
    )
    return ((codes_nZ - mean) @ axes).numpy(), ((prior_mZ - mean) @ axes).numpy(), (first, second)


def _limits(codes: Array, prior: Array) -> Limits:
    """Return a range that holds all but stray points: one outlier does not shrink the rest."""
    low = min(np.quantile(codes, 0.002), np.quantile(prior, 0.001))
    high = max(np.quantile(codes, 0.998), np.quantile(prior, 0.999))
    margin = 0.06 * max(high - low, 1e-6)
    return float(low - margin), float(high + margin)


def _equal_spans(limits: list[Limits]) -> list[Limits]:
    """Return ranges of the same length around the same centres: a round prior looks round."""
    half = max(high - low for low, high in limits) / 2
    centres = [(low + high) / 2 for low, high in limits]
    return [(centre - half, centre + half) for centre in centres]


def _density(prior: Array, limits: list[Limits]) -> Array:
    """Return the prior's histogram [BINS, BINS], rows along the second axis, lightly smoothed."""
    counts, _, _ = np.histogram2d(prior[:, 1], prior[:, 0], bins=BINS, range=limits[::-1])
    kernel = np.array([1, 4, 6, 4, 1]) / 16
    for axis in range(2):
        counts = np.apply_along_axis(np.convolve, axis, counts, kernel, mode="same")
    return counts


def _known_density(prior: Prior | None, codes_nZ: Tensor, limits: list[Limits]) -> Array | None:
    """Return the prior's density in the plane on a fine grid, as `_density`; None if not known.

    It is known of two dimensions; of more, for a Gaussian, whose projections are Gaussians.
    """
    dim = codes_nZ.shape[1]
    if prior is None or dim < 2 or (dim > 2 and type(prior) is not GaussianPrior):
        return None
    edges = [torch.linspace(*limit, 2 * FINE_BINS + 1, dtype=torch.float64) for limit in limits]
    x, y = (edge[1::2] for edge in edges)  # centres of cells
    points = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).flatten(0, 1)
    if dim > 2:
        mean, axes, _ = principal_axes(codes_nZ)
        prior, points = GaussianPrior(2, prior.std), points + mean @ axes  # type: ignore[attr-defined]
    log_density = prior.log_prob(points.float())
    if log_density is None or bool(log_density.isnan().any()):
        return None
    density: Array = (log_density - log_density.max()).exp().double().numpy()
    return density.reshape(FINE_BINS, FINE_BINS)


def _level_holding(density: Array, share: float) -> float:
    """Return the density above which lies `share` of the prior."""
    falling = np.sort(density.ravel())[::-1]
    reached = np.searchsorted(falling.cumsum(), share * falling.sum())
    return float(falling[min(reached, falling.size - 1)])


def _scatter(
    axes: Axes, codes: Array, labels: NDArray[np.int64], classes: Mapping[int, str], title: str
) -> None:
    every = max(1, len(codes) // MAX_POINTS)
    codes, labels = codes[::every], labels[::every]
    known = sorted(set(labels.tolist()) - {-1})
    size = 5.0 if len(codes) > 1500 else 12.0
    style: dict[str, Any] = {"s": size, "linewidths": 0, "alpha": 0.75, "rasterized": True}
    if not known:
        axes.scatter(codes[:, 0], codes[:, 1], color=INK, **style)
    elif len(known) > NAMED_LABELS:
        drawn = axes.scatter(codes[:, 0], codes[:, 1], c=labels, cmap="cividis", **style)
        axes.figure.colorbar(drawn, cax=axes.inset_axes((1.2, 0.1, 0.03, 0.8)), label=title)
    else:
        texts = {label: _shown_name(classes.get(label, str(label))) for label in known}
        _scatter_named(axes, codes, labels, texts, title, style)


def _shown_name(name: str) -> str:
    """Return the name of a class for a legend: short, and nothing of it markup."""
    plain = "".join(c if c.isprintable() else "?" for c in name)
    short = plain if len(plain) <= NAME_LENGTH else plain[: NAME_LENGTH - 3] + "..."
    # A legend leaves out names that begin with an underscore, and $ begins a formula.
    return ("\u200b" + short if short.startswith("_") else short).replace("$", r"\$")


def _scatter_named(
    axes: Axes,
    codes: Array,
    labels: NDArray[np.int64],
    texts: Mapping[int, str],
    title: str,
    style: dict[str, Any],
) -> None:
    """Draw each label in a colour of its own, with its text where its codes are."""
    known = list(texts)
    few = len(known) <= len(SAFE)
    colours = SAFE if few else matplotlib.colormaps["tab20"].colors  # type: ignore[attr-defined]
    shade = [colours[known.index(n)] if n >= 0 else (0, 0, 0, 0.4) for n in labels.tolist()]
    # In an order of its own: drawn by label, the last ones would hide the first.
    order = np.random.default_rng(0).permutation(len(codes))
    axes.scatter(codes[order, 0], codes[order, 1], color=[shade[n] for n in order], **style)
    for position, label in enumerate(known):
        axes.scatter([], [], color=colours[position], s=30, label=texts[label])
    axes.legend(
        loc="upper left", bbox_to_anchor=(1.18, 1.0), fontsize=9, frameon=False, title=title
    )
    if few:
        for position, label in enumerate(known):
            x, y = np.median(codes[labels == label], axis=0)
            axes.text(
                x, y, texts[label], color=colours[position], fontsize=13, weight="bold",
                ha="center", va="center", clip_on=True,
                path_effects=[withStroke(linewidth=3, foreground="white")],
            )  # fmt: skip


def _marginal(
    axes: Axes, codes: Array, prior: Array, limits: tuple[float, float], orientation: Any
) -> None:
    style: dict[str, Any] = {"bins": BINS, "range": limits, "density": True}
    style["orientation"] = orientation
    axes.hist(prior, histtype="stepfilled", color="0.8", label="prior", **style)
    axes.hist(codes, histtype="step", color=INK, linewidth=1.2, label="codes", **style)
    axes.set_axis_off()


CURVE_COLUMNS = 3
COLOURS = ("#0072b2", "#d55e00", "#009e73")
"""Blue, vermilion and green of Okabe and Ito, which the colour-blind tell apart."""
STYLES = ("-", "--", "-.")
SMOOTHED_FROM = 60  # points of a curve from which on its mean is drawn over the values


@dataclass(frozen=True)
class Panel:
    """One plot: names and labels of its curves, and the value that a perfect match would have."""

    title: str
    curves: tuple[tuple[str, str], ...]
    perfect: float | None = None
    logarithmic: bool = False


EVALUATION_PANELS = (
    Panel("squared error per value (validation)", (("reconstruction/mse", ""),)),
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

    Records are log points as in metrics.jsonl; a record need not have every metric.
    """
    present = {name: None for record in records for name in record if _has(record, name)}
    losses = [name for name in present if name.startswith("loss/")]
    panels = [Panel(f"{name.removeprefix('loss/')} loss", ((name, ""),)) for name in losses]
    panels += [p for p in EVALUATION_PANELS if any(name in present for name, _ in p.curves)]
    rows = max(1, -(-len(panels) // CURVE_COLUMNS))
    figure = Figure(
        figsize=(4.2 * CURVE_COLUMNS, 2.9 * rows),
        layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1),
    )
    axes = figure.subplots(rows, CURVE_COLUMNS, squeeze=False).ravel()
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
        if len(x) > SMOOTHED_FROM:
            axes.plot(x, y, color=colour, lw=0.6, alpha=0.35)
            y = _smoothed(y)
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


def _smoothed(y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean of each value and those around it, over 4 % of the curve."""
    window = np.ones(2 * (len(y) // 50) + 1)
    sums: NDArray[np.float64] = np.convolve(y, window, "same")
    return sums / np.convolve(np.ones(len(y)), window, "same")


def _has(record: Mapping[str, Any], name: str) -> bool:
    return record.get(name) is not None
