"""Decoders in C that free the GIL while they work: torchvision's for PNG, libjpeg-turbo for JPEG.

simplejpeg calls libjpeg-turbo with the same settings as torchvision does, so pixels are equal, and
takes 23 us for a colour image of 64 x 64 where a call of torchvision takes 30.
"""

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aae_dist.data.png_check import ProvenPng
from aae_dist.data.png_stack import stacked, stacks

_GREY, _COLOUR = 1, 3
"""torchvision's ImageReadMode numbers; they happen to equal the channels."""


def decode_fast(
    files: Mapping[int, ProvenPng | bytes | None], channels: int
) -> dict[int, NDArray[np.uint8]]:
    """Return the images of PNG and JPEG files, uint8 [C, H, W] each.

    Args:
        files: Number -> what the proof of a PNG returned, or a JPEG's bytes; None is left out.
        channels: 1 for grey, 3 for colour.

    Returns:
        Number -> image, of those that can be decoded.
    """
    pngs = {n: file for n, file in files.items() if isinstance(file, ProvenPng)}
    jpegs = {n: file for n, file in files.items() if isinstance(file, bytes)}
    return dict([*_decode_pngs(pngs, channels), *_decode_jpegs(jpegs, channels)])


def _decode_jpegs(
    files: Mapping[int, bytes], channels: int
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    if not files:
        return
    from simplejpeg import decode_jpeg  # most data sets never need it

    colours = "GRAY" if channels == 1 else "RGB"
    for number, data in files.items():
        try:
            image = decode_jpeg(data, colours)
        except (ValueError, MemoryError, RuntimeError):
            continue
        yield number, image.transpose(2, 0, 1)


def _decode_pngs(
    images: Mapping[int, ProvenPng], channels: int
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    for stack in stacks(images):
        tall = _decode_png(stacked([images[number] for number in stack]), channels)
        if tall is None:
            continue
        pixels, top = tall.numpy(), 0
        if pixels.dtype != np.uint8:  # 16 bits a channel come as uint16
            pixels = (pixels >> 8).astype(np.uint8)
        for number in stack:
            bottom = top + images[number].height
            yield number, pixels[:, top:bottom]
            top = bottom + 1


def _decode_png(file: bytearray, channels: int) -> Tensor | None:
    _load_decoders()
    mode = _GREY if channels == 1 else _COLOUR
    decode: Callable[..., Tensor] = torch.ops.image.decode_png
    try:
        return decode(torch.frombuffer(file, dtype=torch.uint8), mode, False)
    except RuntimeError:
        return None


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
