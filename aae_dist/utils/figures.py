"""Figures as PNG bytes, without pyplot: nothing is global, and any thread may draw."""

import io

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

DOTS_PER_INCH = 150


def figure_to_png(figure: Figure, dots_per_inch: int = DOTS_PER_INCH) -> bytes:
    """Render a figure."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(buffer, format="png", dpi=dots_per_inch)
    return buffer.getvalue()
