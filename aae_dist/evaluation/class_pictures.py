"""Pictures of classes: samples, a row per class and a column per style; codes by cluster."""

import numpy as np

from aae_dist.evaluation.evaluator import EvaluationImages
from aae_dist.evaluation.pictures import as_pictures, latent_codes, range_of, show, strip
from aae_dist.evaluation.vectors import is_lines, vectors
from aae_dist.utils.arrays import figure_to_png

TITLE = "decoded samples, one row per class of the prior"


def draw_classes(shown: EvaluationImages, caption: str = "") -> dict[str, bytes]:
    """Return the PNGs `classes`, of a prior with some, and `clusters`, of codes with a class part.

    `clusters` has the codes of `latent_codes` in the colours of their most likely classes.
    """
    pictures = _draw_grid(shown, caption)
    if shown.clusters is not None:
        coloured = (shown.codes, shown.clusters, shown.prior_samples, caption)
        pictures["clusters"] = figure_to_png(latent_codes(*coloured, colour="cluster"))
    return pictures


def _draw_grid(shown: EvaluationImages, caption: str) -> dict[str, bytes]:
    grid_KSCHW = shown.class_grid
    if grid_KSCHW is None:
        return {}
    if is_lines(grid_KSCHW[0]):
        return {"classes": figure_to_png(vectors(grid_KSCHW.flatten(0, 1), None, caption))}
    rows = [strip(as_pictures(row, range_of(shown.originals))) for row in grid_KSCHW]
    # Only a code in parts has a style of its own, which the rows can share.
    has_style = shown.prior is not None and len(shown.prior.parts) > 1
    title = f"{TITLE}, one column per style" if has_style else TITLE
    return {"classes": figure_to_png(show(np.concatenate(rows), title, caption))}
