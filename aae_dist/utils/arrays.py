"""NumPy arrays and figures: numbers spread over a range, and files as bytes.

Figures are rendered without pyplot: nothing is global, and any thread may draw.
"""

import io
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def stratified(most: int, total: int) -> np.typing.NDArray[np.int64]:
    """Return at most `most` of the numbers 0 to `total` - 1, ascending, always the same.

    One of each of as many stretches, at a place that is drawn: at equal distances they would fall
    in step with data that has a period. MNIST's sources take turns, of which every second digit
    shows only one. The first one is 0.
    """
    count = min(most, total)
    bounds = np.arange(count + 1, dtype=np.int64) * total // max(count, 1)
    places = np.random.default_rng(0).random(count)
    places[:1] = 0.0
    return bounds[:-1] + (places * np.diff(bounds)).astype(np.int64)


def npy_bytes(array: np.typing.NDArray[Any], dtype: str = "<f4") -> bytes:
    """Return the array as a .npy file, by default of little-endian float32."""
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array, dtype), allow_pickle=False)
    return buffer.getvalue()


def png_bytes(image: np.typing.NDArray[np.uint8]) -> bytes:
    """Return the PNG of a grey image [H, W] or a colour image [H, W, 3]."""
    from PIL import Image  # most users of this module need no images

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


DOTS_PER_INCH = 150


def figure_to_png(figure: "Figure", dots_per_inch: int = DOTS_PER_INCH) -> bytes:
    """Render a figure."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # takes seconds

    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(buffer, format="png", dpi=dots_per_inch)
    return buffer.getvalue()
