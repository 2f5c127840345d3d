"""What of the data is not used as given is told once, with a number."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.shards import encoded, image_of

from aae_dist.cli import main
from aae_dist.config.sections.run import Data
from aae_dist.data import Dataset, build_index, open_dataset, open_manifest

Add = Callable[[str, bytes], None]
TRAIN = (
    *("launch.kind=local", "run.name=a", "train.global_batch_size=4", "model.latent_dim=2"),
    *("prior.kind=gaussian", "wandb.mode=disabled"),
)


def write_tar(path: Path, fill: Callable[[tarfile.TarFile, Add], None], **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT, **options) as tar:

        def add(name: str, data: bytes) -> None:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))

        fill(tar, add)
    return path.parent


def link(tar: tarfile.TarFile, name: str, target: str, kind: bytes = tarfile.LNKTYPE) -> None:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    tar.addfile(info)


def opened(folder: Path, **settings: object) -> Dataset:
    data = Data(train=str(folder), **settings)  # type: ignore[arg-type]
    return open_dataset(data.train, data)


def told(dataset: Dataset) -> str:
    dataset.load(range(len(dataset)))
    return "\n".join(dataset.unused_lines(dataset.unused.counts, len(dataset)))


def fill_with_links(tar: tarfile.TarFile, add: Add) -> None:
    for number in range(40):
        add(f"{number:05d}.png", encoded(image_of(number)))
        if number % 2:
            link(tar, f"{number:05d}x.png", f"{number:05d}.png")
        if number % 4 == 0:
            link(tar, f"{number:05d}y.png", f"{number:05d}.png", tarfile.SYMTYPE)


def test_hard_links_are_the_linked_sample_and_other_links_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_tar(tmp_path / "s/000.tar", fill_with_links)
    data = opened(folder)
    assert len(data) == 60
    keys = data.keys(range(60))
    images = data.read(range(60))[0]
    for key, image in zip(keys, images, strict=True):
        assert np.array_equal(image[0].numpy(), image_of(int(key.removesuffix("x"))))
    [line] = data.unused_members()
    assert line.startswith(
        "10 members of shards are in no sample: 10 symbolic links (first: 00000y"
    )
    build_index(str(folder))
    assert open_manifest(str(folder)).shards[0].unused == 10
    assert main(["data", "verify", str(folder)]) == 0
    assert "not used as given: 10 members of shards" in capsys.readouterr().out
    assert main(["data", "verify", str(folder), "--json"]) == 0
    assert "10 symbolic links" in json.loads(capsys.readouterr().out)["notes"][0]


def test_links_of_any_length_to_any_earlier_name_are_found(tmp_path: Path) -> None:
    long, longer = "d/" * 60 + "a.png", "e/" * 60 + "b.png"

    def fill(tar: tarfile.TarFile, add: Add) -> None:
        add(long, encoded(image_of(1)))
        link(tar, longer, long)
        link(tar, "c.png", longer)  # a link to a link
        link(tar, "d.png", "./c.png")
        link(tar, "e.png", "f.png")  # to a file that comes later
        add("f.png", encoded(image_of(2)))
        add("README", b"no suffix")
        add(".DS_Store", b"hidden")

    for format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        folder = tmp_path / str(format)
        write_tar(folder / "a.tar", fill, dereference=False)
        data = opened(folder)
        assert data.keys(range(len(data))) == [long[:-4], longer[:-4], "c", "d", "f"]
        assert np.array_equal(data.read([3])[0][0, 0].numpy(), image_of(1))
        [line] = data.unused_members()
        assert "3 members" in line
        assert "1 hard links to no file before them" in line
        assert "2 files without a key" in line


def grey_first(tar: tarfile.TarFile, add: Add) -> None:
    for number in range(20):
        add(f"{number}.png", encoded(image_of(number, 3 if number else 1)))


def deep(tar: tarfile.TarFile, add: Add) -> None:
    for number in range(20):
        add(f"{number}.png", encoded(image_of(number).astype(np.uint16) * 16))


def black_on_transparent(tar: tarfile.TarFile, add: Add) -> None:
    pixels = np.zeros((4, 4, 4), np.uint8)
    for number in range(20):
        pixels[:2, 1:, 3] = 255
        kind, options = ("WEBP", {"lossless": True}) if number % 2 else ("PNG", {})
        add(f"{number}.{kind.lower()}", encoded(pixels, kind, **options))


def with_bad_labels(tar: tarfile.TarFile, add: Add) -> None:
    for number in range(20):
        add(f"{number}.png", encoded(image_of(number)))
        add(f"{number}.cls", b"seven" if number < 3 else b"7")


@pytest.mark.parametrize(
    ("fill", "lines", "settings"),
    [
        (grey_first, ["19 of 20 images in colour are made grey, as the first one is"], {}),
        (grey_first, [], {"channels": 1}),
        (grey_first, [], {"channels": 3}),
        (deep, ["20 of 20 images have 16 bits per channel, of which the upper 8 are used"], {}),
        (
            black_on_transparent,
            ["20 of 20 images have an alpha channel", "20 of 20 images with an alpha channel have"],
            {},
        ),
        (with_bad_labels, ["3 of 20 labels cannot be read"], {}),
        (with_bad_labels, [], {"label_key": None}),
        (with_bad_labels, ["20 of 20 samples lack what data.label_key names"], {"label_key": "x"}),
    ],
)
def test_what_decoding_leaves_out_is_counted(
    tmp_path: Path, fill: Any, lines: list[str], settings: dict[str, Any]
) -> None:
    data = opened(write_tar(tmp_path / "s/000.tar", fill), **settings)
    assert not data.load(range(20)).bad
    found = told(data)
    assert [line for line in lines if line not in found] == []
    assert len(found.splitlines()) == len(lines)
    assert told(data) == ""  # once


@pytest.mark.parametrize(
    ("key", "has"), [("clas", "no 'clas'; it has png, cls, json"), ("json:clas", "no entry 'clas'")]
)
def test_a_mistyped_label_key_is_told_with_what_there_is(
    tmp_path: Path, key: str, has: str
) -> None:
    def fill(tar: tarfile.TarFile, add: Add) -> None:
        for number in range(20):
            add(f"{number}.png", encoded(image_of(number)))
            add(f"{number}.cls", b"7")
            add(f"{number}.json", b'{"class": 7}')

    data = opened(write_tar(tmp_path / "s/000.tar", fill), label_key=key)
    [line] = told(data).splitlines()
    assert line.startswith("20 of 20 samples lack what data.label_key names: they have no label")
    assert has in line


def test_an_image_counts_once_however_often_it_is_decoded(tmp_path: Path) -> None:
    data = opened(write_tar(tmp_path / "s/000.tar", deep), decoded="none")
    for _ in range(3):
        data.load(range(20))
    assert data.unused.counts == {"depth": 20}


@pytest.mark.run
def test_a_run_with_bad_labels_trains_and_tells_each_kind_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fill(tar: tarfile.TarFile, add: Add) -> None:
        for number in range(200):
            add(f"{number:03d}.png", encoded(image_of(number).astype(np.uint16) * 16))
            add(f"{number:03d}.cls", b"seven" if number == 1 else b"7")
        link(tar, "x.png", "y.png")

    folder = write_tar(tmp_path / "s/000.tar", fill)
    arguments = ["train", *TRAIN, f"data.train={folder}", f"run.storage={tmp_path}/runs"]
    assert main([*arguments, "train.epochs=2", "data.max_bad_samples=0"]) == 0
    output = capsys.readouterr()
    lines = [x for x in (output.out + output.err).splitlines() if x.startswith("warning: data.tr")]
    assert len(lines) == 3
    assert "64 of 64 images have 16 bits" in "\n".join(lines)
    assert "1 members of shards are in no sample" in "\n".join(lines)
    assert "1 of 200 labels cannot be read" in lines[-1]
    assert "(first: 001: the label is not an integer (got b" in lines[-1]


def test_packing_tells_what_its_images_lose(tmp_path: Path) -> None:
    from aae_dist.data.pack import PackOptions, pack

    for number in range(12):
        path = tmp_path / "raw" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encoded(image_of(number).astype(np.uint16) * 16))
    lines: list[str] = []
    pack("folder", str(tmp_path / "out"), str(tmp_path / "raw"), PackOptions(), lines.append)
    assert [line for line in lines if line.startswith("warning: 12 of 12 images have 16 bits")]
