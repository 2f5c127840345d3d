"""The picture of a code with classes: one row per class, one column per style."""

import numpy as np

from aae_dist.evaluation.evaluator import EvaluationImages
from aae_dist.evaluation.pictures import as_pictures, range_of, show, strip
from aae_dist.evaluation.vectors import is_vectors, vectors
from aae_dist.utils.arrays import figure_to_png

TITLE = "one row per class, one column per style"


def draw_classes(shown: EvaluationImages, caption: str = "") -> dict[str, bytes]:
    """Return the PNG `classes`; nothing for codes without classes."""
    grid_KSCHW = shown.class_grid
    if grid_KSCHW is None:
        return {}
    if is_vectors(grid_KSCHW[0]):
        return {"classes": figure_to_png(vectors(grid_KSCHW.flatten(0, 1), None, caption))}
    rows = [strip(as_pictures(row, range_of(shown.originals))) for row in grid_KSCHW]
    return {"classes": figure_to_png(show(np.concatenate(rows), TITLE, caption))}
