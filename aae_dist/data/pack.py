"""Known data sets and image folders, written as WebDataset shards."""

import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from aae_dist.data.index import index_folder
from aae_dist.data.pack_sources import SampleSet, folder_sets, mnist_sets
from aae_dist.data.progress import progress
from aae_dist.errors import DataError, LaunchError
from aae_dist.storage import Storage, is_remote, open_storage

NAMES = ("mnist", "fashion-mnist", "folder")


@dataclass(frozen=True)
class PackOptions:
    """What `pack` does beside copying."""

    shard_samples: int = 5000
    """Most samples in one shard."""
    image_size: int | None = None
    """Folder only: height and width that images are cropped and resized to; None keeps them."""
    validation_fraction: float = 0.1
    """Folder only: part of the images that goes to the validation set."""


DEFAULTS = PackOptions()


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def pack(
    name: str,
    out: str,
    root: str | None = None,
    options: PackOptions = DEFAULTS,
    write: Callable[[str], None] = _to_stderr,
) -> dict[str, int]:
    """Write OUT/train and OUT/validation: tar shards with a manifest.json each.

    Args:
        name: mnist, fashion-mnist or folder.
        out: Folder to make, local or in a bucket; it must be empty or absent.
        root: Folder of images with a sub-folder for each class, or the folder that torchvision
            keeps its data sets in (downloaded to when absent; default ~/.cache/aae_dist/datasets).
        options: Shard size, and what is done to the images of a folder.
        write: Takes progress lines where there is no terminal.

    Returns:
        Samples of each set.

    Raises:
        DataError: The target is not empty, or the source is missing or damaged.
    """
    try:
        target = _empty_target(out)
        sets = _sets(name, root, options)
        _write(target, sets, options, write)
    except (OSError, LaunchError) as error:
        raise DataError(f"{out}: cannot write the shards ({error}).") from error
    return {set_name: samples.num_samples for set_name, samples in sets.items()}


def _sets(name: str, root: str | None, options: PackOptions) -> Mapping[str, SampleSet]:
    if name not in NAMES:
        raise DataError(f"{name!r} is not a data set that can be packed; use {', '.join(NAMES)}.")
    if name != "folder":
        return mnist_sets(name, Path(root or "~/.cache/aae_dist/datasets").expanduser())
    if root is None:
        raise DataError("pack folder needs --root FOLDER, with a sub-folder for each class.")
    return folder_sets(Path(root).expanduser(), options.image_size, options.validation_fraction)


def _empty_target(out: str) -> Storage:
    target = open_storage(out)
    local = None if is_remote(out) else Path(target.uri)
    occupied = target.list() if local is None else local.exists() and not _is_empty(local)
    if occupied:
        raise DataError(f"{out} is not an empty folder; give another --out, or empty it.")
    return target


def _is_empty(path: Path) -> bool:
    return path.is_dir() and next(path.iterdir(), None) is None


def _write(
    target: Storage,
    sets: Mapping[str, SampleSet],
    options: PackOptions,
    write: Callable[[str], None],
) -> None:
    """Write beside the target and move, or upload, when all is complete."""
    parent = None if is_remote(target.uri) else Path(target.uri).parent
    if parent:
        parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".packing-", dir=parent) as work:
        folder = Path(work, "out")
        for name, samples in sets.items():
            _write_set(folder / name, samples, options, write)
        if parent:
            folder.rename(target.uri)
        else:
            _upload(folder, target, write)


def _write_set(
    folder: Path, samples: SampleSet, options: PackOptions, write: Callable[[str], None]
) -> None:
    # Imported here: only writing needs it.
    from webdataset import ShardWriter

    folder.mkdir(parents=True)
    last_shard = (samples.num_samples - 1) // options.shard_samples
    pattern = str(folder).replace("%", "%%") + f"/%0{max(3, len(str(last_shard)))}d.tar"
    with (
        ShardWriter(pattern, maxcount=options.shard_samples, verbose=0, mtime=0) as writer,
        progress(f"packing {folder.name}", samples.num_samples, "samples", write) as advance,
    ):
        for sample in samples.samples:
            writer.write(sample)
            advance(1)
    index_folder(folder)


def _upload(folder: Path, target: Storage, write: Callable[[str], None]) -> None:
    # Manifests last: shards that one of them lists are there.
    paths = sorted(folder.rglob("*.tar")) + sorted(folder.rglob("*.json"))
    with progress("uploading", len(paths), "files", write) as advance:
        for path in paths:
            target.upload(path.relative_to(folder).as_posix(), path)
            advance(1)
