import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.shards import encoded, image_of, sample, write_shards
from webdataset import TarWriter

from aae_dist.config.sections.run import Data
from aae_dist.data import Dataset, open_dataset
from aae_dist.data.decode import sample as sample_module
from aae_dist.errors import DataError
from aae_dist.storage import open_storage


def opened(url: object, **settings: object) -> Dataset:
    data = Data.model_validate({"train": str(url), **settings})
    return open_dataset(data.train, data)


@pytest.mark.parametrize("decoded", ["none", "memory"])
@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
def test_samples_are_read_by_their_number(tmp_path: Path, decoded: str, suffix: str) -> None:
    write_shards(tmp_path, [3, 0, 4, 1], suffix)
    dataset = opened(tmp_path, decoded=decoded)
    assert dataset.image_shape == (1, 4, 4)
    wanted = [7, 0, 3, 3, 2]
    for _ in range(2):
        images, labels = dataset.read(np.array(wanted))
        assert images.dtype == torch.uint8
        assert images.shape == (5, 1, 4, 4)
        assert images[:, 0].numpy().tolist() == [image_of(n).tolist() for n in wanted]
        assert labels.tolist() == wanted
    assert dataset.keys(wanted) == [f"{n:06d}" for n in wanted]


def test_memory_serves_later_reads_without_the_files(tmp_path: Path) -> None:
    paths = write_shards(tmp_path, [5])
    kept, not_kept = opened(tmp_path, decoded="auto"), opened(tmp_path, decoded="none")
    first, _ = kept.read(range(5))
    paths[0].unlink()
    for dataset in (kept, not_kept):
        for number in range(1):
            dataset.shards.get(number).release()
    assert torch.equal(kept.read(range(5))[0], first)
    with pytest.raises(DataError, match="cannot read the shard"):
        not_kept.read(range(5))


def write(folder: Path, *samples: dict[str, str | bytes]) -> Path:
    with TarWriter(str(folder / "a.tar")) as writer:
        for fields in samples:
            writer.write(fields)
    return folder


def test_a_sample_without_label_has_minus_one(tmp_path: Path) -> None:
    write(tmp_path, {"__key__": "a", "jpg": encoded(image_of(0), "JPEG")}, sample(7))
    assert opened(tmp_path).read([0, 1])[1].tolist() == [-1, 7]
    assert opened(tmp_path, label_key=None).read([1])[1].tolist() == [-1]


def test_grey_and_colour_become_what_the_configuration_says(tmp_path: Path) -> None:
    write(tmp_path, {"__key__": "a", "png": encoded(image_of(0, 3))}, sample(7))
    assert opened(tmp_path).image_shape == (3, 4, 4)
    assert opened(tmp_path).read([1])[0].shape == (1, 3, 4, 4)
    assert opened(tmp_path, channels=1).read([0, 1])[0].shape == (2, 1, 4, 4)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"png": encoded(np.zeros((5, 4), np.uint8))}, "5 x 4 pixels, wanted 4 x 4"),
        ({"png": b"no image"}, "not a PNG, JPEG or WebP"),
        ({"txt": b"no image"}, "no image field .*data.image_keys wants one of png"),
        ({"pyd": b"cos\nsystem\n(S'touch canary'\ntR."}, "no image field"),
    ],
)
def test_a_bad_sample_is_named(
    tmp_path: Path, fields: dict[str, bytes], problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, sample(0), {"__key__": "bad\x1b[2J", **fields})
    dataset = opened(tmp_path)
    with pytest.raises(DataError, match=problem) as caught:
        dataset.read([0, 1])
    assert str(caught.value).startswith(f"{tmp_path}/a.tar, sample 'bad\\x1b[2J': ")
    assert not Path("canary").exists()


def test_a_bad_first_sample_is_named_at_the_start(tmp_path: Path) -> None:
    write(tmp_path, {"__key__": "x/first", "txt": b"no image"})
    with pytest.raises(DataError, match=r"a\.tar, sample 'x/first': no image field"):
        opened(tmp_path)


def test_shards_in_a_bucket_give_the_same(
    s3: Callable[[], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    bucket = open_storage(s3()).child("train")
    for path in write_shards(tmp_path / "data", [3, 2], ".tar.gz"):
        bucket.upload(path.name, path)
    local, remote = opened(tmp_path / "data"), opened(bucket.uri)
    assert local.manifest.id == remote.manifest.id
    assert torch.equal(local.read(range(5))[0], remote.read(range(5))[0])


def test_the_built_in_digits_are_real_balanced_and_complete() -> None:
    for name, count in (("train", 800), ("validation", 200)):
        dataset = opened(f"builtin://digits/{name}")
        images, labels = dataset.read(np.arange(len(dataset)))
        assert torch.bincount(labels).tolist() == [count] * 10
        assert images.shape == (10 * count, 1, 28, 28)
        assert 30 < images.float().mean() < 40
        assert len({image.tobytes() for image in images.numpy()}) == 10 * count
        folder = Path(dataset.manifest.shards[0].folder)
        assert "ShareAlike 3.0" in (folder.parent / "README.md").read_text()


@pytest.mark.parametrize(("at_once", "sizes"), [(1, [1] * 5), (1 << 20, [5])])
def test_files_are_held_up_to_a_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int, sizes: list[int]
) -> None:
    monkeypatch.setattr(sample_module, "_BYTES_PER_GROUP", at_once)
    write_shards(tmp_path, [5])
    held = []
    decode = sample_module.decoding.decode_images
    monkeypatch.setattr(
        sample_module.decoding,
        "decode_images",
        lambda *args: held.append(len(args[1])) or decode(*args),
    )
    images, labels = opened(tmp_path, decoded="none").read(range(5))
    assert held == sizes
    assert labels.tolist() == list(range(5))
    assert all(np.array_equal(images[n, 0], image_of(n)) for n in range(5))


def test_one_file_above_the_bound_is_held_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 4 << 20
    monkeypatch.setattr(sample_module, "_BYTES_PER_GROUP", size // 2)
    image = encoded(image_of(0)) + bytes(size)  # what follows an image is not looked at
    write(tmp_path, *({"__key__": f"{n}", "png": image} for n in range(4)))
    dataset = opened(tmp_path, decoded="none")
    dataset.read([0])
    tracemalloc.start()
    try:
        dataset.load(range(4))
        assert tracemalloc.get_traced_memory()[1] < 1.5 * size
    finally:
        tracemalloc.stop()


def test_an_index_replaced_while_a_sample_is_looked_up_is_used_whole(tmp_path: Path) -> None:
    write(tmp_path, {**sample(3), "a": b"", "b": b""})
    dataset = opened(tmp_path)
    reader = dataset.shards.get(0)
    first = reader.index
    names = type(first).names

    class Replaced(type(first)):
        def names(self, number: int) -> object:
            reader.index = type(first)()  # as another thread does that finds another file
            return names(self, number)

    reader.index = Replaced(**vars(first))
    images, labels = dataset.read([0])
    assert labels.tolist() == [3]
    assert np.array_equal(images[0, 0], image_of(3))
