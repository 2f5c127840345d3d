"""Pictures of one evaluation, as PNG bytes: images as a grid, vectors as lines.

Figures are made without pyplot, so nothing is global and any thread may draw.
"""

from collections.abc import Callable

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from aae_dist.evaluation.evaluator import EvaluationImages
from aae_dist.evaluation.pictures.latent import latent_codes
from aae_dist.utils.arrays import figure_to_png

PAIRS_PER_ROW = 8
GAP = 2
"""Pixels of margin around an image, before enlarging."""
CELL_INCHES = 0.8
PAPER = 1.0
"""White, the colour of margins."""

Array = NDArray[np.float32]
Range = tuple[float, float]
PIXELS: Range = (0.0, 1.0)


def draw_all(shown: EvaluationImages, caption: str = "") -> dict[str, bytes]:
    """Return name -> PNG of every picture that one evaluation gives.

    Args:
        shown: What they show.
        caption: What it is of, say "my-run, step 400"; it stands in every title.
    """
    pictures: dict[str, Callable[[], Figure]] = {
        "reconstructions": lambda: reconstructions(shown.originals, shown.reconstructions, caption),
        "prior_samples": lambda: decoded_samples(
            shown.decoded_prior, caption, range_of(shown.originals)
        ),
        "latent_codes": lambda: latent_codes(
            shown.codes, shown.labels, shown.prior_samples, caption
        ),
    }
    return {name: figure_to_png(draw()) for name, draw in pictures.items()}


def reconstructions(
    originals_kCHW: Tensor, reconstructions_kCHW: Tensor, caption: str = ""
) -> Figure:
    """Show each original, uint8 or floats, with its reconstruction below it.

    Bytes stand for pixels in [0, 1]. Floats are shown in their own range where that is larger, and
    vectors as lines.
    """
    if is_vectors(originals_kCHW):
        title = "originals (black), and over each its reconstruction"
        return lines(originals_kCHW, reconstructions_kCHW, _title(title, caption))
    shown = range_of(originals_kCHW)
    is_bytes = originals_kCHW.dtype == torch.uint8
    top = _as_pictures(originals_kCHW.float() / (255 if is_bytes else 1), shown)
    bottom = _as_pictures(reconstructions_kCHW, shown)
    rows = []
    for start in range(0, len(top), PAIRS_PER_ROW):
        rows.append(_strip(top[start : start + PAIRS_PER_ROW]))
        rows.append(_strip(bottom[start : start + PAIRS_PER_ROW]))
        rows.append(np.full((2 * GAP, *rows[0].shape[1:]), PAPER, dtype=np.float32))
    title = "originals, and below each its reconstruction"
    return _show(np.concatenate(rows[:-1]), title, caption)


def decoded_samples(images_kCHW: Tensor, caption: str = "", shown: Range = PIXELS) -> Figure:
    """Show images decoded from samples of the prior; `shown` are the values of black and white."""
    if is_vectors(images_kCHW):
        return lines(images_kCHW, None, _title("samples of the prior, decoded", caption))
    images = _as_pictures(images_kCHW, shown)
    starts = range(0, len(images), PAIRS_PER_ROW)
    grid = np.concatenate([_strip(images[start : start + PAIRS_PER_ROW]) for start in starts])
    return _show(grid, "samples of the prior, decoded", caption)


def range_of(originals_kCHW: Tensor) -> Range:
    """Return the values of black and white: 0 and 1, or wider where floats are outside these."""
    if originals_kCHW.dtype == torch.uint8 or not originals_kCHW.numel():
        return PIXELS
    return min(0.0, float(originals_kCHW.min())), max(1.0, float(originals_kCHW.max()))


def _as_pictures(images_kCHW: Tensor, shown: Range) -> Array:
    """Return [k, H, W, 3] in [0, 1]; other than three channels are shown as grey, by the first."""
    low, high = shown
    channels = ((images_kCHW - low) / (high - low)).clamp(0, 1).nan_to_num(0.5).permute(0, 2, 3, 1)
    colour = channels if channels.shape[-1] == 3 else channels[..., :1].expand(-1, -1, -1, 3)
    pictures: Array = colour.float().numpy()
    return pictures


def _strip(images: Array) -> Array:
    """Return up to PAIRS_PER_ROW images side by side, with margins, padded to a full row."""
    missing = PAIRS_PER_ROW - len(images)
    margins = ((0, 0), (GAP, GAP), (GAP, GAP), (0, 0))
    framed = np.pad(images, margins, constant_values=PAPER)
    framed = np.pad(framed, ((0, missing), (0, 0), (0, 0), (0, 0)), constant_values=PAPER)
    return np.concatenate(list(framed), axis=1)


def _show(grid: Array, title: str, caption: str) -> Figure:
    height, width = grid.shape[:2]
    inches = PAIRS_PER_ROW * CELL_INCHES
    title_inches = 0.4
    picture_inches = inches * height / width
    figure = Figure(figsize=(inches, picture_inches + title_inches))
    share = picture_inches / (picture_inches + title_inches)
    axes = figure.add_axes((0, 0, 1, share))
    axes.imshow(grid, interpolation="nearest", aspect="auto", vmin=0, vmax=1)
    axes.set_axis_off()
    text = _title(title, caption)
    figure.text(0.5, (1 + share) / 2, text, ha="center", va="center", fontsize=11)
    return figure


def _title(title: str, caption: str) -> str:
    return f"{caption}: {title}" if caption else title


COLUMNS = 4
PANEL_INCHES = (1.6, 0.9)
TITLE_INCHES = 0.4
ORIGINAL, OTHER = "#000000", "#d55e00"


def is_vectors(samples_kCHW: Tensor) -> bool:
    """Return whether samples are rows of numbers rather than images."""
    return tuple(samples_kCHW.shape[1:3]) == (1, 1)


def lines(samples_k11D: Tensor, others_k11D: Tensor | None, title: str) -> Figure:
    """Draw each sample, and over it what stands at the same place of `others_k11D`.

    Args:
        samples_k11D: vectors, floats or uint8.
        others_k11D: as many, in another colour; None for none.
        title: what the picture shows.
    """
    rows = -(-len(samples_k11D) // COLUMNS)
    width, height = COLUMNS * PANEL_INCHES[0], rows * PANEL_INCHES[1] + TITLE_INCHES
    figure = Figure(figsize=(width, height))
    top = 1 - TITLE_INCHES / height
    figure.subplots_adjust(0.05, 0.2 / rows, 0.99, top, wspace=0.25, hspace=0.35)
    low, high = 0.0, 0.0
    for place, vector in enumerate(samples_k11D):
        axes = figure.add_subplot(rows, COLUMNS, place + 1)
        axes.plot(vector.flatten().numpy(), color=ORIGINAL, linewidth=0.8)
        if others_k11D is not None:
            axes.plot(others_k11D[place].flatten().numpy(), color=OTHER, linewidth=0.8)
        axes.tick_params(labelsize=5)
        low, high = min(low, axes.get_ylim()[0]), max(high, axes.get_ylim()[1])
    for axes in figure.axes:
        axes.set_ylim(low, high)  # one scale, so that panels can be compared
    figure.text(0.5, (1 + top) / 2, title, ha="center", va="center", fontsize=9)
    return figure
