"""Write the digits that the package ships, a balanced subset of MNIST, as WebDataset shards.

    python tools/make_builtin_digits.py MNIST_RAW_FOLDER aae_dist/data/builtin/digits

MNIST_RAW_FOLDER holds the four original, uncompressed files (train-images-idx3-ubyte and so on).
Training digits come from MNIST's training set: of each class the first ones, in MNIST's order.
Validation digits come from its test set: of each class those that a seed draws. The test set has
the digits of one source (SD-3) first and those of another (SD-1) second, which are harder, and the
training set has them in turns. The same input gives the same bytes.
"""

import argparse
import gzip
import io
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from webdataset import TarWriter

from aae_dist.data.index.build import build_index

Pixels = NDArray[np.uint8]

SETS = {
    # name: (file prefix of MNIST, digits of each class, shards, whether they are drawn)
    "train": ("train", 800, 8, False),
    "validation": ("t10k", 200, 2, True),
}


def of_each_class(
    folder: Path, prefix: str, num_each: int, drawn: bool
) -> Iterator[tuple[Pixels, int]]:
    """Yield (image uint8 [28, 28], label), `num_each` of every class, in MNIST's order or drawn."""
    images = np.fromfile(folder / f"{prefix}-images-idx3-ubyte", np.uint8)[16:].reshape(-1, 28, 28)
    labels = np.fromfile(folder / f"{prefix}-labels-idx1-ubyte", np.uint8)[8:]
    numbers = np.arange(len(labels))
    if drawn:
        numbers = np.random.default_rng(0).permutation(numbers)
    taken = [0] * 10
    for image, label in zip(images[numbers], labels[numbers].tolist(), strict=True):
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
    with tempfile.TemporaryDirectory() as temporary:  # a folder of the package is never indexed
        for name, (prefix, num_each, num_shards, drawn) in SETS.items():
            samples = list(of_each_class(arguments.raw, prefix, num_each, drawn))
            folder = Path(temporary) / "digits" / name  # copied with its mode: readable by all
            folder.mkdir(parents=True)
            size = len(samples) // num_shards
            for shard in range(num_shards):
                chosen = samples[shard * size : (shard + 1) * size]
                write_shard(folder / f"{shard:03d}.tar.gz", chosen, shard * size)
            build_index(str(folder))
        shutil.copytree(Path(temporary) / "digits", arguments.out, dirs_exist_ok=True)


if __name__ == "__main__":
    main()
