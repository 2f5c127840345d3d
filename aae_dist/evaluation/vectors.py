"""Pictures of vectors, signals and volumes, and of traversals of the latent space."""

from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from torch import Tensor

COLUMNS, PANEL_INCHES, PITCH = 4, (1.6, 0.8), 1.12
"""Panels of lines per row, inches of each, and the distance of two in widths."""
TITLE_INCHES = 0.4
ORIGINAL, OTHER = "#000000", "#d55e00"
MANY_FEATURES = 48
"""From so many on, overlaid lines cover each other."""
MAX_DOTS = 20_000
SHOWN_SHARE = 0.99  # of the values between the ends of the colour scale: one outlier hides nothing


MAX_LINES = 3
"""Channels of a signal that are drawn."""


def is_lines(samples_kCHW: Tensor) -> bool:
    """Return whether samples are vectors (k, 1, 1, D) or signals (k, C, L) rather than images."""
    return samples_kCHW.ndim == 3 or _is_vectors(samples_kCHW)


def _is_vectors(samples_kCHW: Tensor) -> bool:
    return samples_kCHW.ndim == 4 and tuple(samples_kCHW.shape[1:3]) == (1, 1)


def middle_slices(samples: Tensor) -> Tensor:
    """Return volumes (..., C, D, H, W) as images, by the middle of their D; all else unchanged."""
    return samples[:, :, samples.shape[2] // 2] if samples.ndim == 5 else samples


def vectors(samples_k11D: Tensor, others_k11D: Tensor | None, caption: str = "") -> Figure:
    """Draw vectors or signals, with their reconstructions `others_k11D` where there are any.

    Signals and few features are lines, each reconstruction over its original. Many features are
    heat maps, one row per vector, and a plot of the reconstructed values against the original ones.
    """
    if samples_k11D.shape[-1] >= MANY_FEATURES and _is_vectors(samples_k11D):
        return _heat_maps(samples_k11D, others_k11D, caption)
    title = "samples of the prior, decoded"
    if others_k11D is not None:
        title = "originals (black), and over each its reconstruction"
    return _lines(samples_k11D, others_k11D, f"{caption}: {title}" if caption else title)


def _lines(samples_k11D: Tensor, others_k11D: Tensor | None, title: str) -> Figure:
    """Draw a panel per sample, all of one scale."""
    # In one pair of axes: 32 pairs of them take 20 times as long.
    drawn = [(samples_k11D, ORIGINAL)]
    drawn += [] if others_k11D is None else [(others_k11D, OTHER)]
    finite = torch.cat([v.flatten()[v.flatten().isfinite()] for v, _ in drawn] + [torch.zeros(1)])
    low, high = float(finite.min()), float(finite.max())
    rows, columns = -(-len(samples_k11D) // COLUMNS), min(COLUMNS, len(samples_k11D))
    width, height = COLUMNS * PANEL_INCHES[0], rows * PANEL_INCHES[1] + TITLE_INCHES
    figure = Figure(figsize=(width, height))
    top = 1 - TITLE_INCHES / height
    axes = figure.add_axes((0.06, 0.02, 0.93, top - 0.02))
    places = [
        (n % COLUMNS * PITCH, (rows - 1 - n // COLUMNS) * PITCH) for n in range(len(samples_k11D))
    ]
    for values, colour in drawn:
        lines = [
            np.column_stack(
                [np.linspace(x, x + 1, len(line)), y + (line - low) / (high - low or 1)]
            )
            for (x, y), sample in zip(places, values, strict=True)
            for line in _lines_of(sample)
        ]
        axes.add_collection(LineCollection(lines, colors=colour, linewidths=0.8))
    frames = [np.array([(x, y), (x + 1, y), (x + 1, y + 1), (x, y + 1), (x, y)]) for x, y in places]
    axes.add_collection(LineCollection(frames, colors="0.7", linewidths=0.5))
    axes.set(xlim=(-0.01, columns * PITCH), ylim=(-0.03, rows * PITCH), xticks=[])
    ends = [
        (row * PITCH + end, value) for row in range(rows) for end, value in ((0, low), (1, high))
    ]
    axes.set_yticks([place for place, _ in ends], [f"{value:.3g}" for _, value in ends], fontsize=6)
    axes.set_frame_on(False)
    figure.text(0.5, (1 + top) / 2, title, ha="center", va="center", fontsize=9)
    return figure


def _lines_of(sample_CL: Tensor) -> np.typing.NDArray[Any]:
    """Return up to `MAX_LINES` channels."""
    lines: np.typing.NDArray[Any] = sample_CL.flatten(0, -2)[:MAX_LINES].double().numpy()
    return lines


def _heat_maps(samples_k11D: Tensor, others_k11D: Tensor | None, caption: str) -> Figure:
    """Draw the vectors, and next to them their reconstructions in the same colours."""
    x_kD = samples_k11D.flatten(1).double().numpy()
    maps = [("originals" if others_k11D is not None else "samples of the prior, decoded", x_kD)]
    if others_k11D is not None:
        maps.append(("reconstructions", others_k11D.flatten(1).double().numpy()))
    finite = x_kD[np.isfinite(x_kD)]
    cut = (1 - SHOWN_SHARE) / 2
    low, high = np.quantile(finite, (cut, 1 - cut)) if finite.size else (0.0, 1.0)
    num_panels = 3 if others_k11D is not None else 1
    figure = Figure(figsize=(4.2 * max(num_panels, 2), 3.8), layout="constrained")
    panels = figure.subplots(1, num_panels, squeeze=False)[0]
    for axes, (title, values) in zip(panels, maps, strict=False):
        drawn = axes.imshow(
            values, aspect="auto", interpolation="nearest", cmap="viridis", vmin=low, vmax=high
        )
        axes.set_title(title, fontsize=10)
        axes.set(xlabel="feature", ylabel="sample")
    figure.colorbar(drawn, ax=list(panels[: len(maps)]), shrink=0.9, label="value")
    if others_k11D is not None:
        axes, every = panels[2], -(-x_kD.size // MAX_DOTS)
        axes.plot([low, high], [low, high], color="0.6", linewidth=1, zorder=0)
        x, x_hat = x_kD.ravel()[::every], maps[1][1].ravel()[::every]
        axes.plot(x, x_hat, ".", ms=2, alpha=0.4, color=OTHER, rasterized=True)
        axes.set_title("each value", fontsize=10)
        axes.set(xlabel="x", ylabel="x reconstructed")
    figure.suptitle(caption, fontsize=11)
    return figure


CELL_INCHES, LEFT_INCHES, LABEL_SHARE = 0.7, 0.5, 0.28
"""Of a traversal: side of an image, room for the name of a dimension, part of a row for values."""


def draw_traversal(images_ZSCHW: Tensor, values_ZS: Tensor, caption: str = "") -> Figure:
    """Draw a row of images per latent dimension, with its name and the value over each image.

    Images are floats in [0, 1]; vectors, and signals by their first channel, are lines in one panel
    per dimension, coloured by value.
    """
    rows, steps = values_ZS.shape
    if is_lines(images_ZSCHW[0]):
        return _traversal_of_vectors(images_ZSCHW[:, :, 0].flatten(2), values_ZS, caption)
    images_ZSCHW = middle_slices(images_ZSCHW.flatten(0, 1)).unflatten(0, (rows, steps))
    height, width = images_ZSCHW.shape[-2:]
    cell = CELL_INCHES * height / width * (1 + LABEL_SHARE)
    size = (LEFT_INCHES + steps * CELL_INCHES, rows * cell + TITLE_INCHES)
    figure = Figure(figsize=size)
    share = rows * cell / size[1]
    axes = figure.add_axes((LEFT_INCHES / size[0], 0, steps * CELL_INCHES / size[0], share))
    axes.set(xlim=(0, steps), ylim=(rows, 0))
    axes.set_axis_off()
    channels = 3 if images_ZSCHW.shape[2] == 3 else 1
    pictures = images_ZSCHW[:, :, :channels].clamp(0, 1).nan_to_num(0.5).permute(0, 1, 3, 4, 2)
    pictures = pictures.expand(-1, -1, -1, -1, 3).float()
    gap = 0.02
    for row in range(rows):
        top = row + LABEL_SHARE / (1 + LABEL_SHARE)
        axes.text(-0.1, (top + row + 1) / 2, f"$z_{{{row + 1}}}$", ha="right", va="center")
        for step in range(steps):
            place = (step + gap, step + 1 - gap, row + 1 - gap, top + gap)
            axes.imshow(pictures[row, step].numpy(), extent=place, interpolation="nearest",
                        aspect="auto")  # fmt: skip
            text = f"{float(values_ZS[row, step]):+.2f}"
            axes.text(step + 0.5, top - 0.02, text, ha="center", va="bottom", fontsize=7)
    axes.set(xlim=(0, steps), ylim=(rows, 0))
    figure.text(0.5, (1 + share) / 2, caption, ha="center", va="center", fontsize=10)
    return figure


def _traversal_of_vectors(x_ZSD: Tensor, values_ZS: Tensor, caption: str) -> Figure:
    rows, steps = values_ZS.shape
    figure = Figure(figsize=(7, 1.3 * rows + TITLE_INCHES), layout="constrained")
    colours = matplotlib.colormaps["viridis"](torch.linspace(0, 1, steps).numpy())
    for row, axes in enumerate(figure.subplots(rows, 1, squeeze=False)[:, 0]):
        for step in range(steps):
            axes.plot(x_ZSD[row, step].numpy(), color=colours[step], linewidth=0.9)
        low, high = float(values_ZS[row, 0]), float(values_ZS[row, -1])
        axes.set_ylabel(f"$z_{{{row + 1}}}$", rotation=0, labelpad=12)
        axes.set_title(f"{low:+.2f} (dark) to {high:+.2f} (light)", fontsize=7, loc="right")
        axes.tick_params(labelsize=6)
    figure.suptitle(caption, fontsize=10)
    return figure
