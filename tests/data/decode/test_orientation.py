"""Photographs stand upright, whichever way the camera was held, as Pillow turns them."""

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.shards import encoded
from PIL import Image, ImageOps

from aae_dist.config.sections.run import Data
from aae_dist.data import open_dataset
from aae_dist.data.decode import images
from aae_dist.data.decode.formats import PREFIX, orientation, read_header
from aae_dist.data.decode.images import decode_image
from aae_dist.data.pack import PackOptions, pack

STORED = np.random.default_rng(0).integers(0, 256, (20, 28, 3), np.uint8)
KINDS = {"PNG": {}, "JPEG": {"quality": 95}, "WEBP": {"lossless": True}}


def exif(number: int, order: str = "<") -> bytes:
    """Return EXIF data with one directory of a make, the orientation and a software."""
    header = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    entries = [(271, 2, 4, 0x0041), (274, 3, 1, number), (305, 2, 4, 0x0041)]
    directory = b"".join(struct.pack(order + "HHIHH", *entry, 0) for entry in entries)
    return PREFIX + header + struct.pack(order + "H", 3) + directory + bytes(4)


def photo(number: int, kind: str = "JPEG", grey: bool = False, order: str = "<") -> bytes:
    image = STORED[:, :, 0] if grey else STORED
    return encoded(np.ascontiguousarray(image), kind, exif=exif(number, order), **KINDS[kind])


def turned_by_pillow(file: bytes, folder: Path) -> np.ndarray:
    (folder / "photo").write_bytes(file)
    with Image.open(folder / "photo") as image:
        mode = "L" if image.mode == "L" else "RGB"
        return np.array(ImageOps.exif_transpose(image).convert(mode))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("number", range(1, 9))
def test_every_orientation_is_turned_as_pillow_turns_it(
    tmp_path: Path, kind: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for order, grey in (("<", False), (">", False), ("<", kind != "WEBP")):
        file = photo(number, kind, grey, order)
        wanted = turned_by_pillow(file, tmp_path)
        header = read_header(file)
        assert header is not None
        assert header[2:5] == (*wanted.shape[:2], number)
        planes = wanted if wanted.ndim == 3 else wanted[..., None]
        wanted_CHW = planes.transpose(2, 0, 1)
        assert np.array_equal(decode_image(file), wanted_CHW)
        with monkeypatch.context() as patched:
            for decoder in ("decode_pngs", "decode_jpegs"):
                patched.setattr(images, decoder, lambda *arguments: {})
            assert np.array_equal(decode_image(file), wanted_CHW)


def test_data_that_name_no_orientation_leave_an_image_as_it_is() -> None:
    good = exif(6)
    long = good.replace(struct.pack("<HHI", 274, 3, 1), struct.pack("<HHI", 274, 4, 1))
    for data in (b"", PREFIX, b"II*\0", good[:20], exif(0), exif(9), long, b"MM" + good[8:]):
        assert orientation(data) == 1
    assert orientation(good) == orientation(good[len(PREFIX) :]) == 6


def everything(folder: Path, **settings: object) -> dict[int, torch.Tensor]:
    data = Data(train=str(folder), **settings)  # type: ignore[arg-type]
    opened = open_dataset(data.train, data)
    images, labels = opened.read(range(len(opened)))
    return dict(zip(labels.tolist(), images, strict=True))


def write_photos(folder: Path, kind: str) -> None:
    for number in range(1, 9):
        path = folder / str(number) / f"a.{kind.lower()}"
        path.parent.mkdir(parents=True)
        path.write_bytes(photo(number, kind))


@pytest.mark.parametrize("kind", KINDS)
def test_packed_at_a_size_and_decoded_at_a_size_are_equal(tmp_path: Path, kind: str) -> None:
    write_photos(tmp_path / "photos", kind)
    for name, size in (("small", 16), ("kept", None)):
        options = PackOptions(image_size=size, validation_fraction=0.0)
        pack("folder", str(tmp_path / name), str(tmp_path / "photos"), options)
    packed = everything(tmp_path / "small/train")
    decoded = everything(tmp_path / "kept/train", image_size=16)
    assert packed.keys() == decoded.keys() == set(range(1, 9))
    assert all(torch.equal(packed[label], decoded[label]) for label in packed)
    assert not torch.equal(packed[1], packed[3])  # orientations 1 and 3
