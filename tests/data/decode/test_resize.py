from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.shards import encoded
from PIL import Image
from webdataset import TarWriter

from aae_dist.config.sections.run import Data
from aae_dist.data import open_dataset
from aae_dist.data.decode import images
from aae_dist.data.pack import PackOptions, pack
from aae_dist.errors import DataError

SIZES = ((40, 60), (64, 32), (24, 24), (90, 100))


def picture(number: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8)


def write(folder: Path, kind: str = "png") -> str:
    folder.mkdir()
    with TarWriter(str(folder / "0.tar")) as writer:
        for number, size in enumerate(SIZES):
            options = {"lossless": True} if kind == "webp" else {}
            data = encoded(picture(number, *size), kind.upper(), **options)
            writer.write({"__key__": f"{number}", kind: data, "cls": b"0"})
    return str(folder)


def read(folder: str, **settings: object) -> torch.Tensor:
    data = Data(train=folder, **settings)  # type: ignore[arg-type]
    return open_dataset(folder, data).read(range(len(SIZES)))[0]


def test_images_of_all_sizes_become_the_size_that_is_asked_for(tmp_path: Path) -> None:
    images = read(write(tmp_path / "a"), image_size=20)
    assert images.shape == (4, 3, 20, 20)
    side = Image.fromarray(picture(0, 40, 60)[:, 10:50]).resize((20, 20), Image.Resampling.LANCZOS)
    # At the cut edges the filter also sees what is cut off.
    inner = (slice(None), slice(3, -3))
    assert np.array_equal(images[0].permute(1, 2, 0).numpy()[inner], np.asarray(side)[inner])


def test_stretching_keeps_all_of_the_image_and_cropping_scales_nothing(tmp_path: Path) -> None:
    folder = write(tmp_path / "a")
    stretched = read(folder, image_size=20, resize="stretch")
    whole = Image.fromarray(picture(0, 40, 60)).resize((20, 20), Image.Resampling.LANCZOS)
    assert np.array_equal(stretched[0].permute(1, 2, 0).numpy(), np.asarray(whole))
    cropped = read(folder, image_size=20, resize="crop")
    assert np.array_equal(cropped[0].permute(1, 2, 0).numpy(), picture(0, 40, 60)[10:30, 20:40])


def test_a_square_is_cut_out_before(tmp_path: Path) -> None:
    folder = write(tmp_path / "a")
    cut = read(folder, crop_size=24)
    assert np.array_equal(cut[0].permute(1, 2, 0).numpy(), picture(0, 40, 60)[8:32, 18:42])
    small = read(folder, crop_size=24, image_size=12)
    square = Image.fromarray(picture(0, 40, 60)[8:32, 18:42])
    wanted = square.resize((12, 12), Image.Resampling.LANCZOS)
    assert np.array_equal(small[0].permute(1, 2, 0).numpy(), np.asarray(wanted))


def test_shrinking_averages_instead_of_picking_pixels(tmp_path: Path) -> None:
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::2] = 255
    with TarWriter(str(tmp_path / "0.tar")) as writer:
        writer.write({"__key__": "0", "png": encoded(stripes)})
    data = Data(train=str(tmp_path), image_size=16)
    inner = open_dataset(data.train, data).read([0])[0][0, 0, :, 2:-2].int()
    assert (inner - 127).abs().max() <= 4


def test_packing_at_a_size_and_decoding_at_a_size_give_equal_pixels(tmp_path: Path) -> None:
    for number, size in enumerate(SIZES):
        path = tmp_path / "photos" / "a" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(number, *size)).save(path)
    options = PackOptions(image_size=20, validation_fraction=0.0)
    pack("folder", str(tmp_path / "out"), str(tmp_path / "photos"), options)
    packed = read(str(tmp_path / "out/train"))
    decoded = read(write(tmp_path / "a"), image_size=20)
    as_sets = [{image.numpy().tobytes() for image in images} for images in (packed, decoded)]
    assert as_sets[0] == as_sets[1]


def test_every_decoder_and_any_number_of_threads_give_equal_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path / "png")
    wanted = read(folder, image_size=20)
    assert torch.equal(read(write(tmp_path / "webp", "webp"), image_size=20), wanted)
    data = Data(train=folder, image_size=20, decoded="none")
    dataset = open_dataset(folder, data)
    rows = np.tile(np.arange(4), 32)
    with ThreadPoolExecutor(4) as pool:
        assert torch.equal(dataset.load(rows, pool).images, wanted.repeat(32, 1, 1, 1))
    for decoder in ("decode_pngs", "decode_jpegs"):
        monkeypatch.setattr(images, decoder, lambda *arguments: {})
    assert torch.equal(read(folder, image_size=20), wanted)


def test_ways_to_resize_do_not_share_decoded_pixels(tmp_path: Path) -> None:
    folder = write(tmp_path / "a")
    settings = [Data(train=folder, image_size=20, resize=how) for how in ("cover", "stretch")]
    both = [open_dataset(folder, each) for each in settings]
    cover, stretched = (dataset.read(range(4))[0] for dataset in both)
    assert not torch.equal(cover[0], stretched[0])
    assert torch.equal(cover[2], stretched[2])  # a square is the same either way


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({}, "64 x 32 pixels, wanted 40 x 60; give data.image_size"),
        ({"image_size": 30, "resize": "crop"}, "24 x 24 pixels, data.resize=crop cuts 30 x 30"),
        ({"image_size": 40, "resize": "none"}, "wanted 40 x 40"),
        ({"crop_size": 50}, "data.crop_size=50 needs larger ones"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(tmp_path: Path, settings: dict, problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        read(write(tmp_path / "a"), **settings)
