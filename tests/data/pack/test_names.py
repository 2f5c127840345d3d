"""Classes keep their numbers and samples their names: packs of the user's own files."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.shards import encoded

from aae_dist.cli import main
from aae_dist.config.sections.run import Data
from aae_dist.data import Dataset, build_index, open_dataset, open_manifest
from aae_dist.data.pack import PackOptions, pack
from aae_dist.data.pack.names import keys_of, labels_of_texts, number_classes
from aae_dist.errors import DataError

ALL = PackOptions(validation_fraction=0.0)
NAMES = ("bear", "cat", "dog", "owl")


def write_image(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(np.full((4, 4), value, np.uint8)))


def write_classes(root: Path, names: Sequence[str], per_class: int = 10) -> None:
    for value, name in enumerate(names):
        for number in range(per_class):
            write_image(root / name / f"{number}.png", value)


def opened(folder: Path, **settings: object) -> Dataset:
    data = Data(train=str(folder), **settings)  # type: ignore[arg-type]
    return open_dataset(data.train, data)


def labels_by_key(folder: Path) -> dict[str, int]:
    data = opened(folder)
    numbers = range(len(data))
    return dict(zip(data.keys(numbers), data.read(numbers)[1].tolist(), strict=True))


def packed(root: Path, out: Path, options: PackOptions = ALL, kind: str = "folder") -> list[str]:
    lines: list[str] = []
    pack(kind, str(out), str(root), options, lines.append)
    return lines


def test_train_and_val_folders_are_packed_in_one_go_with_one_numbering(tmp_path: Path) -> None:
    write_classes(tmp_path / "raw/Train", NAMES)
    write_classes(tmp_path / "raw/val", ["bear", "dog", "owl"])
    write_classes(tmp_path / "raw/test", ["owl"])
    counts = pack("folder", str(tmp_path / "out"), str(tmp_path / "raw"))
    assert counts == {"train": 40, "validation": 30, "test": 10}
    for name, folder in (("train", "Train"), ("validation", "val"), ("test", "test")):
        for key, label in labels_by_key(tmp_path / "out" / name).items():
            top, class_name, _ = key.split("/")
            assert (top, NAMES[label]) == (folder, class_name)
        manifest = open_manifest(str(tmp_path / "out" / name))
        assert manifest.classes == {"bear": 0, "cat": 1, "dog": 2, "owl": 3}


def test_a_validation_root_shares_the_numbering_and_is_not_split(tmp_path: Path) -> None:
    write_classes(tmp_path / "a", NAMES)
    write_classes(tmp_path / "b", ["bear", "dog", "zebra"])
    arguments = ["data", "pack", "folder", "--root", str(tmp_path / "a")]
    arguments += ["--validation-root", str(tmp_path / "b"), "--out", str(tmp_path / "out")]
    assert main(arguments) == 0
    train = labels_by_key(tmp_path / "out/train")
    validation = labels_by_key(tmp_path / "out/validation")
    assert (len(train), len(validation)) == (40, 30)
    assert train["dog/3"] == validation["dog/3"] == 2
    assert validation["zebra/0"] == 4


def test_sets_without_classes_have_no_labels(tmp_path: Path) -> None:
    for number in range(20):
        write_image(tmp_path / "raw" / ("train" if number % 2 else "valid") / f"{number}.png", 1)
    assert pack("folder", str(tmp_path / "out"), str(tmp_path / "raw")) == {
        "train": 10,
        "validation": 10,
    }
    assert set(labels_by_key(tmp_path / "out/train").values()) == {-1}


def test_a_set_for_training_and_a_test_set_leave_the_split_of_a_validation_set(
    tmp_path: Path,
) -> None:
    write_classes(tmp_path / "raw/train", NAMES)
    write_classes(tmp_path / "raw/test", NAMES)
    counts = pack("folder", str(tmp_path / "out"), str(tmp_path / "raw"))
    assert counts["test"] == 40
    assert counts["train"] + counts["validation"] == 40
    assert counts["validation"] > 0


def test_the_class_map_of_one_pack_numbers_another(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", NAMES)
    write_classes(tmp_path / "val", ["bear", "dog", "owl"])
    packed(tmp_path / "train", tmp_path / "a")
    options = PackOptions(validation_fraction=0.0, classes=tmp_path / "a/classes.json")
    packed(tmp_path / "val", tmp_path / "b", options)
    assert labels_by_key(tmp_path / "b/train")["dog/0"] == 2
    write_classes(tmp_path / "val", ["ant"])
    with pytest.raises(DataError, match=r"the class 'ant' and 0 more are not among the 4 of --cl"):
        packed(tmp_path / "val", tmp_path / "c", options)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('["a", "a"]', "names the class 'a' twice"),
        ('{"a": 1, "b": 1}', "two names have one number"),
        ('{"a": true}', "is no name: number"),
        ('{"a": -1}', "is no name: number"),
        ("3", "no list of at most"),
        ("[" * 100_000, "is not JSON"),
        ("", "is not JSON"),
        ('["\\ud800"]', "is not JSON"),
    ],
)
def test_a_class_map_that_is_none_is_one_line(tmp_path: Path, text: str, problem: str) -> None:
    write_classes(tmp_path / "raw", NAMES, 1)
    (tmp_path / "classes.json").write_text(text)
    options = PackOptions(validation_fraction=0.0, classes=tmp_path / "classes.json")
    with pytest.raises(DataError, match=problem) as caught:
        packed(tmp_path / "raw", tmp_path / "out", options)
    assert "\n" not in str(caught.value)


def test_folders_that_are_integers_are_these_labels(tmp_path: Path) -> None:
    write_classes(tmp_path / "raw", ["0", "1", "2", "10", "11"])
    packed(tmp_path / "raw", tmp_path / "out")
    for key, label in labels_by_key(tmp_path / "out/train").items():
        assert key.startswith(f"{label}/")
    assert json.loads((tmp_path / "out/classes.json").read_bytes())["10"] == 10
    write_classes(tmp_path / "raw", ["010"])
    with pytest.raises(DataError, match="the folders 010 and 10 are one number"):
        packed(tmp_path / "raw", tmp_path / "again")


@pytest.mark.parametrize("name", ["-1", "+2", "9" * 19])
def test_a_folder_named_by_an_integer_that_is_no_label_does_not_renumber_the_others(
    name: str,
) -> None:
    with pytest.raises(DataError, match=rf"all folders .* and {re.escape(name)} is no label"):
        number_classes(["0", "1", name], None, "raw")
    assert number_classes(["0", "1", name], {"0": 0, "1": 1, name: 2}, "raw")[name] == 2


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", ["a pipe", "a device", "a file of a TiB"])
def test_a_table_that_names_no_image_file_neither_waits_nor_fills_the_memory(
    tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "x\n.png"
    if kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a device":
        path.symlink_to("/dev/zero")
    else:
        path.touch()
        os.truncate(path, 1 << 40)
    (tmp_path / "t.csv").write_text('path,label\n"x\n.png",1\n')
    with pytest.raises(DataError, match=r"not a regular file|are more than 512 MiB") as caught:
        pack("csv", str(tmp_path / "out"), str(tmp_path / "t.csv"), ALL)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('path,label\n"a\0.png",1\n', "a name cannot hold a NUL"),
        ('path,label\n"a.png,1\n' + "b.png,1\n" * 1000, "cannot read the file"),
        ("path,label,label\na.png,1,2\n", "two columns have one name"),
        (None, "not a regular file"),
    ],
)
def test_a_table_that_cannot_be_used_is_one_short_line(
    tmp_path: Path, text: str | None, problem: str
) -> None:
    table = tmp_path / "t.csv"
    if text is None:
        table.symlink_to("/dev/zero")
    else:
        table.write_text(text)
    with pytest.raises(DataError, match=problem) as caught:
        pack("csv", str(tmp_path / "out"), str(table), ALL)
    assert len(str(caught.value)) < 600
    assert "\n" not in str(caught.value)


def test_two_spellings_of_one_number_are_not_one_class_of_a_table() -> None:
    with pytest.raises(DataError, match="the labels 01 and 1 are one number"):
        labels_of_texts(["1", "01", "2"], None, "labels.csv")
    assert labels_of_texts(["01", "02", "1.0"], None, "labels.csv").numbers == [1, 2, 1]


@pytest.mark.parametrize(
    ("texts", "labels"),
    [
        (["0.0", "10.0", "2.0"], [0, 10, 2]),
        (["0", "NaN", "11"], [0, None, 11]),
        (["0.0", "", "11.0", "nan", "NA", "<NA>", "None"], [0, None, 11] + [None] * 4),
        (["1e1", "+3", "2.", "007", " 5 "], [10, 3, 2, 7, 5]),
        (["-1", "3"], [None, 3]),
        (["cat", "", "ant"], [1, None, 0]),
        (["none", "scratch"], [0, 1]),
        (["", ""], [None, None]),
        (["999999999999999999", "0"], [999999999999999999, 0]),
    ],
)
def test_whole_numbers_stay_and_gaps_are_no_labels(
    texts: list[str], labels: list[int | None]
) -> None:
    assert labels_of_texts(texts, None, "list").numbers == labels


@pytest.mark.parametrize("texts", [["1", "cat"], ["1.5", "2"], ["1_0", "2"], ["inf", "0"]])
def test_labels_of_two_kinds_are_refused(texts: list[str]) -> None:
    with pytest.raises(DataError, match="for --classes"):
        labels_of_texts(texts, None, "list")


def test_names_of_a_class_map_are_found_before_numbers() -> None:
    known: Mapping[str, int] = {"0.5": 0, "1.0": 1, "dog": 7}
    found = labels_of_texts(["1.0", "0.5", "7", "", "dog"], known, "list")
    assert found.numbers == [1, 0, 7, None, 7]
    with pytest.raises(DataError, match="the class '3' and 0 more"):
        labels_of_texts(["3"], known, "list")


def test_gaps_in_a_list_are_counted_and_told(tmp_path: Path) -> None:
    rows = []
    for number in range(24):
        write_image(tmp_path / "img" / f"{number}.png", number)
        rows.append(f"img/{number}.png,{'NaN' if number % 12 == 11 else f'{number % 12}.0'},x")
    (tmp_path / "list.csv").write_text("path,label,split\n" + "\n".join(rows))
    lines = packed(tmp_path / "list.csv", tmp_path / "out", kind="csv")
    assert (
        "warning: 2 of 24 labels are missing (empty, NaN or -1): these samples have none" in lines
    )
    assert "warning: the columns 'split' are not used" in lines
    for key, label in labels_by_key(tmp_path / "out/train").items():
        number = int(key.removeprefix("img/")) % 12
        assert label == (-1 if number == 11 else number)


def test_floats_with_gaps_are_labels_of_an_array(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", np.arange(12, dtype=np.float32).reshape(6, 2))
    np.save(tmp_path / "labels.npy", np.array([0.0, 10.0, np.nan, 2.0, 1.0, 11.0]))
    options = PackOptions(validation_fraction=0.0, labels=tmp_path / "labels.npy")
    lines = packed(tmp_path / "rows.npy", tmp_path / "out", options, "npy")
    assert [line for line in lines if "1 of 6 labels are missing" in line]
    data = opened(tmp_path / "out/train", image_keys=("npy",))
    vectors, labels = data.read(range(6))
    rows = (vectors[:, 0, 0, 0] / 2).long()
    assert labels.tolist() == torch.tensor([0, 10, -1, 2, 1, 11])[rows].tolist()
    assert data.keys(range(6)) == [f"{row:08d}" for row in rows.tolist()]


def test_files_that_are_not_packed_are_told(tmp_path: Path) -> None:
    write_classes(tmp_path / "raw", NAMES)
    for name in ("a.gif", "b.gif", "c.BMP", "d.tif", ".hidden.gif"):
        (tmp_path / "raw/dog" / name).write_bytes(b"GIF89a")
    lines = packed(tmp_path / "raw", tmp_path / "out")
    assert [line for line in lines if "4 files are not packed (2 .gif, 1 .bmp, 1 .tif)" in line]


def test_the_key_of_a_sample_is_the_path_of_its_file(tmp_path: Path) -> None:
    write_classes(tmp_path / "raw", NAMES)
    packed(tmp_path / "raw", tmp_path / "out")
    wanted = {f"{name}/{number}" for name in NAMES for number in range(10)}
    assert set(labels_by_key(tmp_path / "out/train")) == wanted


def test_odd_names_make_legal_and_unique_keys(tmp_path: Path) -> None:
    names = [
        *("a.b.png", "a_b.png", "a_b.jpg", "new\nline.png", "日本 1.png", "$x_1$.png"),
        *("x" * 240 + ".png", "x" * 239 + "y.png", "-.png", "a..png"),
    ]
    for folder in ("__meta__", "v1.0", "plain"):
        for number, name in enumerate(names):
            write_image(tmp_path / "raw" / folder / name, number)
    write_image(tmp_path / "raw/plain" / "\udcff.png", 3)
    packed(tmp_path / "raw", tmp_path / "out")
    data = opened(tmp_path / "out/train")
    keys = data.keys(range(len(data)))
    assert len(set(keys)) == len(keys) == 31
    assert {"plain/a_b_png", "plain/a_b_jpg", "plain/a_b_png_2", "v1.0/-"} <= set(keys)
    assert all(key.isprintable() for key in keys)
    for key, image in zip(keys, data.read(range(len(data)))[0], strict=True):
        if key.endswith("日本 1"):
            assert int(image[0, 0, 0]) == 4


def test_keys_leave_a_folder_by_no_path() -> None:
    assert keys_of(["../../etc/a.png", "/abs/b.png", "./c.png", "..png"]) == [
        *("etc/a", "abs/b", "c", "_"),
    ]


def test_an_index_keeps_the_names_of_classes_that_lie_near(tmp_path: Path) -> None:
    write_classes(tmp_path / "raw", NAMES)
    packed(tmp_path / "raw", tmp_path / "out")
    build_index(str(tmp_path / "out/train"))
    assert open_manifest(str(tmp_path / "out/train")).classes["dog"] == 2
    # A pack of an earlier version has names above its sets alone.
    (tmp_path / "out/train/manifest.json").unlink()
    assert open_manifest(str(tmp_path / "out/train")).classes["dog"] == 2
    (tmp_path / "out/classes.json").write_text("not a class map")
    assert open_manifest(str(tmp_path / "out/train")).classes == {}


def test_class_maps_that_differ_are_no_map_and_said(tmp_path: Path) -> None:
    write_classes(tmp_path / "one", NAMES)
    write_classes(tmp_path / "two", ["bear", "dog", "owl"])
    packed(tmp_path / "one", tmp_path / "a")
    packed(tmp_path / "two", tmp_path / "b")
    both = open_manifest([str(tmp_path / "a/train"), str(tmp_path / "b/train")])
    assert both.classes == {}
    assert "'dog' is label 2 in" in both.class_conflict or "label 1 is 'cat'" in both.class_conflict


@pytest.mark.parametrize("text", ["10,0", "1'000", "1_0", "1 000", "\u0661\u0662", "-1,5"])
def test_what_is_like_a_number_becomes_no_name(text: str) -> None:
    with pytest.raises(DataError, match="is like a number, and no number") as caught:
        labels_of_texts([text, "2,0"], None, "labels.csv")
    assert "\n" not in str(caught.value)


def test_names_with_digits_stay_names() -> None:
    texts = ["1.2.3", "2020-01", "3d", "a,b", "10 cats", "\u00e91"]
    assert sorted(labels_of_texts(texts, None, "labels.csv").classes) == sorted(texts)
