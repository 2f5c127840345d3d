"""Write the digits that the package ships, a balanced subset of MNIST, as WebDataset shards.

    python tools/make_builtin_digits.py MNIST_RAW_FOLDER aae_dist/data/builtin/digits

MNIST_RAW_FOLDER holds the four original, uncompressed files (train-images-idx3-ubyte and so on).
Training digits come from MNIST's training set, validation digits from its test set: of each class
the first ones, in MNIST's order. The same input gives the same bytes.
"""

import argparse
import gzip
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from webdataset import TarWriter

from aae_dist.data.index.build import build_index

Pixels = NDArray[np.uint8]

SETS = {
    # name: (file prefix of MNIST, digits of each class, shards)
    "train": ("train", 800, 8),
    "validation": ("t10k", 200, 2),
}


def first_of_each_class(folder: Path, prefix: str, num_each: int) -> Iterator[tuple[Pixels, int]]:
    """Yield (image uint8 [28, 28], label) in MNIST's order, `num_each` of every class."""
    images = np.fromfile(folder / f"{prefix}-images-idx3-ubyte", np.uint8)[16:].reshape(-1, 28, 28)
    labels = np.fromfile(folder / f"{prefix}-labels-idx1-ubyte", np.uint8)[8:]
    taken = [0] * 10
    for image, label in zip(images, labels.tolist(), strict=True):
        if taken[label] < num_each:
            taken[label] += 1
            yield image, label


def png(image: Pixels) -> bytes:
    """Return the image as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def write_shard(path: Path, samples: list[tuple[Pixels, int]], first: int) -> None:
    """Write samples numbered from `first` on into one .tar.gz without times or owners."""
    plain = io.BytesIO()
    with TarWriter(plain, mtime=0, user="", group="") as tar:
        for number, (image, label) in enumerate(samples, first):
            tar.write({"__key__": f"{number:05d}", "png": png(image), "cls": str(label).encode()})
    path.write_bytes(gzip.compress(plain.getvalue(), 9, mtime=0))


def main() -> None:
    """Write every set and its manifest."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("raw", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    for name, (prefix, num_each, num_shards) in SETS.items():
        samples = list(first_of_each_class(arguments.raw, prefix, num_each))
        folder = arguments.out / name
        folder.mkdir(parents=True, exist_ok=True)
        size = len(samples) // num_shards
        for shard in range(num_shards):
            chosen = samples[shard * size : (shard + 1) * size]
            write_shard(folder / f"{shard:03d}.tar.gz", chosen, shard * size)
        build_index(str(folder))


if __name__ == "__main__":
    main()
