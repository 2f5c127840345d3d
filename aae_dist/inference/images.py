"""Pictures of a trained run: paths through its latent space, and images written to a local file."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from safetensors.numpy import save_file
from torch import Tensor

from aae_dist.config.run_config import label_rule
from aae_dist.errors import ConfigError
from aae_dist.evaluation.classes import class_part, style_swaps
from aae_dist.inference.trained_run import TrainedRun
from aae_dist.priors import Part
from aae_dist.utils import arrays, text

Images = np.ndarray[tuple[int, ...], np.dtype[np.float32]]
"""[N, C, H, W], pixels in [0, 1]; signals [N, C, L], volumes [N, C, D, H, W]."""


def is_file(out: str) -> bool:
    """Return whether `--out` means a file of images, of a kind that we write or of another."""
    suffix = Path(out).suffix.lower()
    return suffix in WRITERS or suffix in Image.registered_extensions()


def checked_path(out: str) -> Path:
    """Return the path of `--out`; ConfigError unless it is local with a suffix of `WRITERS`."""
    path = Path(out).expanduser()
    if advice := text.unexpanded(out):
        raise ConfigError(f"--out {out}: {advice}")
    if path.suffix.lower() not in WRITERS:
        known = ", ".join(WRITERS)
        raise ConfigError(f"--out {out}: the suffix should be one of {known}, got {path.suffix!r}")
    if "://" in out:
        raise ConfigError(f"--out {out}: should be a local file")
    return path


def write_images(path: Path, images: Tensor, columns: int | None = None) -> None:
    """Write images [N, C, H, W] in [0, 1]; a .png is a grid of `columns`, square by default."""
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

    Of other than one or three channels, which a picture cannot have, the first is shown, and of a
    volume the middle slice.
    """
    images = images if images.shape[1] == 3 else images[:, :1]
    if images.ndim == 5:
        images = images[:, :, images.shape[2] // 2]
    num, channels, height, width = images.shape
    columns = columns or math.ceil(math.sqrt(num))
    rows = math.ceil(num / columns)
    canvas = np.full((rows * (height + 1) - 1, columns * (width + 1) - 1, channels), 255, np.uint8)
    for index, image in enumerate(images):
        top, left = index // columns * (height + 1), index % columns * (width + 1)
        pixels = (image.clip(0.0, 1.0) * 255).round().astype(np.uint8)
        canvas[top : top + height, left : left + width] = pixels.transpose(1, 2, 0)
    return canvas


PICTURE_PIXELS = 720
"""Width that a grid of small images is scaled up to, by a whole factor: pixels stay sharp."""
MAX_FACTOR = 8


def _write_png(path: Path, images: Images, columns: int | None = None) -> None:
    if images.ndim == 3:
        from aae_dist.evaluation.vectors import vectors
        from aae_dist.utils.arrays import figure_to_png

        path.write_bytes(figure_to_png(vectors(torch.from_numpy(images), None)))
        return
    pixels = grid(images, columns)
    factor = min(MAX_FACTOR, max(1, PICTURE_PIXELS // pixels.shape[1]))
    pixels = pixels.repeat(factor, 0).repeat(factor, 1)
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(path)


def write_traversal(path: Path, images: Tensor, codes: Tensor, caption: str) -> None:
    """Write a .png of a traversal: a row per dimension, with its name and the value of each image.

    Args:
        path: the file.
        images: decoded, (Z * S, C, H, W), in [0, 1], row by row.
        codes: (Z, S, Z); in row i dimension i moves.
        caption: the picture's title.
    """
    from aae_dist.evaluation.vectors import draw_traversal
    from aae_dist.utils.arrays import figure_to_png

    values = torch.stack([codes[n, :, n] for n in range(len(codes))])
    pictures = images.detach().float().cpu().unflatten(0, values.shape)
    png = figure_to_png(draw_traversal(pictures, values, caption))
    write_file(path, lambda: path.write_bytes(png))


WRITERS: Mapping[str, Callable[[Path, Images], None]] = {
    ".png": _write_png,
    ".npy": np.save,
    ".npz": lambda path, images: np.savez_compressed(path, images=images),
    ".safetensors": lambda path, images: save_file({"images": np.ascontiguousarray(images)}, path),
}


CODES_PER_NAMING = 5000
PRIOR_PER_CLASS = 200


def classes_of_names(run: TrainedRun, names: Sequence[str]) -> dict[str, tuple[int, float]]:
    """Return for each class of the data the prior's class with most of its codes, and their share.

    Codes are those of validation samples, else of training samples. A code belongs to the class
    with the nearest of 200 samples of each. Where training has read labels, class and label are the
    same. ConfigError if no sample has the label, or the prior lacks it.
    """
    labels = {name: number for number, name in run.classes.items()}
    if has_labels_as_classes(run):
        beyond = [name for name in names if labels[name] >= (run.prior.num_classes or 0)]
        if beyond:
            raise ConfigError(
                f"--classes: {beyond[0]!r:.80} is label {labels[beyond[0]]}, and the prior of "
                f"{run.uri} has {run.prior.num_classes} classes"
            )
        return {name: (labels[name], 1.0) for name in names}
    data = run.open(run.config.data.validation or run.config.data.train)
    num_classes = run.prior.num_classes
    assert num_classes is not None
    drawn = torch.arange(num_classes).repeat_interleave(PRIOR_PER_CLASS)
    known = run.prior.sample_class(drawn, torch.Generator().manual_seed(0)).float()
    counts = {name: torch.zeros(num_classes) for name in names}
    numbers = arrays.stratified(CODES_PER_NAMING, len(data))
    for start in range(0, len(numbers), 256):
        samples = data.load(numbers[start : start + 256])
        good = torch.ones(len(samples.labels), dtype=torch.bool)
        good[list(samples.bad)] = False
        codes = run.encode(samples.images[good], samples.labels[good]).float().cpu()
        nearest = drawn[torch.cdist(codes, known).argmin(1)]
        for name, count in counts.items():
            count += nearest[samples.labels[good] == labels[name]].bincount(minlength=num_classes)
    found = {}
    for name, count in counts.items():
        if not count.sum():
            raise ConfigError(f"--classes: no sample that was read is of class {name!r:.80}")
        found[name] = int(count.argmax()), float(count.max() / count.sum())
    return found


PathKind = Literal["linear", "spherical"]
PRIOR_SAMPLES = 10_000
INNER = (0.02, 0.98)  # quantiles of the prior between which a plane and a traversal move


@dataclass(frozen=True)
class InterpolationOptions:
    """Options of an interpolation picture."""

    kind: str = "pairs"
    """pairs: from one code to another, one row per pair. plane: a patch between four codes, or, of
    a 2-D latent space, the prior's whole range. traverse: one row per dimension, the others
    fixed. styles: one row per class, one column per style. classes: one row per class, from it to
    the next one."""
    num: int = 8  # rows of pairs
    steps: int = 10  # images per row
    path: str = "auto"  # auto: spherical on a sphere and for a Gaussian above 2 dimensions
    source: str = "data"  # data: codes of validation samples; prior: samples of the prior
    data: tuple[str, ...] = ()  # absolute patterns of shards; none: the run's validation shards
    seed: int = 0


def fitting_path(run: TrainedRun, path: str) -> PathKind:
    """Return `path`, or for `auto` the one that stays where the prior has its mass."""
    if path in ("linear", "spherical"):
        return "linear" if path == "linear" else "spherical"
    kind, dim = run.config.prior.kind, run.config.model.latent_dim
    return "spherical" if str(kind) == "sphere" or (kind == "gaussian" and dim > 2) else "linear"


def codes_of(run: TrainedRun, options: InterpolationOptions) -> Tensor:
    """Return the codes to decode, shape (rows, columns, Z)."""
    path = fitting_path(run, options.path)
    if options.kind == "pairs":
        ends = _ends(run, options, 2 * options.num)
        # A label that the code holds has no values between: the way keeps the start's.
        targets = with_class_of(ends[1::2], ends[0::2], run)
        return between(ends[0::2], targets, options.steps, path)
    if options.kind == "styles":
        return style_swaps(_ends(run, options, options.steps), needed_class_part(run, "styles"))
    if options.kind == "classes":
        part = needed_class_part(run, "classes")
        return class_walks(_ends(run, options, 1)[0], part, options.steps)
    low, high = _range(run, options.seed)
    if options.kind == "traverse":
        return traversal(_ends(run, options, 1)[0], low, high, options.steps)
    if len(low) == 2:
        corners = [(low[0], high[1]), (high[0], high[1]), (low[0], low[1]), (high[0], low[1])]
        return plane(torch.tensor(corners), options.steps, "linear")
    ends = _ends(run, options, 4)
    return plane(with_class_of(ends, ends[:1].expand_as(ends), run), options.steps, path)


def _ends(run: TrainedRun, options: InterpolationOptions, num: int) -> Tensor:
    """Return `num` codes to start from or to end at, float32 on the CPU."""
    if options.source == "prior":
        return run.prior.sample(num, torch.Generator().manual_seed(options.seed))
    data = run.open(list(options.data))
    drawn = np.random.default_rng(options.seed).choice(len(data), num, replace=num > len(data))
    return run.encode(*data.read(drawn)).float().cpu()


def _range(run: TrainedRun, seed: int) -> tuple[Tensor, Tensor]:
    drawn = run.prior.sample(PRIOR_SAMPLES, torch.Generator().manual_seed(seed))
    low, high = drawn.quantile(torch.tensor(INNER), dim=0)
    return low, high


def between(start_NZ: Tensor, end_NZ: Tensor, num_steps: int, path: PathKind) -> Tensor:
    """Return codes on the way from each start to its end, shape (N, num_steps, Z), ends included.

    Spherical: along the great circle, the length growing evenly. A Gaussian in many dimensions lies
    in a shell, which a straight line leaves (White 2016, arXiv 1609.04468).
    """
    share_S1 = torch.linspace(0, 1, num_steps, dtype=start_NZ.dtype)[:, None]
    start_N1Z, end_N1Z = start_NZ[:, None], end_NZ[:, None]
    if path == "linear":
        return start_N1Z + share_S1 * (end_N1Z - start_N1Z)
    lengths = [codes.norm(dim=-1, keepdim=True) for codes in (start_N1Z, end_N1Z)]
    unit_a, unit_b = start_N1Z / lengths[0].clamp_min(1e-12), end_N1Z / lengths[1].clamp_min(1e-12)
    angle = (unit_a * unit_b).sum(-1, keepdim=True).clamp(-1, 1).acos()
    # Parallel codes have no plane to turn in, and opposite ones no single one: go straight.
    flat = angle.sin().abs() < 1e-6
    sin = torch.where(flat, torch.ones_like(angle), angle.sin())
    turned = (((1 - share_S1) * angle).sin() * unit_a + (share_S1 * angle).sin() * unit_b) / sin
    straight = (1 - share_S1) * unit_a + share_S1 * unit_b
    length = (1 - share_S1) * lengths[0] + share_S1 * lengths[1]
    codes_NSZ: Tensor = torch.where(flat, straight, turned) * length
    return codes_NSZ


def traversal(code_Z: Tensor, low_Z: Tensor, high_Z: Tensor, num_steps: int) -> Tensor:
    """Return copies (Z, num_steps, Z) of a code; in row i dimension i moves from low to high."""
    size = len(code_Z)
    share_S = torch.linspace(0, 1, num_steps, dtype=code_Z.dtype)
    codes = code_Z.expand(size, num_steps, size).clone()
    every = torch.arange(size)
    codes[every, :, every] = low_Z[:, None] + (high_Z - low_Z)[:, None] * share_S
    return codes


def plane(corners_4Z: Tensor, num_steps: int, path: PathKind) -> Tensor:
    """Return codes over the patch between four corners, shape (num_steps, num_steps, Z).

    Corners are top left, top right, bottom left, bottom right.
    """
    left_1SZ = between(corners_4Z[0:1], corners_4Z[2:3], num_steps, path)
    right_1SZ = between(corners_4Z[1:2], corners_4Z[3:4], num_steps, path)
    return between(left_1SZ[0], right_1SZ[0], num_steps, path)


def needed_class_part(run: TrainedRun, kind: str) -> Part:
    """Return the class part; ConfigError without one, or where it is the whole code."""
    part = class_part(run.prior)
    if part is None or part.dims == run.prior.latent_dim:
        raise ConfigError(
            f"--kind {kind} changes the class and keeps the style, and the code of {run.uri} "
            f"(prior.kind={run.config.prior.kind}) has not both; train with prior.kind=product"
        )
    return part


def has_labels_as_classes(run: TrainedRun) -> bool:
    """Return whether class k of the prior is label k: the run has trained on labels."""
    return run.config.method.kind == "semi_supervised" or label_rule(run.config) is not None


def class_walks(style_Z: Tensor, part: Part, num_steps: int) -> Tensor:
    """Return codes (K, S, Z) of one style: row k goes from class k to the next one, ends included.

    The way is straight: between, the class part is a mixture of both classes.
    """
    one_hot_KK = torch.eye(part.dims, dtype=style_Z.dtype)
    share_S1 = torch.linspace(0, 1, num_steps, dtype=style_Z.dtype)[:, None]
    start_K1K, end_K1K = one_hot_KK[:, None], one_hot_KK.roll(-1, 0)[:, None]
    codes_KSZ = style_Z.expand(part.dims, num_steps, len(style_Z)).clone()
    codes_KSZ[:, :, part.columns] = start_K1K + share_S1 * (end_K1K - start_K1K)
    return codes_KSZ


def with_class_of(codes_NZ: Tensor, others_NZ: Tensor, run: TrainedRun) -> Tensor:
    """Return codes with the given parts of others; unchanged where no part is given."""
    changed = codes_NZ.clone()
    for part in run.prior.given:
        changed[:, part.columns] = others_NZ[:, part.columns]
    return changed
