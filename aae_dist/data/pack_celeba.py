"""CelebA from the files that torchvision keeps: faces with 40 attributes and an identity."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from aae_dist.data.pack_known import download
from aae_dist.data.pack_sources import (
    Fields,
    PackOptions,
    SampleSet,
    Source,
    file_fields,
    read_file,
)
from aae_dist.errors import DataError

FOLDER, IMAGES = "celeba", "img_align_celeba"
SETS = {"0": "train", "1": "validation", "2": "test"}
"""By the number in list_eval_partition.txt."""


def celeba_source(root: Path, options: PackOptions) -> Source:
    """Return the train, validation and test faces; their labels are the entries of a json field.

    That field holds each of the 40 attributes as 0 or 1, and `identity`, a number, so that
    `data.label_key=json:Smiling` makes an attribute the label.

    Raises:
        DataError: The files are not there and cannot be downloaded, or do not fit each other.
    """
    folder = root / FOLDER
    if not (folder / "list_eval_partition.txt").exists() or not (folder / IMAGES).is_dir():
        download(
            "celeba",
            root,
            lambda datasets: datasets.CelebA(str(root), "all", download=True),  # type: ignore[attr-defined]
        )
    partition = dict(_columns(folder / "list_eval_partition.txt", 2))
    identity = dict(_columns(folder / "identity_CelebA.txt", 2))
    names, attributes = _attributes(folder / "list_attr_celeba.txt")
    if not partition.keys() == identity.keys() == attributes.keys():
        raise DataError(f"{folder}: its lists do not name the same images; delete them.")
    sets = {}
    for number, set_name in SETS.items():
        files = sorted(file for file, set_number in partition.items() if set_number == number)
        labels = [
            {"identity": int(identity[f]), **dict(zip(names, attributes[f], strict=True))}
            for f in files
        ]
        if files:
            sets[set_name] = SampleSet(
                len(files), _samples(folder / IMAGES, files, labels, options)
            )
    return Source(sets)


def _samples(
    folder: Path, files: Sequence[str], labels: Sequence[dict[str, int]], options: PackOptions
) -> Iterator[Fields]:
    for file, label in zip(files, labels, strict=True):
        path = folder / file
        fields, _ = file_fields(path.stem, read_file(path), str(path), options)
        yield {**fields, "json": json.dumps(label).encode()}


def _attributes(path: Path) -> tuple[list[str], dict[str, list[int]]]:
    """Return the attributes' names, and their values (0 or 1) for each image."""
    lines = _lines(path)
    names = lines[1].split() if len(lines) > 1 else []
    values = {}
    for line in lines[2:]:
        file, *numbers = line.split()
        if len(numbers) != len(names) or not set(numbers) <= {"1", "-1"}:
            raise DataError(f"{path}: the line of {file!r:.80} does not fit the names; delete it.")
        values[file] = [int(number == "1") for number in numbers]
    return names, values


def _columns(path: Path, num_columns: int) -> Iterator[tuple[str, str]]:
    for line in _lines(path):
        file, *rest = line.split()
        if len(rest) != num_columns - 1 or not rest[0].isdigit():
            raise DataError(f"{path}: {line!r:.80} is not an image and a number; delete it.")
        yield file, rest[0]


def _lines(path: Path) -> list[str]:
    text = read_file(path).decode("utf-8", "replace")
    return [line for line in text.splitlines() if line.strip()]
