"""The picture of a prior with classes: a row per class; of a code in parts, a column per style."""

import numpy as np

from aae_dist.evaluation.evaluator import EvaluationImages
from aae_dist.evaluation.pictures import as_pictures, range_of, show, strip
from aae_dist.evaluation.vectors import is_lines, vectors
from aae_dist.utils.arrays import figure_to_png

TITLE = "decoded samples of the prior, one row per class"


def draw_classes(shown: EvaluationImages, caption: str = "") -> dict[str, bytes]:
    """Return the PNG `classes`; nothing for codes without classes."""
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
