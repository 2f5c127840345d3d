"""`aae-dist sample`: images decoded from a trained run's prior."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.numpy import save_file

from aae_dist import load_run
from aae_dist.errors import ConfigError

Images = np.ndarray[tuple[int, int, int, int], np.dtype[np.float32]]
"""[N, C, H, W], pixels in [0, 1]."""


def sample(uri: str, num: int, out: str, seed: int = 0) -> int:
    """Write `num` images, decoded from samples of the prior of the run at `uri`, to a file.

    Args:
        uri: the run's folder.
        num: images to draw.
        out: local file; its suffix says what is written (see `WRITERS`).
        seed: the same seed draws the same samples of the prior.

    Raises:
        ConfigError: the suffix of `out` is not one that we write, or its folder cannot be made.
        CheckpointError: the folder holds no checkpoint that verifies.
    """
    path = Path(out).expanduser()
    write = WRITERS.get(path.suffix.lower())
    if write is None:
        known = ", ".join(WRITERS)
        raise ConfigError(f"--out {out}: the suffix should be one of {known}, got {path.suffix!r}")
    run = load_run(uri)
    # As many as in training: matrix products round differently with another number of threads.
    torch.set_num_threads(run.config.launch.cpus_per_worker)
    images = run.sample(num, generator=torch.Generator().manual_seed(seed))
    array: Images = images.detach().to("cpu", torch.float32).numpy()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, array)
    except OSError as error:
        raise ConfigError(f"--out {out}: cannot be written ({error.strerror})") from None
    print(f"{num} images of step {run.step:,} written to {path}")
    return 0


def grid(images: Images) -> np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]:
    """Return the images side by side in a square as uint8 [H, W, C], a white pixel between them."""
    num, channels, height, width = images.shape
    columns = math.ceil(math.sqrt(num))
    rows = math.ceil(num / columns)
    canvas = np.full((rows * (height + 1) - 1, columns * (width + 1) - 1, channels), 255, np.uint8)
    for index, image in enumerate(images):
        top, left = index // columns * (height + 1), index % columns * (width + 1)
        pixels = (image.clip(0.0, 1.0) * 255).round().astype(np.uint8)
        canvas[top : top + height, left : left + width] = pixels.transpose(1, 2, 0)
    return canvas


def _write_png(path: Path, images: Images) -> None:
    pixels = grid(images)
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
