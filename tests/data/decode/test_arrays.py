import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.shards import encoded, image_of
from webdataset import TarWriter

from aae_dist.config.sections.run import Data
from aae_dist.data import Dataset, open_dataset
from aae_dist.data.decode.sample import decode_array
from aae_dist.errors import DataError, SampleError


def saved(array: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


NUMBERS = np.random.default_rng(0).normal(size=(2, 3, 5)).astype(np.float32)
PIXELS = image_of(1, 3)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (NUMBERS[0, 0], NUMBERS[0, 0].reshape(1, 1, 5)),
        (NUMBERS[0], NUMBERS[0].reshape(1, 3, 5)),
        (NUMBERS, NUMBERS),
        (np.asfortranarray(NUMBERS), NUMBERS),
        (NUMBERS.T, NUMBERS.T),
        (PIXELS, PIXELS),
    ],
)
def test_an_array_becomes_three_dimensional(array: np.ndarray, expected: np.ndarray) -> None:
    got = decode_array(saved(array))
    assert got.dtype == expected.dtype
    assert np.array_equal(got, expected)


class Payload:
    """What a pickle of it does: make a file called canary."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, ("canary", "w"))


HUGE = b"\x93NUMPY\x01\x00\x76\x00{'descr': '<f4', 'fortran_order': False, 'shape': (%s,), }"


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (saved(np.array([Payload()], object), allow_pickle=True), r"of type '\|O'"),
        (pickle.dumps(Payload()), "not a .npy array"),
        (b"", "not a .npy array"),
        (saved(NUMBERS)[:40], "not a .npy array"),
        (saved(NUMBERS)[:-1], "needs 120 bytes and has 119"),
        (saved(NUMBERS) + b"x", "needs 120 bytes and has 121"),
        ((HUGE % b"9" * 30).ljust(128), "not a .npy array|needs"),
        ((HUGE % b"4000000000000").ljust(128), "needs 16000000000000 bytes and has 0"),
        ((HUGE % (b"(" * 60)).ljust(128), "not a .npy array"),
        ((HUGE % b"-1").ljust(128), "not a .npy array|has shape"),
        (saved(NUMBERS.astype(np.float64)), "of type '<f8'; uint8 and float32 are read"),
        (saved(NUMBERS.astype(">f4")), "of type '>f4'"),
        (saved(np.zeros(3, [("a", "<f4")])), "of type"),
        (saved(np.float32(1)), "1 to 3 dimensions"),
        (saved(NUMBERS[:, :0]), "none empty"),
        (saved(np.array([1, np.nan], np.float32)), "not finite"),
        (saved(np.array([1, np.inf], np.float32)), "not finite"),
        (b"\x93NUMPY\x09\x00" + saved(NUMBERS)[8:], "not a .npy array|version"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + b" " * 200, "not a .npy array"),
    ],
)
def test_what_is_no_plain_array_is_refused(
    data: bytes, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SampleError, match=problem) as caught:
        decode_array(data)
    assert caught.value.reason == "array"
    assert not Path("canary").exists()


def opened(folder: Path, *samples: dict[str, Any], **settings: Any) -> Dataset:
    with TarWriter(str(folder / "a.tar")) as writer:
        for number, fields in enumerate(samples):
            writer.write({"__key__": f"{number:03d}", **fields})
    data = Data.model_validate({"train": str(folder), "image_keys": ("npy",), **settings})
    return open_dataset(data.train, data)


@pytest.mark.parametrize("decoded", ["none", "memory"])
def test_vectors_become_rows_of_a_float_batch(tmp_path: Path, decoded: str) -> None:
    vectors = np.random.default_rng(1).normal(size=(4, 7)).astype(np.float32)
    samples = [{"npy": saved(v), "cls": str(n).encode()} for n, v in enumerate(vectors)]
    dataset = opened(tmp_path, *samples, decoded=decoded)
    assert (dataset.image_shape, dataset.dtype) == ((1, 1, 7), torch.float32)
    for _ in range(2):
        rows, labels = dataset.read([3, 0, 3])
        assert rows.dtype == torch.float32
        assert np.array_equal(rows[:, 0, 0].numpy(), vectors[[3, 0, 3]])
        assert labels.tolist() == [3, 0, 3]


def test_arrays_of_bytes_are_images(tmp_path: Path) -> None:
    dataset = opened(tmp_path, {"x.npy": saved(image_of(3))}, image_keys=("x.npy",))
    assert (dataset.image_shape, dataset.dtype) == ((1, 4, 4), torch.uint8)
    assert np.array_equal(dataset.read([0])[0][0, 0].numpy(), image_of(3))


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"npy": saved(np.zeros(8, np.float32))}, r"array of shape \(1, 1, 8\), wanted float32"),
        ({"npy": saved(np.zeros(7, np.uint8))}, "a uint8 array"),
        ({"png": encoded(image_of(0))}, "an image, wanted a float32 array"),
    ],
)
def test_an_array_unlike_the_others_is_a_bad_sample(
    tmp_path: Path, fields: dict[str, bytes], problem: str
) -> None:
    good = {"npy": saved(np.ones(7, np.float32))}
    dataset = opened(tmp_path, good, fields, good, image_keys=("npy", "png"))
    samples = dataset.load([0, 1, 2, 1])
    assert list(samples.bad) == [1, 3]
    assert not samples.images[1].any()
    assert samples.images[2].all()
    with pytest.raises(DataError, match=rf"a\.tar, sample '001': .*{problem}"):
        dataset.read([0, 1])
