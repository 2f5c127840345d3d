"""Image files to uint8 arrays of one size: PNG, JPEG and WebP, cropped, scaled, or refused.

torchvision decodes PNG, libjpeg-turbo (simplejpeg) JPEG, and Pillow everything that they do not
take; all free the GIL where possible. simplejpeg calls libjpeg-turbo with the same settings as
torchvision, so pixels are equal, and takes 23 us per colour image of 64 x 64 where a call of
torchvision takes 30.

Pillow scales with fixed-point arithmetic in one thread, so pixels are equal on every machine and
with any number of threads, and equal to what `aae-dist data pack --image-size` writes.
"""

import importlib.util
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from aae_dist.config.sections.run import Data
from aae_dist.data.bad_samples import UnusedKind
from aae_dist.data.decode import formats
from aae_dist.data.memory import MemoryBudget
from aae_dist.errors import AaeDistError, SampleError, ShardError

Shape = tuple[int, ...]  # channels, height, width; of arrays also (C, L) or (C, D, H, W)
FILTER = Image.Resampling.LANCZOS
"""Averages all pixels that fall into a new one, so shrinking makes no moiré."""


@dataclass(frozen=True)
class Resize:
    """How images are brought to the size of a run (see `data.resize` and `data.crop_size`)."""

    how: Literal["cover", "stretch", "crop", "none"]
    crop_size: int | None
    is_settled: bool = False  # `none` is configured, or a trained run's: sizes change nothing

    @classmethod
    def from_settings(cls, settings: Data) -> "Resize":
        how = settings.resize or ("cover" if settings.image_size else "none")
        return cls(how, settings.crop_size, is_settled=settings.resize == "none")

    def cropped(self, height: int, width: int) -> tuple[int, int]:
        """Return the size of an image cropped to `crop_size`; SampleError if it is smaller."""
        size = self.crop_size
        if size is None:
            return height, width
        if size > min(height, width):
            raise _wrong_size(height, width, f"data.crop_size={size} needs larger ones")
        return size, size

    def check(self, height: int, width: int, wanted: tuple[int, int]) -> None:
        """Raise SampleError, before it is decoded, if this image cannot become (H, W) `wanted`."""
        inner = self.cropped(height, width)
        if inner == wanted or self.how in ("cover", "stretch"):
            return
        if self.how == "none":
            key = "data.resize=cover" if self.is_settled else "data.image_size"
            raise _wrong_size(
                height, width, f"wanted {wanted[0]} x {wanted[1]}; give {key} to bring all images "
                "to one size"
            )  # fmt: skip
        if inner[0] < wanted[0] or inner[1] < wanted[1]:
            raise _wrong_size(
                height, width, f"data.resize=crop cuts {wanted[0]} x {wanted[1]} from larger ones; "
                "use data.resize=cover"
            )  # fmt: skip

    def apply(self, image: NDArray[np.uint8], wanted: tuple[int, int]) -> NDArray[np.uint8]:
        """Return a checked image [C, H, W] at the (H, W) `wanted`."""
        image = _centre(image, self.cropped(*image.shape[1:]))
        if image.shape[1:] == wanted:
            return image
        if self.how == "crop":
            return _centre(image, wanted)
        return scaled(image, wanted, cover=self.how == "cover")


def scaled(image: NDArray[np.uint8], wanted: tuple[int, int], *, cover: bool) -> NDArray[np.uint8]:
    """Return [C, H, W], C 1 or 3, at another size: stretched, or with `cover` cut to its shape."""
    plain = Image.fromarray(
        image[0] if len(image) == 1 else np.ascontiguousarray(image.transpose(1, 2, 0))
    )
    size = (wanted[1], wanted[0])
    done = ImageOps.fit(plain, size, FILTER) if cover else plain.resize(size, FILTER)
    pixels = np.array(done).reshape(*wanted, len(image))
    return pixels.transpose(2, 0, 1)


def _centre(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    top, left = ((have - want) // 2 for have, want in zip(image.shape[1:], size, strict=True))
    return image[:, top : top + size[0], left : left + size[1]]


def _wrong_size(height: int, width: int, problem: str) -> SampleError:
    return SampleError(f"the image is {height} x {width} pixels, {problem}", reason="size")


Result = TypeVar("Result")
Pixels = NDArray[np.uint8]
Bad = dict[int, ShardError | SampleError]  # row of a batch -> why its sample cannot be used

Note = Callable[[int, UnusedKind, str], None]  # row of a batch, what is left out, why


def ignore(number: int, kind: UnusedKind, detail: str) -> None:
    """Take a note, and forget it."""


Begin = Callable[[Sequence[int]], None]  # rows that are decoded next, the largest image first


def ignore_group(numbers: Sequence[int]) -> None:
    """Take rows that are decoded next, and forget them."""


NO_RESIZE = Resize("none", None)
_MAX_PIXELS = 1 << 26
_MAX_SLOW_PIXELS = 1 << 25
"""Pixels of what takes two to three times the work or memory: a WebP file (34 bytes may have as
many), PNG of 16 bits, JPEG of four components, and JPEG that libjpeg-turbo calls damaged, so that
Pillow decodes it again."""
_LARGE_IMAGES = MemoryBudget(1 << 30)
"""For decoding images that are a group of their own: without it each thread might hold one."""
_WORK_BYTES_PER_PIXEL = 12  # measured: coefficients of a progressive JPEG, colours, their copies
_PIXELS_PER_GROUP = 1 << 22
"""Pixels decoded before the first image is resized: 12 MiB of colour per thread. One image may have
more."""
_GREY, _COLOUR = 1, 3  # torchvision's ImageReadMode numbers; they happen to equal the channels


def decode_images(
    rows: NDArray[np.uint8],
    files: Mapping[int, bytes],
    resize: Resize,
    bad: Bad,
    note: Note = ignore,
    begin: Begin = ignore_group,
) -> None:
    """Decode images by row into rows of a batch, uint8 [n, C, H, W]; the errors go to `bad`.

    Grey and colour are converted to C channels. `note` takes what is left out, `begin` the rows
    that are decoded together. Errors lack the sample's name. Each step is done for all images
    before the next step: the code of one step stays in the CPU's caches, which makes small PNG 2.3
    times and JPEG 1.6 times as fast (32 images at once).
    """
    shape: Shape = rows.shape[1:]  # type: ignore[assignment]
    headers = map_collecting_errors(partial(_fitting_header, files, shape, resize), files, bad)
    for n, header in headers.items():
        if header.channels > shape[0]:
            note(n, "colour", "")
        for kind in header.unused:
            note(n, kind, "")
    sizes = {n: header.height * header.width for n, header in headers.items()}
    for group in batch_by_size(sizes, _PIXELS_PER_GROUP):
        begin(sorted(group, key=sizes.__getitem__, reverse=True))
        pixels = sum(sizes[n] for n in group)
        is_large = pixels > _PIXELS_PER_GROUP
        memory = (
            _LARGE_IMAGES.reserve(pixels * _WORK_BYTES_PER_PIXEL) if is_large else nullcontext()
        )
        with memory:
            _decode_group(rows, files, headers, group, resize, bad, note)


def _decode_group(
    rows: NDArray[np.uint8],
    files: Mapping[int, bytes],
    headers: Mapping[int, formats.ImageHeader],
    group: Sequence[int],
    resize: Resize,
    bad: Bad,
    note: Note,
) -> None:
    shape: Shape = rows.shape[1:]  # type: ignore[assignment]
    # Validate PNG files: libpng's errors would end the process.
    pngs = [n for n in group if headers[n].format == "PNG"]
    valid = map_collecting_errors(lambda n: formats.validate_png(files[n]), pngs, bad)
    # Pillow converts CMYK to RGB as torchvision did; simplejpeg rounds otherwise, by up to 2.
    jpegs = [n for n in group if headers[n].format == "JPEG" and not headers[n].is_cmyk]
    decoded = decode_pngs(valid, shape[0]) | decode_jpegs(files, jpegs, shape[0])
    # Decode the rest with Pillow, turn upright and resize.
    finish = partial(_finish, files, headers, decoded, shape, resize)
    good = [n for n in group if n not in bad]
    for n, image in map_collecting_errors(finish, good, bad).items():
        rows[n][:] = image
        if "alpha" in headers[n].unused and image.min() == image.max():
            note(n, "flat", "")


def decode_image(
    data: bytes, shape: Shape | None = None, resize: Resize = NO_RESIZE, note: Note = ignore
) -> Pixels:
    """Return one image as uint8 [C, H, W]; shape None takes the image's own.

    Raises SampleError, without the sample's name, if the bytes are no PNG, JPEG or WebP file, are
    damaged, or of a size that does not become `shape`.
    """
    if shape is None:
        header = checked_header(data)
        shape = (header.channels, header.height, header.width)
    rows: Pixels = np.empty((1, *shape), np.uint8)
    bad: Bad = {}
    decode_images(rows, {0: data}, resize, bad, note)
    for error in bad.values():
        raise error
    image: Pixels = rows[0]
    return image


def checked_header(data: bytes) -> formats.ImageHeader:
    """Return the image's header; SampleError if it is no PNG, JPEG or WebP of a sane size."""
    header = formats.read_header(data)
    if header is None:
        raise _damaged(f"not a PNG, JPEG or WebP image (starts with {data[:8]!r})")
    is_slow = header.format == "WEBP" or header.is_cmyk or "depth" in header.unused
    most = _MAX_SLOW_PIXELS if is_slow else _MAX_PIXELS
    if not 0 < header.height * header.width <= most:
        raise SampleError(
            f"{header.height} x {header.width} pixels; at most {most} are read",
            reason="size",
        )
    if header.format == "JPEG":
        formats.check_scans(data, header)
    return header


def map_collecting_errors(
    step: Callable[[int], Result], numbers: Iterable[int], bad: Bad
) -> dict[int, Result]:
    """Return `step(number)` by number; the errors of those it fails for go to `bad`.

    So does any other error: what a decoder raises is decided by a file's bytes, and must not end
    the run on all ranks. Errors of ours that are not about one sample or shard are raised.
    """
    done = {}
    for number in numbers:
        try:
            done[number] = step(number)
        except (ShardError, SampleError) as error:
            bad[number] = error.with_traceback(None)
        except AaeDistError:
            raise
        except Exception as error:  # noqa: BLE001 - see above
            bad[number] = unexpected(error)
    return done


def unexpected(error: Exception) -> SampleError:
    """Return the error of a sample whose decoder raised something that it should not."""
    what = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return SampleError(f"its decoder failed ({what:.200})", reason="damaged")


def batch_by_size(sizes: Mapping[int, int], most: int) -> Iterator[list[int]]:
    """Yield numbers in groups whose sizes sum up to at most `most`, at least one in each."""
    group: list[int] = []
    total = 0
    for number, size in sizes.items():
        total += size
        if group and total > most:
            yield group
            group, total = [], size
        group.append(number)
    yield group


def decode_jpegs(
    files: Mapping[int, bytes], numbers: Sequence[int], channels: int
) -> dict[int, Pixels]:
    """Return images of JPEG files, uint8 [C, H, W]; those that cannot be decoded are left out."""
    decoded: dict[int, Pixels] = {}
    if not numbers:
        return decoded
    from simplejpeg import decode_jpeg  # most data sets never need it

    for number in numbers:
        try:
            image = decode_jpeg(files[number], "GRAY" if channels == 1 else "RGB")
        except Exception:  # noqa: BLE001, S112 - Pillow tries it again, and says what is wrong
            continue
        decoded[number] = image.transpose(2, 0, 1)
    return decoded


def decode_pngs(files: Mapping[int, formats.ValidPng | None], channels: int) -> dict[int, Pixels]:
    """Return images of validated PNG files, uint8 [C, H, W]; None is left out."""
    images = {number: image for number, image in files.items() if image is not None}
    decoded: dict[int, Pixels] = {}
    if not images:
        return decoded
    _load_decoders()
    decode: Callable[..., torch.Tensor] = torch.ops.image.decode_png
    mode = _GREY if channels == 1 else _COLOUR
    for stack in formats.stacks(images):
        # Decode a stack in one call.
        file = torch.frombuffer(formats.stacked([images[n] for n in stack]), dtype=torch.uint8)
        try:
            pixels = decode(file, mode, False).numpy()
        except Exception:  # noqa: BLE001, S112 - Pillow tries them again
            continue
        if pixels.dtype != np.uint8:  # 16 bits per channel come as uint16
            pixels = (pixels >> 8).astype(np.uint8)
        # Cut it into its images; a row of zeros lies between two.
        top = 0
        for number in stack:
            bottom = top + images[number].height
            decoded[number] = pixels[:, top:bottom]
            top = bottom + 1
    return decoded


@cache
def _load_decoders() -> None:
    """Register torchvision's decoders with torch.

    Only their library is loaded: `import torchvision` takes seconds more, for models and transforms
    that are not used here.
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


def _fitting_header(
    files: Mapping[int, bytes], shape: Shape, resize: Resize, number: int
) -> formats.ImageHeader:
    header = checked_header(files[number])
    resize.check(header.height, header.width, (shape[1], shape[2]))
    return header


def _finish(
    files: Mapping[int, bytes],
    headers: Mapping[int, formats.ImageHeader],
    decoded: Mapping[int, Pixels],
    shape: Shape,
    resize: Resize,
    number: int,
) -> Pixels:
    """Return the image upright and of the wanted shape, decoded by Pillow if it is not yet."""
    header, image = headers[number], decoded.get(number)
    if image is None:
        is_second = header.format == "JPEG" and not header.is_cmyk
        if is_second and header.height * header.width > _MAX_SLOW_PIXELS:
            raise _damaged("the JPEG image is damaged, and too large to be decoded in part")
        image = _decode_with_pillow(files[number], header, shape[0])
    image = formats.apply_orientation(image, header.orientation)
    if image.shape != (shape[0], header.height, header.width):
        raise _damaged(f"the image decodes to shape {image.shape}; it is damaged")
    return image if image.shape == shape else resize.apply(image, (shape[1], shape[2]))


def _decode_with_pillow(data: bytes, header: formats.ImageHeader, channels: int) -> Pixels:
    # Imported here: most data sets never need it.
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=(header.format,)) as opened:
            picture: Image.Image = opened
            if channels == 1:  # a JPEG's own grey, as libjpeg-turbo gives it: no conversion
                opened.draft("L", None)
            if opened.mode.startswith("I;16"):  # Pillow would clip instead of scale
                picture = Image.fromarray((np.array(opened) >> 8).astype(np.uint8))
            image = np.array(picture.convert("L" if channels == 1 else "RGB"))
    except Exception as error:  # noqa: BLE001 - Pillow's parsers raise what the bytes make them
        raise _damaged(f"the {header.format} image is damaged ({str(error)!r:.80})") from None
    return image.reshape(*image.shape[:2], channels).transpose(2, 0, 1)


def _damaged(message: str) -> SampleError:
    return SampleError(message, reason="image")
