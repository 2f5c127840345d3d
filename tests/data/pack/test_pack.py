import json
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from helpers.shards import encoded

from aae_dist.cli import main
from aae_dist.config.sections.run import Data
from aae_dist.data import open_dataset, open_manifest
from aae_dist.data.pack import PackOptions, pack
from aae_dist.errors import DataError
from aae_dist.storage import open_storage


def write_idx(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    header = bytes((0, 0, 8, values.ndim)) + struct.pack(f">{values.ndim}I", *values.shape)
    path.write_bytes(header + values.tobytes())


def write_mnist(root: Path, name: str = "MNIST") -> dict[str, np.ndarray]:
    numbers = np.random.default_rng(0)
    sets = {}
    for prefix, count in (("train", 25), ("t10k", 7)):
        images = numbers.integers(0, 256, (count, 28, 28), np.uint8)
        write_idx(root / name / "raw" / f"{prefix}-images-idx3-ubyte", images)
        write_idx(root / name / "raw" / f"{prefix}-labels-idx1-ubyte", images[:, 0, 0] % 10)
        sets[prefix] = images
    return sets


@pytest.mark.parametrize(
    ("name", "folder"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")]
)
def test_packed_digits_come_back_exactly(tmp_path: Path, name: str, folder: str) -> None:
    originals = write_mnist(tmp_path / "raw", folder)
    out = tmp_path / "out"
    counts = pack(name, str(out), str(tmp_path / "raw"), PackOptions(shard_samples=10))
    assert counts == {"train": 25, "validation": 7}
    assert sorted(path.name for path in (out / "train").iterdir()) == [
        *("000.tar", "001.tar", "002.tar", "manifest.json")
    ]
    for set_name, prefix in (("train", "train"), ("validation", "t10k")):
        settings = Data(train=str(out / set_name))
        dataset = open_dataset(settings.train, settings)
        images, labels = dataset.read(range(len(dataset)))
        assert torch.equal(images[:, 0], torch.from_numpy(originals[prefix]))
        assert torch.equal(labels, images[:, 0, 0, 0].long() % 10)


def test_stock_webdataset_reads_what_is_packed(tmp_path: Path) -> None:
    originals = write_mnist(tmp_path)
    pack("mnist", str(tmp_path / "out"), str(tmp_path))
    [shard] = open_manifest(str(tmp_path / "out/validation")).shards
    with open(shard.url, "rb") as stream:
        files = webdataset.tariterators.tar_file_expander([{"url": shard.url, "stream": stream}])
        samples = list(webdataset.tariterators.group_by_keys(files))
    assert [int(sample["cls"]) for sample in samples] == (originals["t10k"][:, 0, 0] % 10).tolist()


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    contents = []
    for name in ("a", "b%d"):
        pack("mnist", str(tmp_path / name), str(tmp_path))
        contents.append((tmp_path / name / "train" / "000.tar").read_bytes())
    assert contents[0] == contents[1]
    assert not list(tmp_path.glob(".packing*"))


def write_photos(root: Path, kinds: tuple[str, ...] = ("PNG", "JPEG")) -> None:
    for number in range(60):
        kind = kinds[number % len(kinds)]
        path = root / f"class {number % 3}" / f"{number}.{kind.lower()}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(np.full((8, 12, 3), number, np.uint8), kind))
    (root / "notes.txt").write_text("not an image")


def test_a_folder_is_labelled_by_its_sub_folders_and_split_by_path(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos")
    counts = pack("folder", str(tmp_path / "out"), str(tmp_path / "photos"))
    assert sum(counts.values()) == 60
    assert 1 <= counts["validation"] <= 15
    values = set()
    for name in counts:
        settings = Data(train=str(tmp_path / "out" / name))
        images, labels = open_dataset(settings.train, settings).read(range(counts[name]))
        assert images.shape[1:] == (3, 8, 12)
        numbers = images[:, 0, 0, 0]
        assert torch.equal(labels, numbers.long() % 3)
        values |= set(numbers.tolist())
    assert values == set(range(60))


def test_hidden_and_empty_folders_are_no_classes_and_a_link_may_be_one(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos")
    for name in (".ipynb_checkpoints", "__MACOSX", "class 1", "aa"):
        path = tmp_path / "photos" / name / "._copy.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"resource fork")
    (tmp_path / "photos/.ipynb_checkpoints/copy.png").write_bytes(b"no image")
    (tmp_path / "photos/class 2").rename(tmp_path / "elsewhere")
    (tmp_path / "photos/class 2").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "photos/class 0/circle").symlink_to(tmp_path / "photos")
    counts = pack("folder", str(tmp_path / "out"), str(tmp_path / "photos"))
    assert sum(counts.values()) == 60
    classes = json.loads((tmp_path / "out/classes.json").read_bytes())
    assert classes == ["class 0", "class 1", "class 2"]
    settings = Data(train=str(tmp_path / "out/train"))
    images, labels = open_dataset(settings.train, settings).read(range(counts["train"]))
    assert torch.equal(labels, images[:, 0, 0, 0].long() % 3)


def test_images_in_no_sub_folder_have_no_labels(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos")
    pack("folder", str(tmp_path / "out"), str(tmp_path / "photos/class 1"))
    settings = Data(train=str(tmp_path / "out/train"))
    dataset = open_dataset(settings.train, settings)
    images, labels = dataset.read(range(len(dataset)))
    assert set((images[:, 0, 0, 0] % 3).tolist()) == {1}
    assert set(labels.tolist()) == {-1}
    assert not (tmp_path / "out/classes.json").exists()


def test_images_of_several_sizes_are_kept_with_advice(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos")
    (tmp_path / "photos/class 0/odd.png").write_bytes(encoded(np.zeros((3, 20), np.uint8)))
    lines: list[str] = []
    options = PackOptions(validation_fraction=0.0)
    pack("folder", str(tmp_path / "out"), str(tmp_path / "photos"), options, lines.append)
    assert lines[-1].startswith(
        "The images have 2 sizes, from 3 to 8 pixels high and from 12 to 20"
    )
    assert "train with data.image_size=N, or pack them again with --image-size N" in lines[-1]
    settings = Data(train=str(tmp_path / "out/train"), image_size=4)
    assert open_dataset(settings.train, settings).read(range(61))[0].shape == (61, 3, 4, 4)
    options = PackOptions(validation_fraction=0.0, image_size=4)
    lines.clear()
    pack("folder", str(tmp_path / "small"), str(tmp_path / "photos"), options, lines.append)
    assert not [line for line in lines if "sizes" in line]


def test_16_bit_grey_is_packed_as_it_is_decoded(tmp_path: Path) -> None:
    deep = np.random.default_rng(0).integers(0, 1 << 16, (10, 12), np.uint16)
    (tmp_path / "photos/a").mkdir(parents=True)
    (tmp_path / "photos/a/deep.png").write_bytes(encoded(deep))
    pixels = []
    for name, size, wanted in (("small", 6, None), ("kept", None, 6)):
        options = PackOptions(image_size=size, validation_fraction=0.0)
        pack("folder", str(tmp_path / name), str(tmp_path / "photos"), options)
        settings = Data(train=str(tmp_path / name / "train"), image_size=wanted)
        pixels.append(open_dataset(settings.train, settings).read([0])[0])
    assert torch.equal(*pixels)
    assert abs(pixels[0].float().mean() - 127) < 20  # clipped at 255 it would be near white


def test_files_of_a_folder_are_kept_as_they_are_unless_resized(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", ("JPEG",))
    pack("folder", str(tmp_path / "kept"), str(tmp_path / "photos"))
    pack("folder", str(tmp_path / "small"), str(tmp_path / "photos"), PackOptions(image_size=4))
    with tarfile.open(tmp_path / "kept/train/000.tar") as tar:
        member = tar.extractfile(next(m for m in tar if m.name.endswith(".jpg")))
        assert member is not None
        originals = {path.read_bytes() for path in (tmp_path / "photos").rglob("*.jpeg")}
        assert member.read() in originals
    settings = Data(train=str(tmp_path / "small/train"))
    assert open_dataset(settings.train, settings).image_shape == (3, 4, 4)


def test_packing_into_a_bucket(s3: Callable[[], str], tmp_path: Path) -> None:
    write_mnist(tmp_path)
    bucket = s3()
    pack("mnist", f"{bucket}/digits", str(tmp_path))
    assert open_manifest(f"{bucket}/digits/train").num_samples == 25
    with pytest.raises(DataError, match="not an empty folder"):
        pack("mnist", f"{bucket}/digits", str(tmp_path))
    assert len(open_storage(bucket).list()) == 4


def test_a_target_that_is_not_empty_is_left_alone(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    (tmp_path / "out").mkdir()
    pack("mnist", str(tmp_path / "out"), str(tmp_path))
    before = (tmp_path / "out/train/000.tar").stat().st_mtime_ns
    with pytest.raises(DataError, match="not an empty folder; give another --out"):
        pack("mnist", str(tmp_path / "out"), str(tmp_path))
    assert (tmp_path / "out/train/000.tar").stat().st_mtime_ns == before


def test_bad_sources_are_one_clear_line_and_leave_nothing_behind(tmp_path: Path) -> None:
    write_mnist(tmp_path / "short")
    labels = tmp_path / "short/MNIST/raw/train-labels-idx1-ubyte"
    labels.write_bytes(labels.read_bytes()[:-1])
    write_photos(tmp_path / "loose")
    (tmp_path / "loose/odd.png").write_bytes(encoded(np.zeros((3, 3), np.uint8)))
    write_photos(tmp_path / "sets/mine")
    write_photos(tmp_path / "sets/other")
    write_photos(tmp_path / "broken")
    (tmp_path / "broken/class 0/bad.png").write_bytes(b"%!PS-Adobe")
    (tmp_path / "flat").mkdir()
    for name, root, problem in (
        ("mnist", "short", "damaged or not an IDX file"),
        ("folder", "loose", "odd.png and 0 more lie next to the folders of the classes"),
        ("folder", "sets", r"mine/class 0/0.png lies in .* pack \S+sets/mine by itself"),
        ("folder", "broken", "bad.png: not a readable image"),
        ("folder", "flat", "file in it or its sub-folders"),
        ("folder", "absent", "no such folder"),
        ("cifar", "flat", "use mnist, fashion-mnist, cifar10, svhn, celeba, folder, csv, npy"),
    ):
        with pytest.raises(DataError, match=problem) as caught:
            pack(name, str(tmp_path / "out"), str(tmp_path / root))
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()
        assert not list(tmp_path.glob(".packing*"))


def test_the_command_line_packs_and_indexes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_mnist(tmp_path)
    out = tmp_path / "out"
    assert main(["data", "pack", "mnist", "--root", str(tmp_path), "--out", str(out)]) == 0
    assert f"{out}/train: 25 samples" in capsys.readouterr().out
    assert main(["data", "pack", "mnist", "--root", str(tmp_path), "--out", str(out)]) == 2
    assert "not an empty folder" in capsys.readouterr().err
    index = tmp_path / "train.json"
    assert main(["data", "index", f"{out}/train/*.tar", "--out", str(index)]) == 0
    assert "1 shards, 25 samples" in capsys.readouterr().out
    assert json.loads(index.read_bytes())["shards"][0]["name"] == "000.tar"
    assert open_manifest(str(index)).id == open_manifest(str(out / "train")).id
