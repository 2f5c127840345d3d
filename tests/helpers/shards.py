"""Shards that tests write: real PNG digits are not needed to prove order, counts and damage."""

import io
from collections.abc import Collection, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image
from webdataset import TarWriter

SIDE = 4


def image_of(number: int, channels: int = 1) -> np.ndarray:
    """Return a SIDE x SIDE image, uint8 [H, W] or [H, W, 3], that tells samples apart."""
    shape = (SIDE, SIDE) if channels == 1 else (SIDE, SIDE, channels)
    return np.random.default_rng(number).integers(0, 256, shape, np.uint8)


def encoded(image: np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    """Return the image as a file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, **options)
    return buffer.getvalue()


def sample(number: int) -> dict[str, str | bytes]:
    """Return sample `number` with a png and a cls."""
    label = str(number % 10).encode()
    return {"__key__": f"{number:06d}", "png": encoded(image_of(number)), "cls": label}


def write_shards(
    folder: Path, counts: Sequence[int], suffix: str = ".tar", bad: Collection[int] = ()
) -> list[Path]:
    """Write one shard for each count, with samples numbered through; return their paths.

    Samples whose number is in `bad` hold no image.
    """
    folder.mkdir(parents=True, exist_ok=True)
    numbers: Iterator[int] = iter(range(sum(counts)))
    paths = []
    for shard, count in enumerate(counts):
        paths.append(folder / f"{shard:03d}{suffix}")
        with TarWriter(str(paths[-1])) as writer:
            for number in islice(numbers, count):
                fields = sample(number)
                writer.write({**fields, "png": b"no image"} if number in bad else fields)
    return paths
