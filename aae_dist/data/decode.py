"""Bytes of a sample to numbers: an allow-list of image formats, and integer labels."""

import importlib.util
import io
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from aae_dist.data.image_header import ImageHeader, read_header
from aae_dist.errors import DataError

Shape = tuple[int, int, int]
"""Channels, height, width."""

_MAX_PIXELS = 1 << 26
_GREY, _COLOUR = 1, 3
"""torchvision's ImageReadMode numbers; they happen to equal the channels."""
_LABEL = re.compile(rb"\s*(-?[0-9]{1,18})\s*")


def decode_image(data: bytes, shape: Shape | None = None) -> Tensor:
    """Return the image as uint8 [C, H, W].

    Args:
        data: A PNG, JPEG or WebP file.
        shape: Wanted shape; grey and colour are converted to its channels. None takes the image's.

    Raises:
        DataError: The bytes are none of these formats, are damaged, or have another size than
            `shape`. The message lacks the sample's name.
    """
    header = checked_header(data)
    channels = header.channels if shape is None else shape[0]
    if shape is not None and (header.height, header.width) != shape[1:]:
        raise DataError(
            f"the image is {header.height} x {header.width} pixels, wanted {shape[1]} x {shape[2]}"
            "; bring all images to one size, for example with aae-dist data pack folder"
        )
    image = _decode_fast(data, header, channels)
    if image is None:
        image = _decode_with_pillow(data, header, channels)
    if image.shape != (channels, header.height, header.width):
        raise DataError(f"the image decodes to shape {tuple(image.shape)}; it is damaged")
    return image


def checked_header(data: bytes) -> ImageHeader:
    """Return the image's header; DataError if it is no PNG, JPEG or WebP of a sane size."""
    header = read_header(data)
    if header is None:
        raise DataError(f"not a PNG, JPEG or WebP image (starts with {data[:8]!r})")
    if not 0 < header.height * header.width <= _MAX_PIXELS:
        raise DataError(f"{header.height} x {header.width} pixels; at most {_MAX_PIXELS} are read")
    return header


def parse_label(data: bytes) -> int:
    """Return the integer that `data` spells in ASCII; DataError if it does not."""
    match = _LABEL.fullmatch(data)
    if match is None:
        raise DataError(f"the label is not an integer (got {data[:40]!r})")
    return int(match[1])


def _decode_fast(data: bytes, header: ImageHeader, channels: int) -> Tensor | None:
    """Decode by torchvision's C++ decoders, which free the GIL; None where they cannot."""
    if header.format == "WEBP":
        return None
    _load_decoders()
    decode = torch.ops.image.decode_png if header.format == "PNG" else torch.ops.image.decode_jpeg
    mode = _GREY if channels == 1 else _COLOUR
    try:
        image: Tensor = decode(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode, False)
    except RuntimeError:
        return None
    # PNG with 16 bits a channel comes as uint16.
    return image if image.dtype == torch.uint8 else (image.int() >> 8).to(torch.uint8)


@cache
def _load_decoders() -> None:
    """Register torchvision's decoders with torch.

    Only their library is loaded: `import torchvision` takes seconds more, for models and transforms
    that nobody here uses.
    """
    found = importlib.util.find_spec("torchvision")
    folders = found.submodule_search_locations if found else None
    libraries = [path for folder in folders or () for path in Path(folder).glob("image*.so")]
    load: Callable[[str], None] = torch.ops.load_library
    if len(libraries) == 1:
        try:
            return load(str(libraries[0]))
        except OSError:
            pass
    importlib.import_module("torchvision.io")
    return None


def _decode_with_pillow(data: bytes, header: ImageHeader, channels: int) -> Tensor:
    # Imported here: most data sets never need it.
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=(header.format,)) as opened:
            image = np.array(opened.convert("L" if channels == 1 else "RGB"))
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"the {header.format} image is damaged ({error})") from None
    return torch.from_numpy(image.reshape(*image.shape[:2], channels)).permute(2, 0, 1)
