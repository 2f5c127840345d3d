"""Packing from CSV and npy files, and from files in the formats of CIFAR-10, SVHN and CelebA."""

import json
import sys
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from helpers.originals import (
    cifar_batch,
    mat_file,
    mat_matrix,
    write_celeba,
    write_cifar,
    write_svhn,
)
from helpers.shards import encoded

from aae_dist.cli import main
from aae_dist.cli.data import PACKED
from aae_dist.config.sections.run import Data
from aae_dist.data import Dataset, open_dataset
from aae_dist.data.pack import NAMES, PackOptions, pack
from aae_dist.data.pack.known import download
from aae_dist.errors import ConfigError, DataError


def opened(folder: Path, **settings: object) -> Dataset:
    data = Data(train=str(folder), **settings)  # type: ignore[arg-type]
    return open_dataset(data.train, data)


def everything(folder: Path, **settings: object) -> tuple[torch.Tensor, torch.Tensor]:
    data = opened(folder, **settings)
    return data.read(range(len(data)))


def test_the_command_line_knows_what_can_be_packed() -> None:
    assert sorted(PACKED) == sorted(NAMES)


def test_cifar10_comes_back_exactly(tmp_path: Path) -> None:
    written = write_cifar(tmp_path / "raw")
    assert pack("cifar10", str(tmp_path / "out"), str(tmp_path / "raw")) == {
        "train": 20,
        "validation": 4,
    }
    images, labels = everything(tmp_path / "out/train")
    batches = [written[f"data_batch_{n}"] for n in range(1, 6)]
    assert np.array_equal(images.numpy(), np.concatenate([images for images, _ in batches]))
    assert labels.tolist() == [label for _, labels in batches for label in labels]
    images, labels = everything(tmp_path / "out/validation")
    assert np.array_equal(images.numpy(), written["test_batch"][0])
    assert json.loads((tmp_path / "out/classes.json").read_bytes())[3] == "cat"


@pytest.mark.slow
def test_torchvision_itself_reads_the_batches_that_these_tests_write(tmp_path: Path) -> None:
    from torchvision.datasets import CIFAR10

    class Unchecked(CIFAR10):
        def _check_integrity(self) -> bool:
            return True

        def _load_meta(self) -> None:
            pass

    written = write_cifar(tmp_path)
    dataset = Unchecked(str(tmp_path), train=True)
    assert np.array_equal(dataset.data[:4].transpose(0, 3, 1, 2), written["data_batch_1"][0])
    assert dataset.targets[:4] == written["data_batch_1"][1]


def test_nothing_in_a_batch_of_cifar10_is_executed(tmp_path: Path) -> None:
    write_cifar(tmp_path / "raw")
    canary = tmp_path / "canary"
    payload = b"\x80\x02cposix\nsystem\nU" + bytes([len(f"touch {canary}")])
    payload += f"touch {canary}".encode() + b"\x85R."
    (tmp_path / "raw/cifar-10-batches-py/data_batch_2").write_bytes(payload)
    with pytest.raises(DataError, match=r"data_batch_2: no batch of CIFAR-10 \(0 bytes"):
        pack("cifar10", str(tmp_path / "out"), str(tmp_path / "raw"))
    assert not canary.exists()


@pytest.mark.parametrize("compressed", [True, False])
def test_svhn_comes_back_exactly_and_its_ten_is_a_zero(tmp_path: Path, compressed: bool) -> None:
    written = write_svhn(tmp_path / "raw", compressed)
    counts = pack("svhn", str(tmp_path / "out"), str(tmp_path / "raw"))
    assert counts == {"train": 7, "validation": 3}
    images, labels = everything(tmp_path / "out/train")
    assert np.array_equal(images.numpy(), written["train"].transpose(3, 2, 0, 1))
    assert labels.tolist() == [4, 5, 6, 7, 8, 9, 0]


def test_celeba_keeps_its_sets_files_and_attributes(tmp_path: Path) -> None:
    write_celeba(tmp_path / "raw")
    counts = pack("celeba", str(tmp_path / "out"), str(tmp_path / "raw"))
    assert counts == {"train": 3, "validation": 1, "test": 2}
    data = opened(tmp_path / "out/train", label_key="json:identity")
    assert data.image_shape == (3, 218, 178)
    assert data.keys(range(3)) == ["000001", "000002", "000003"]
    assert data.read(range(3))[1].tolist() == [5, 9, 5]
    assert everything(tmp_path / "out/train", label_key="json:Male")[1].tolist() == [0, 1, 0]
    assert everything(tmp_path / "out/test", label_key="json:Smiling")[1].tolist() == [1, 1]
    options = PackOptions(crop_size=148, image_size=64)
    pack("celeba", str(tmp_path / "small"), str(tmp_path / "raw"), options)
    decoded = opened(tmp_path / "out/train", crop_size=148, image_size=64)
    assert opened(tmp_path / "small/train").image_shape == decoded.image_shape == (3, 64, 64)


def write_csv(tmp_path: Path, labels: list[str], header: str = "path,label") -> Path:
    lines = [header]
    for number, label in enumerate(labels):
        path = tmp_path / "images" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encoded(np.full((6, 6), number, np.uint8)))
        lines.append(f"images/{number}.png,{label}")
    file = tmp_path / "list.csv"
    file.write_text("\n".join(lines) + "\n")
    return file


def test_a_csv_lists_images_and_names_or_numbers_of_their_classes(tmp_path: Path) -> None:
    file = write_csv(tmp_path, ["cat", "ant", "bee"] * 10)
    counts = pack("csv", str(tmp_path / "named"), str(file))
    assert sum(counts.values()) == 30
    images, labels = everything(tmp_path / "named/train")
    assert labels.tolist() == [(2, 0, 1)[n % 3] for n in images[:, 0, 0, 0].tolist()]
    assert json.loads((tmp_path / "named/classes.json").read_bytes()) == ["ant", "bee", "cat"]
    file = write_csv(tmp_path, [str(7 * n) for n in range(30)])
    pack("csv", str(tmp_path / "numbered"), str(file))
    images, labels = everything(tmp_path / "numbered/train")
    assert torch.equal(labels, 7 * images[:, 0, 0, 0].long())
    assert not (tmp_path / "numbered/classes.json").exists()


def test_the_seed_decides_the_split_and_nothing_else_does(tmp_path: Path) -> None:
    file = write_csv(tmp_path, ["1"] * 40)
    sets = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 5)):
        pack(
            "csv", str(tmp_path / name), str(file), PackOptions(seed=seed, validation_fraction=0.3)
        )
        parts = [
            everything(tmp_path / name / part)[0][:, 0, 0, 0] for part in ("train", "validation")
        ]
        assert sorted(torch.cat(parts).tolist()) == list(range(40))
        sets[name] = parts[1].tolist()
    assert sets["a"] == sets["b"] != sets["c"]


def test_too_few_validation_samples_to_score_are_reported(tmp_path: Path) -> None:
    file = write_csv(tmp_path, ["1"] * 30)
    warnings = {}
    for fraction in (0.0, 0.01, 0.1, 0.7):
        lines: list[str] = []
        options = PackOptions(validation_fraction=fraction)
        counts = pack("csv", str(tmp_path / f"{fraction}"), str(file), options, lines.append)
        found = [line for line in lines if "validation: " in line]
        warnings[fraction] = (counts.get("validation", 0), *found)
    assert warnings[0.0] == (0,)
    assert warnings[0.01] == (
        0,
        "warning: validation: 0 samples, 8 are needed to score a run; pack again with a larger "
        "--validation-fraction (was 0.01), or train with data.validation=null",
    )
    number, line = warnings[0.1]
    assert number < 8
    assert f"validation: {number} samples, 8 are needed" in line
    assert warnings[0.7][0] >= 8
    assert len(warnings[0.7]) == 1


@pytest.mark.parametrize("shape", [(30, 5, 6), (30, 5, 6, 1), (30, 1, 5, 6)])
def test_grey_images_of_an_array(tmp_path: Path, shape: tuple[int, ...]) -> None:
    rows = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    labels = rows.reshape(30, -1)[:, 0].astype(np.int64)
    np.save(tmp_path / "rows.npy", rows)
    np.save(tmp_path / "labels.npy", labels)
    options = PackOptions(labels=tmp_path / "labels.npy")
    pack("npy", str(tmp_path / "out"), str(tmp_path / "rows.npy"), options)
    images, found = everything(tmp_path / "out/train")
    assert images.shape[1:] == (1, 5, 6)
    assert torch.equal(found, images[:, 0, 0, 0].long())


@pytest.mark.parametrize("last", [True, False])
def test_colour_images_of_an_array(tmp_path: Path, last: bool) -> None:
    rows = np.random.default_rng(0).integers(0, 256, (9, 5, 6, 3), np.uint8)
    np.save(tmp_path / "rows.npy", rows if last else rows.transpose(0, 3, 1, 2))
    options = PackOptions(validation_fraction=0.0)
    pack("npy", str(tmp_path / "out"), str(tmp_path / "rows.npy"), options)
    images, labels = everything(tmp_path / "out/train")
    wanted = {row.transpose(2, 0, 1).tobytes() for row in rows}
    assert {image.numpy().tobytes() for image in images} == wanted
    assert set(labels.tolist()) == {-1}


def test_vectors_come_back_exactly(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(40, 7)).astype(np.float32)
    np.save(tmp_path / "rows.npy", rows)
    assert (
        main(
            [
                "data",
                "pack",
                "npy",
                "--root",
                str(tmp_path / "rows.npy"),
                "--out",
                str(tmp_path / "out"),
            ]
        )
        == 0
    )
    vectors = [
        everything(tmp_path / "out" / part, image_keys=("npy",))[0]
        for part in ("train", "validation")
    ]
    found = torch.cat(vectors)
    assert found.dtype == torch.float32
    assert found.shape == (40, 1, 1, 7)
    assert {row.tobytes() for row in rows} == {row.numpy().tobytes() for row in found}


def test_svhn_without_scipy_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_svhn(tmp_path / "svhn")
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(ConfigError, match=r"pip install 'aae_dist\[pack\]'"):
        pack("svhn", str(tmp_path / "out"), str(tmp_path / "svhn"))
    assert not (tmp_path / "out").exists()


def test_bad_sources_are_one_clear_line(tmp_path: Path) -> None:
    write_cifar(tmp_path / "cifar")
    batch = tmp_path / "cifar/cifar-10-batches-py/data_batch_1"
    batch.write_bytes(batch.read_bytes()[:5000])
    write_svhn(tmp_path / "svhn")
    mat = tmp_path / "svhn/train_32x32.mat"
    mat.write_bytes(mat.read_bytes()[:-40])
    write_svhn(tmp_path / "hdf5")
    (tmp_path / "hdf5/train_32x32.mat").write_bytes(b"MATLAB 7.3 MAT-file".ljust(600))
    write_svhn(tmp_path / "other")
    (tmp_path / "other/train_32x32.mat").write_bytes(
        mat_file(mat_matrix("Z", np.ones((9, 9), np.uint8), 9))
    )
    write_svhn(tmp_path / "text")
    pixels = mat_matrix("X", np.ones((32, 32, 3, 2), np.uint8), 9)
    (tmp_path / "text/train_32x32.mat").write_bytes(
        mat_file(pixels, mat_matrix("y", np.full((2, 1), 49, np.uint8), 4))
    )
    write_celeba(tmp_path / "celeba")
    with (tmp_path / "celeba/celeba/identity_CelebA.txt").open("a") as file:
        file.write("000007.jpg 3\n")
    np.save(tmp_path / "nan.npy", np.full((9, 3), np.nan, np.float32))
    np.save(tmp_path / "flat.npy", np.zeros(9))
    np.save(tmp_path / "odd.npy", np.zeros((9, 4, 4, 2), np.uint8))
    np.save(tmp_path / "text.npy", np.array([["a"], ["b"]]))
    np.save(tmp_path / "objects.npy", np.array([{}, {}], dtype=object))
    (tmp_path / "code.py").write_text("print('numbers')")
    (tmp_path / "empty.npy").write_bytes(b"")
    (tmp_path / "cut.npy").write_bytes((tmp_path / "flat.npy").read_bytes()[:100])
    np.save(tmp_path / "good.npy", np.zeros((9, 3), np.float32))
    np.savez(tmp_path / "archive.npz", np.zeros((9, 3)))
    (tmp_path / "twice.csv").write_text("path,label\na.png,1\na.png,2\n")
    (tmp_path / "column.csv").write_text("file,label\na.png,1\n")
    (tmp_path / "comma.csv").write_text("path,label\na.png,1,2\n")
    (tmp_path / "mixed.csv").write_text("path,label\na.png,1\nb.png,cat\n")
    (tmp_path / "half.csv").write_text("path,label\na.png,1\nb.png,0.5\n")
    (tmp_path / "gone.csv").write_text("path\nnowhere.png\n")
    labels = PackOptions(labels=tmp_path / "nan.npy")
    crop = PackOptions(crop_size=300)
    for name, root, options, problem in (
        ("cifar10", "cifar", PackOptions(), "data_batch_1: "),
        ("svhn", "svhn", PackOptions(), "train_32x32.mat: damaged"),
        ("svhn", "hdf5", PackOptions(), "not a MATLAB 5 file"),
        ("svhn", "other", PackOptions(), "no arrays X and y"),
        ("svhn", "text", PackOptions(), "no arrays X and y"),
        ("celeba", "celeba", PackOptions(), "do not name the same images"),
        ("npy", "nan.npy", PackOptions(), "row .: has numbers that are not finite"),
        ("npy", "flat.npy", PackOptions(), "2 to 4 dimensions"),
        ("npy", "odd.npy", PackOptions(), "1 or 3 channels"),
        ("npy", "text.npy", PackOptions(), "an array of numbers"),
        ("npy", "objects.npy", PackOptions(), "an array of objects, not of numbers; write it"),
        ("npy", "code.py", PackOptions(), r"code\.py: not a \.npy file; write it with numpy\.save"),
        ("npy", "empty.npy", PackOptions(), "not a .npy file"),
        ("npy", "cut.npy", PackOptions(), "damaged, or an array of objects"),
        ("npy", "archive.npz", PackOptions(), "an archive"),
        ("npy", "absent.npy", PackOptions(), r"absent\.npy: cannot be read \(No such file"),
        ("npy", "cifar", PackOptions(), r"cannot be read \(Is a directory\); give the path of a"),
        ("npy", "good.npy", labels, "9 whole numbers are wanted"),
        ("csv", "twice.csv", PackOptions(), "lists a.png twice"),
        ("csv", "column.csv", PackOptions(), "must name the columns path, label"),
        ("csv", "comma.csv", PackOptions(), "line 2 has more values than the 2 columns"),
        ("csv", "mixed.csv", PackOptions(), r"labels are numbers \('1'\) and names \('cat'\)"),
        ("csv", "half.csv", PackOptions(), r"the label '0\.5' is no whole number"),
        ("csv", "gone.csv", PackOptions(), "nowhere.png: cannot read"),
        ("csv", "absent.csv", PackOptions(), "cannot be read as CSV"),
    ):
        with pytest.raises(DataError, match=problem) as caught:
            pack(name, str(tmp_path / "out"), str(tmp_path / root), options)
        assert "\n" not in str(caught.value), name
        assert not (tmp_path / "out").exists()
    write_celeba(tmp_path / "faces")
    with pytest.raises(
        DataError, match="000001.jpg: the image is 218 x 178 pixels, data.crop_size"
    ):
        pack("celeba", str(tmp_path / "out"), str(tmp_path / "faces"), crop)
    with pytest.raises(DataError, match=r"pack csv needs --root FILE.csv"):
        pack("csv", str(tmp_path / "out"))


def test_a_download_that_fails_leaves_no_empty_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("torchvision", "torchvision.datasets"):  # importing them takes seconds
        monkeypatch.setitem(sys.modules, name, Mock())

    def fail(datasets: object) -> None:
        (root / "MNIST/raw").mkdir(parents=True)
        raise RuntimeError("no network")

    root = tmp_path / "new/nope"
    with pytest.raises(DataError, match=r"nope: mnist is not in this folder .*\(no network\)"):
        download("mnist", root, fail)
    assert not (tmp_path / "new").exists()
    root = tmp_path / "kept"
    (root / "mine").mkdir(parents=True)
    with pytest.raises(DataError):
        download("mnist", root, fail)
    assert [path.name for path in root.iterdir()] == ["mine"]


def test_a_batch_of_another_size_is_no_batch(tmp_path: Path) -> None:
    write_cifar(tmp_path)
    images = np.zeros((2, 3, 32, 32), np.uint8)
    (tmp_path / "cifar-10-batches-py/test_batch").write_bytes(cifar_batch(images, [1, 2, 3]))
    with pytest.raises(DataError, match="6144 bytes of pixels, 3 labels"):
        pack("cifar10", str(tmp_path / "out"), str(tmp_path))
