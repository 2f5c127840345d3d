"""Images written to a local file in the format that its suffix says."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import save_file
from torch import Tensor

from aae_dist.errors import ConfigError

Images = np.ndarray[tuple[int, int, int, int], np.dtype[np.float32]]
"""[N, C, H, W], pixels in [0, 1]."""


def is_file(out: str) -> bool:
    """Return whether `--out` means a file of images, of a kind that we write or of another."""
    suffix = Path(out).suffix.lower()
    return suffix in WRITERS or suffix in Image.registered_extensions()


def checked_path(out: str) -> Path:
    """Return the path of `--out`; ConfigError unless it is local with a suffix of `WRITERS`."""
    path = Path(out).expanduser()
    if path.suffix.lower() not in WRITERS:
        known = ", ".join(WRITERS)
        raise ConfigError(f"--out {out}: the suffix should be one of {known}, got {path.suffix!r}")
    if "://" in out:
        raise ConfigError(f"--out {out}: should be a local file")
    return path


def write_images(path: Path, images: Tensor, columns: int | None = None) -> None:
    """Write images [N, C, H, W] with pixels in [0, 1].

    Args:
        path: where to; its folder is made.
        images: of any device and float type.
        columns: of the grid in a .png; by default it is square.

    Raises:
        ConfigError: the file cannot be written.
    """
    array: Images = images.detach().to("cpu").float().numpy()
    if path.suffix.lower() == ".png":
        write_file(path, lambda: _write_png(path, array, columns))
    else:
        write_file(path, lambda: WRITERS[path.suffix.lower()](path, array))


def write_file(path: Path, write: Callable[[], object]) -> None:
    """Make the folder of `path` and write; ConfigError says why it cannot be done."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write()
    except OSError as error:
        raise ConfigError(f"--out {path}: cannot be written ({error.strerror})") from None


def grid(
    images: Images, columns: int | None = None
) -> np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]:
    """Return the images side by side as uint8 [H, W, C], a white pixel between them.

    Of other than one or three channels, which a picture cannot have, the first is shown.
    """
    images = images if images.shape[1] == 3 else images[:, :1]
    num, channels, height, width = images.shape
    columns = columns or math.ceil(math.sqrt(num))
    rows = math.ceil(num / columns)
    canvas = np.full((rows * (height + 1) - 1, columns * (width + 1) - 1, channels), 255, np.uint8)
    for index, image in enumerate(images):
        top, left = index // columns * (height + 1), index % columns * (width + 1)
        pixels = (image.clip(0.0, 1.0) * 255).round().astype(np.uint8)
        canvas[top : top + height, left : left + width] = pixels.transpose(1, 2, 0)
    return canvas


def _write_png(path: Path, images: Images, columns: int | None = None) -> None:
    pixels = grid(images, columns)
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(path)


def _write_npy(path: Path, images: Images) -> None:
    np.save(path, images)


def _write_npz(path: Path, images: Images) -> None:
    np.savez_compressed(path, images=images)


def _write_safetensors(path: Path, images: Images) -> None:
    save_file({"images": np.ascontiguousarray(images)}, path)


WRITERS: Mapping[str, Callable[[Path, Images], None]] = {
    ".png": _write_png,
    ".npy": _write_npy,
    ".npz": _write_npz,
    ".safetensors": _write_safetensors,
}
