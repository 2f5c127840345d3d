"""Known data sets and image folders, written as WebDataset shards, with all labels or few."""

import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path

from aae_dist.config.metric_names import MIN_SCORED_SAMPLES
from aae_dist.data.format.manifest import CLASSES_FILE, ClassMap, dump_classes
from aae_dist.data.index.build import index_folder
from aae_dist.data.pack import folders, sources
from aae_dist.data.pack.known import KNOWN
from aae_dist.data.pack.sources import LABEL_FIELD, Fields, PackOptions, PackSource, SampleSet
from aae_dist.errors import DataError, LaunchError
from aae_dist.storage import Storage, is_remote, open_storage
from aae_dist.utils.text import progress, to_stderr

__all__ = ["NAMES", "PackOptions", "pack"]

GIVEN: Mapping[str, Callable[[Path, PackOptions], PackSource]] = {
    "folder": folders.folder_source,
    "csv": sources.csv_source,
    "npy": sources.npy_source,
}
NAMES = (*KNOWN, *GIVEN)
ROOTS = {
    "folder": "--root FOLDER, with a sub-folder for each class, or with images alone",
    "csv": "--root FILE.csv, with the columns path and label",
    "npy": "--root FILE.npy, with a row for each sample",
}
DEFAULTS = PackOptions()


def pack(
    name: str,
    out: str,
    root: str | None = None,
    options: PackOptions = DEFAULTS,
    write: Callable[[str], None] = to_stderr,
) -> dict[str, int]:
    """Write OUT/train and OUT/validation, tar shards with a manifest.json; return their samples.

    Names of classes go into each manifest, and into OUT/classes.json; `options.labelled` writes
    OUT/labelled, too (`keep_labels`).

    `out`, local or in a bucket, must be empty or absent, else DataError. `root` is a folder of
    images with a sub-folder per class, a CSV or .npy file, or the folder of torchvision's data sets
    (downloaded when absent; default ~/.cache/aae_dist/datasets). `write` takes progress lines where
    there is no terminal.
    """
    try:
        target = empty_target(out)
        source = _source(name, root, options)
        if options.labelled is not None:
            source = keep_labels(source, options.labelled, options.seed)
        _write(target, source, options, write)
    except (OSError, LaunchError) as error:
        raise DataError(f"{out}: cannot write the shards ({error}).") from error
    for line in source.advice():
        write(line)
    counts = {set_name: samples.num_samples for set_name, samples in source.sets.items()}
    count, fraction = counts.get("validation", 0), options.validation_fraction
    if name in GIVEN and (fraction or source.is_split) and count < MIN_SCORED_SAMPLES:
        larger = f"a larger --validation-fraction (was {fraction:g})"
        write(
            f"warning: validation: {count} samples, {MIN_SCORED_SAMPLES} are needed to score a "
            f"run; pack again with {'more' if source.is_split else larger}, or train with "
            "data.validation=null"
        )
    return counts


def _source(name: str, root: str | None, options: PackOptions) -> PackSource:
    if name not in NAMES:
        raise DataError(f"{name!r} is not a data set that can be packed; use {', '.join(NAMES)}.")
    if name in KNOWN:
        if options.classes or options.validation_root:
            raise DataError(f"--classes and --validation-root are not for {name}; leave them out.")
        folder = Path(root or "~/.cache/aae_dist/datasets").expanduser()
        return KNOWN[name](folder, options)
    if root is None:
        raise DataError(f"pack {name} needs {ROOTS[name]}.")
    if options.validation_root is not None and name == "npy":
        raise DataError("--validation-root is for folder and csv; pack the other array by itself.")
    return GIVEN[name](Path(root).expanduser(), options)


def empty_target(out: str) -> Storage:
    """Return the folder to write to; DataError if it holds something."""
    target = open_storage(out)
    local = Path(target.uri)
    occupied = local.exists() and not (local.is_dir() and next(local.iterdir(), None) is None)
    if target.list() if is_remote(out) else occupied:
        raise DataError(f"{out} is not an empty folder; give another --out, or empty it.")
    return target


def _write(
    target: Storage, source: PackSource, options: PackOptions, write: Callable[[str], None]
) -> None:
    """Write next to the target and move, or upload, when all is complete."""
    parent = None if is_remote(target.uri) else Path(target.uri).parent
    if parent:
        parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".packing-", dir=parent) as work:
        folder = Path(work, "out")
        for name, samples in source.sets.items():
            _write_set(folder / name, samples, source.classes, options, write)
        if source.classes:
            (folder / CLASSES_FILE).write_bytes(dump_classes(source.classes))
        if parent:
            folder.rename(target.uri)
        else:
            upload(folder, target, write)


def _write_set(
    folder: Path,
    samples: SampleSet,
    classes: ClassMap,
    options: PackOptions,
    write: Callable[[str], None],
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
    index_folder(folder, classes)


def upload(folder: Path, target: Storage, write: Callable[[str], None]) -> None:
    """Upload packed shards from a local folder."""
    # Manifests last: the shards that they list are there.
    paths = sorted(folder.rglob("*.tar")) + sorted(folder.rglob("*.json"))
    with progress("uploading", len(paths), "files", write) as advance:
        for path in paths:
            target.upload(path.relative_to(folder).as_posix(), path)
            advance(1)


def keep_labels(source: PackSource, num_labelled: int, seed: int) -> PackSource:
    """Return `source` with `num_labelled` labelled training samples, as many of each class.

    The set `labelled` holds them. `train` holds every sample, but labels of these alone, so that a
    run cannot read another one. Where the classes do not divide the number, the first ones have one
    sample more. The hash of a sample's place, keyed by `seed`, decides. DataError if samples have
    no labels, or a class too few.
    """
    train = source.sets["train"]
    chosen = _balanced(train.labels, num_labelled, seed)
    kept: dict[int, Fields] = {}

    def stripped() -> Iterator[Fields]:
        for number, fields in enumerate(train.samples):
            if number in chosen:
                kept[number] = fields
                yield fields
            else:
                yield {name: value for name, value in fields.items() if name != LABEL_FIELD}

    labelled = SampleSet(len(chosen), (kept.pop(number) for number in sorted(chosen)))
    sets = {
        "train": replace(train, samples=stripped()),  # written first, which fills `kept`
        "labelled": labelled,
        **{name: samples for name, samples in source.sets.items() if name != "train"},
    }
    return replace(source, sets=sets)


def _balanced(labels: list[int | None], num_labelled: int, seed: int) -> set[int]:
    """Return the places of the samples that keep their label."""
    key = seed.to_bytes(8, "big")
    places = defaultdict(list)
    for place, label in enumerate(labels):
        if label is not None:
            places[label].append(place)
    if not places or num_labelled < len(places):
        raise DataError(
            f"--labelled {num_labelled}: the training samples have {len(places)} classes; give at "
            "least one label per class."
            if places
            else "--labelled: the training samples have no labels of one number each."
        )
    each, more = divmod(num_labelled, len(places))
    chosen: set[int] = set()
    for rank, (label, found) in enumerate(sorted(places.items())):
        wanted = each + (rank < more)
        if len(found) < wanted:
            raise DataError(
                f"--labelled {num_labelled}: class {label} has {len(found)} training samples and "
                f"{wanted} are wanted; give a smaller number."
            )
        hashes = {
            place: blake2b(place.to_bytes(8, "big"), digest_size=8, key=key).digest()
            for place in found
        }
        chosen |= set(sorted(found, key=hashes.__getitem__)[:wanted])
    return chosen
