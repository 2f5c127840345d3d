"""Types and helpers that all packed sources share."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from aae_dist.data.decode.images import Resize, checked_header, decode_image
from aae_dist.errors import DataError, SampleError
from aae_dist.utils.arrays import png_bytes

Fields = dict[str, str | bytes]
"""A sample as WebDataset writes it: {"__key__": ..., "png": ..., "cls": ...}."""
Pixels = NDArray[np.uint8]
"""[H, W] grey or [H, W, 3] colour."""

FIELDS = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp"}


@dataclass(frozen=True)
class PackOptions:
    """Options of `pack`."""

    shard_samples: int = 5000
    """Maximum samples per shard."""
    image_size: int | None = None
    """Height and width of the written images, as by `data.image_size`; None keeps them."""
    crop_size: int | None = None
    """Centre square that is cropped before, in pixels."""
    validation_fraction: float = 0.1
    """folder, csv and npy: fraction of the samples in the validation set."""
    seed: int = 0
    """folder, csv and npy: seed of the split and of the order."""
    labels: Path | None = None
    """npy: array of integers, one per row."""

    @property
    def resize(self) -> Resize:
        """How images are brought to `image_size`."""
        return Resize("none" if self.image_size is None else "cover", self.crop_size)

    @property
    def changes_images(self) -> bool:
        """Whether images are scaled or cropped, so that files are written again."""
        return self.image_size is not None or self.crop_size is not None


@dataclass(frozen=True)
class SampleSet:
    """Samples to write; they can be iterated once."""

    num_samples: int
    samples: Iterator[Fields]


@dataclass(frozen=True)
class PackSource:
    """The sets of a source by name, and the names of its classes, if any."""

    sets: dict[str, SampleSet]
    classes: Sequence[str] = field(default=())
    advice: Callable[[], str] = str
    """Returns advice for the user once all samples are written, or an empty text."""


def split(names: Sequence[str], options: PackOptions) -> dict[str, list[int]]:
    """Return the numbers of the samples of each set, in the order to write them.

    The hash of a sample's name decides its set and its place, so that classes are mixed and a new
    sample moves none of the others to the other set. All names differ. Raises DataError if the
    fraction is not in [0, 1), or nothing is left for training.
    """
    fraction = options.validation_fraction
    if not 0 <= fraction < 1:
        raise DataError(f"The validation fraction must be in [0, 1) (got {fraction}).")
    # The seed 0 is no key: splits of earlier versions stay as they are.
    key = options.seed.to_bytes(8, "big") if options.seed else b""
    hashes = [
        blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8, key=key).digest()
        for name in names
    ]
    order = sorted(range(len(names)), key=hashes.__getitem__)
    limit = int(fraction * 2**64).to_bytes(9, "big")[1:]
    num_validation = sum(digest < limit for digest in hashes)
    chosen = {"train": order[num_validation:], "validation": order[:num_validation]}
    if not chosen["train"]:
        raise DataError("No sample is left for training; give more, or a smaller fraction.")
    return {name: numbers for name, numbers in chosen.items() if numbers}


def sets_of(
    numbers: dict[str, list[int]], sample: Callable[[int, int], Fields]
) -> dict[str, SampleSet]:
    """Return the sets whose samples `sample(place in the set, number in the source)` makes."""
    return {
        name: SampleSet(len(chosen), (sample(place, n) for place, n in enumerate(chosen)))
        for name, chosen in numbers.items()
    }


def image_fields(place: int, image: Pixels, label: int | None, options: PackOptions) -> Fields:
    """Return the sample of an image, as PNG; its place in its set becomes the key."""
    fields: Fields = {"__key__": f"{place:08d}", "png": png_bytes(resized(image, options))}
    if label is not None:
        fields["cls"] = str(label).encode()
    return fields


def resized(image: Pixels, options: PackOptions) -> Pixels:
    """Return the image as `data.image_size` and `data.crop_size` would make it."""
    if not options.changes_images:
        return image
    resize, size = options.resize, options.image_size
    height, width = image.shape[:2]
    wanted = (size, size) if size else resize.cropped(height, width)
    resize.check(height, width, wanted)
    planes = image[None] if image.ndim == 2 else image.transpose(2, 0, 1)
    done = resize.apply(planes, wanted)
    return done[0] if image.ndim == 2 else np.ascontiguousarray(done.transpose(1, 2, 0))


def file_fields(
    key: str, data: bytes, name: str, options: PackOptions
) -> tuple[Fields, tuple[int, int]]:
    """Return the sample of an image file, and (height, width) of its image, which is upright.

    The file's bytes are kept unless the options ask for another size. The image is decoded in
    either case, as training decodes it: so the file is proven, and pixels that are scaled here
    equal those that are scaled in training. An error is a DataError that begins with `name`.
    """
    try:
        header, resize = checked_header(data), options.resize
        inner = resize.cropped(header.height, header.width)
        size = (options.image_size, options.image_size) if options.image_size else inner
        image = decode_image(data, (header.channels, *size), resize)
    except SampleError as error:
        if error.reason == "image":
            raise DataError(f"{name}: not a readable image ({error}); remove it.") from None
        raise DataError(f"{name}: {error}.") from None
    if not options.changes_images:
        return {"__key__": key, FIELDS[header.format]: data}, size
    plain = image[0] if header.channels == 1 else np.ascontiguousarray(image.transpose(1, 2, 0))
    return {"__key__": key, "png": png_bytes(plain)}, size


def read_file(path: Path) -> bytes:
    """Return the file's bytes; DataError says why it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot read the file ({error.strerror}).") from None
