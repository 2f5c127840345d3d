"""Latent codes coloured by label, over the prior they should cover."""

from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray
from torch import Tensor

MAX_POINTS = 4000
"""Codes drawn; more hide each other."""
BINS = 60
INK = "#332288"
SAFE = (
    *("#332288", "#88ccee", "#117733", "#ddcc77", "#cc6677"),
    *("#aa4499", "#44aa99", "#999933", "#882255", "#ee7733"),
)
"""Colours that the colour-blind tell apart: Paul Tol's "muted", and one of his "vibrant"."""
NAMED_LABELS = 20
"""Up to this many labels are named one by one; more are shown by a colour scale."""
GREYS = LinearSegmentedColormap.from_list("prior", ["#ffffff", "#7c7c7c"])

Array = NDArray[Any]
Limits = tuple[float, float]


def latent_codes(codes_nZ: Tensor, labels_n: Tensor, prior_mZ: Tensor, caption: str = "") -> Figure:
    """Draw codes as dots coloured by label over the prior's density in grey, with both marginals.

    Above two dimensions both are projected on the first two principal axes of the codes.

    Args:
        codes_nZ: Latent codes, float.
        labels_n: int64, -1 where absent.
        prior_mZ: Prior samples, float.
        caption: What the codes are of, for the title.
    """
    # Project codes and prior to two dimensions.
    finite = codes_nZ.isfinite().all(1)
    if not bool(finite.any()):
        return _message("no latent code is finite")
    labels = labels_n[finite].numpy()
    codes, prior, names = _in_plane(codes_nZ[finite].double(), prior_mZ.double())

    # Lay out the main plot and its two marginals.
    figure = Figure(figsize=(7.6, 6.6))
    grid = figure.add_gridspec(
        2, 2, width_ratios=(6, 1), height_ratios=(1, 6), wspace=0.04, hspace=0.04,
        left=0.1, right=0.86, top=0.92, bottom=0.08,
    )  # fmt: skip
    main = figure.add_subplot(grid[1, 0])
    top = figure.add_subplot(grid[0, 0], sharex=main)
    right = figure.add_subplot(grid[1, 1], sharey=main)
    limits = _equal_spans([_limits(codes[:, axis], prior[:, axis]) for axis in range(2)])

    # Draw the prior's density, the codes over it, and the marginals.
    density = _density(prior, limits)
    extent = (*limits[0], *limits[1])
    main.imshow(density, cmap=GREYS, extent=extent, origin="lower", aspect="auto")
    _scatter(main, codes, labels)
    level = _level_holding(density, 0.9)
    main.contour(density, levels=[level], extent=extent, colors="0.25", linewidths=0.9)
    main.set(xlim=limits[0], ylim=limits[1], xlabel=names[0], ylabel=names[1])
    _marginal(top, codes[:, 0], prior[:, 0], limits[0], "vertical")
    _marginal(right, codes[:, 1], prior[:, 1], limits[1], "horizontal")
    top.legend(loc="upper left", fontsize=7, frameon=False, borderpad=0)
    place = f"{caption}: " if caption else ""
    figure.suptitle(f"{place}latent codes over the prior", fontsize=12)
    figure.text(
        0.5, 0.94, "colour: label; grey: density of the prior; line: 90 % of it",
        ha="center", va="center", fontsize=9, color="0.3",
    )  # fmt: skip
    return figure


def principal_axes(codes_nZ: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the codes' mean [Z], first two principal axes [Z, 2] and their shares of variance [2].

    The sign of an axis is chosen so that its largest component is positive: pictures of one run
    do not flip from one evaluation to the next.
    """
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


def _level_holding(density: Array, share: float) -> float:
    """Return the density above which lies `share` of the prior."""
    falling = np.sort(density.ravel())[::-1]
    reached = np.searchsorted(falling.cumsum(), share * falling.sum())
    return float(falling[min(reached, falling.size - 1)])


def _message(text: str) -> Figure:
    figure = Figure(figsize=(7.6, 6.6))
    figure.text(0.5, 0.5, text, ha="center", va="center")
    return figure


def _scatter(axes: Axes, codes: Array, labels: NDArray[np.int64]) -> None:
    every = max(1, len(codes) // MAX_POINTS)
    codes, labels = codes[::every], labels[::every]
    known = sorted(set(labels.tolist()) - {-1})
    size = 5.0 if len(codes) > 1500 else 12.0
    style: dict[str, Any] = {"s": size, "linewidths": 0, "alpha": 0.75, "rasterized": True}
    if not known:
        axes.scatter(codes[:, 0], codes[:, 1], color=INK, **style)
    elif len(known) > NAMED_LABELS:
        drawn = axes.scatter(codes[:, 0], codes[:, 1], c=labels, cmap="cividis", **style)
        axes.figure.colorbar(drawn, cax=axes.inset_axes((1.2, 0.1, 0.03, 0.8)), label="label")
    else:
        _scatter_named(axes, codes, labels, known, style)


def _scatter_named(
    axes: Axes, codes: Array, labels: NDArray[np.int64], known: list[int], style: dict[str, Any]
) -> None:
    """Draw each label in a colour of its own, with its number where its codes are."""
    few = len(known) <= len(SAFE)
    colours = SAFE if few else matplotlib.colormaps["tab20"].colors  # type: ignore[attr-defined]
    shade = [colours[known.index(n)] if n >= 0 else (0, 0, 0, 0.4) for n in labels.tolist()]
    # In an order of its own: drawn by label, the last ones would hide the first.
    order = np.random.default_rng(0).permutation(len(codes))
    axes.scatter(codes[order, 0], codes[order, 1], color=[shade[n] for n in order], **style)
    for position, label in enumerate(known):
        axes.scatter([], [], color=colours[position], s=30, label=str(label))
    axes.legend(
        loc="upper left", bbox_to_anchor=(1.18, 1.0), fontsize=9, frameon=False, title="label"
    )
    if few:
        for position, label in enumerate(known):
            x, y = np.median(codes[labels == label], axis=0)
            axes.text(
                x, y, str(label), color=colours[position], fontsize=13, weight="bold",
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
