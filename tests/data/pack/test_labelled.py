import tarfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from aae_dist.config.sections.run import Data
from aae_dist.data import open_dataset
from aae_dist.data.pack import PackOptions, pack
from aae_dist.errors import DataError


def write_rows(folder: Path, labels: list[int]) -> PackOptions:
    rows = np.arange(len(labels), dtype=np.float32)[:, None].repeat(2, 1)
    np.save(folder / "x.npy", rows)
    np.save(folder / "y.npy", np.array(labels))
    return PackOptions(labels=folder / "y.npy", validation_fraction=0.0, shard_samples=30)


def packed(folder: Path, options: PackOptions, out: str = "out") -> tuple[Path, dict[str, int]]:
    counts = pack("npy", str(folder / out), str(folder / "x.npy"), options)
    return folder / out, counts


def read(shards: Path) -> tuple[list[int], list[int]]:
    settings = Data(train=str(shards), image_keys=("npy",))
    dataset = open_dataset(settings.train, settings)
    rows, labels = dataset.read(range(len(dataset)))
    return rows.flatten(1)[:, 0].long().tolist(), labels.tolist()


def test_training_shards_hold_no_label_but_the_chosen_ones(tmp_path: Path) -> None:
    classes = [number % 5 for number in range(100)]
    options = replace(write_rows(tmp_path, classes), labelled=12)
    out, counts = packed(tmp_path, options)
    assert counts == {"train": 100, "labelled": 12}

    chosen, labels = read(out / "labelled")
    assert labels == [classes[number] for number in chosen]
    assert Counter(labels) == {0: 3, 1: 3, 2: 2, 3: 2, 4: 2}

    rows, labels = read(out / "train")
    assert sorted(rows) == list(range(100))
    assert {row: label for row, label in zip(rows, labels, strict=True) if label >= 0} == {
        number: classes[number] for number in chosen
    }
    # No other file in any shard could tell: as many label fields as labels.
    names = []
    for shard in (out / "train").glob("*.tar"):
        with tarfile.open(shard) as tar:
            names += tar.getnames()
    assert Counter(name.split(".", 1)[1] for name in names) == {"npy": 100, "cls": 12}


def test_the_seed_chooses_and_the_same_one_chooses_alike(tmp_path: Path) -> None:
    options = replace(write_rows(tmp_path, [number % 2 for number in range(60)]), labelled=10)
    chosen = [
        read(packed(tmp_path, replace(options, seed=seed), out)[0] / "labelled")[0]
        for seed, out in ((0, "a"), (0, "b"), (1, "c"))
    ]
    assert chosen[0] == chosen[1]
    assert sorted(chosen[0]) != sorted(chosen[2])


@pytest.mark.parametrize(
    ("labels", "labelled", "message"),
    [
        ([0, 1, 2] * 20, 2, "at least one label per class"),
        ([0] * 50 + [1] * 2, 10, "class 1 has 2 training samples and 5 are wanted"),
        ([-1] * 60, 10, "have no labels"),
    ],
)
def test_numbers_that_cannot_be_kept_are_refused(
    tmp_path: Path, labels: list[int], labelled: int, message: str
) -> None:
    options = replace(write_rows(tmp_path, labels), labelled=labelled)
    with pytest.raises(DataError, match=message):
        packed(tmp_path, options)
    assert not (tmp_path / "out").exists()
