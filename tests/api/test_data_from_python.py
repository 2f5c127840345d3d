"""Wrong data from Python: one clear line each, as a new user would meet them."""

from typing import Any

import numpy as np
import pytest
import torch

from aae_dist.api.data import as_arrays, halves
from aae_dist.errors import DataError

X = np.zeros((5, 1, 4, 4), np.uint8)
RAGGED = [np.zeros((3, 4), np.uint8), np.zeros((4, 4), np.uint8)]


class NoLength(torch.utils.data.Dataset):
    def __getitem__(self, number: int) -> Any:
        return X[number]


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self) -> Any:
        return iter(X)


class Growing(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 3

    def __getitem__(self, number: int) -> Any:
        return np.zeros((1, 4, 4 + number), np.uint8)


class HalfLabelled(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 3

    def __getitem__(self, number: int) -> Any:
        return (X[number], 3) if number else X[number]


class Empty(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 0


class Dictionaries(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 3

    def __getitem__(self, number: int) -> Any:
        return {"image": X[number], "class": 1}


NAN = np.ones((4, 3), np.float32)
NAN[2, 1] = np.nan

WRONG: dict[str, tuple[Any, str]] = {
    "ragged": (RAGGED, r"the samples differ in shape \(such as \(3, 4\) and \(4, 4\)\)"),
    "ragged objects": (np.array(RAGGED, object), "the samples differ in shape"),
    "ragged lists": ([[1.0, 2.0], [1.0]], "the samples differ in shape"),
    "nan": (NAN, "1 of 4 samples have numbers that are not finite .* the first is sample 2"),
    "nhwc": (np.zeros((5, 8, 8, 3), np.uint8), "looks like NHWC .*say layout='NHWC'"),
    "alpha": (np.zeros((5, 4, 8, 8), np.uint8), r"x\[:, :3\]"),
    "labels of another length": ((X, np.zeros(4, int)), r"5 samples need 5 labels.*\(4,\)"),
    "labels of floats": ((X, np.zeros(5)), "labels should be integers"),
    "labels of text": ((X, np.array(list("abcde"))), "labels should be integers"),
    "three parts": ((X, X, X), r"a tuple is \(x, y\)"),
    "int64": (np.zeros((5, 4), np.int64), "uint8 .* or floats .*int64"),
    "uint8 vectors": (np.zeros((5, 4), np.uint8), "vectors, which should be floats"),
    "one dimension": (np.zeros(5, np.float32), r"got shape \(5,\)"),
    "empty": (np.zeros((0, 4), np.float32), r"x is empty \(got shape \(0, 4\)\)"),
    "no length": (NoLength(), "NoLength has no length; give a Dataset with __len__"),
    "a stream": (Stream(), "Stream has no length"),
    "a generator": ((x for x in X), "a generator can be read only once"),
    "an iterator": (iter(X), "can be read only once"),
    "a set of numbers": (3.0, r"got float\)"),
    "text": ("data.npy", r"got str\)"),
    "growing": (Growing(), r"the samples differ: uint8 \(1, 4, 4\) and, sample 1"),
    "half labelled": (HalfLabelled(), "some samples have a label and some have none"),
    "a loader": (torch.utils.data.DataLoader(X), "give its samples, loader.dataset"),
    "a dictionary": ({"x": X}, r"x or \(x, y\), arrays or tensors.*got dict"),
    "objects": (np.array([["a", 1.0]], object), "x should hold numbers .got str 'a'"),
    "text in x": (np.array([["a", "b"]]), "x should hold numbers .got str"),
    "none in x": (np.array([[None, 1.0]], object), "got NoneType 'None'"),
    "sparse tensor": (torch.eye(4).to_sparse(), "x.to_dense"),
    "masked": (np.ma.masked_array(NAN, np.isnan(NAN)), "are masked; fill them"),
    "beyond float32": (NAN.astype(np.float64) * 0 + 1e300, "infinite as float32"),
    "no samples": (Empty(), "Empty has no samples"),
    "dictionaries": (Dictionaries(), "sample 0 is a dict with image, class; return two of its"),
    "a list of x and y": ([X, np.zeros(5, int)], r"give x and y as a tuple, \(x, y\)"),
    "pairs": ([(X[0], 1), (X[1], 2)], r"a list of tuples is not read; give \(x, y\)"),
    "a list of words": ([X[0], "a"], "should be arrays of numbers .got str 'a'"),
    "numbers as objects": (np.array([[1, 2.5]], object), r"got object\); .*x.astype\('float32'\)"),
    "a place": ("s3://bucket/*.tar", "name shards as data.train of the configuration"),
    "whole pixels": (np.zeros((5, 8, 8), int), r"got int64\); .*x.astype\('uint8'\)"),
    "16 bits": (np.full((5, 8, 8), 999, np.uint16), r"\(x / x.max\(\)\).astype\('float32'\)"),
    "switches": (np.zeros((5, 8, 8), bool), r"got bool\); .*x.astype\('float32'\)"),
    "one image": (np.zeros((3, 8, 8), np.uint8), "may be one image in colour"),
    "one label": ((X, 3), r"5 samples need 5 labels, of shape \(5,\) \(got shape \(\)\)"),
    "one-hot labels": ((X, np.eye(5, dtype=int)), r"give y.argmax\(1\) of one-hot labels"),
    "labels in a column": ((X, np.zeros((5, 1), int)), r"give y\[:, 0\]"),
    "labels of switches": ((X, np.zeros(5, bool)), r"got bool\); .* by y.astype\(int\)"),
    "names": ((X, np.array(list("abcde"))), r"got text\); .* np.unique"),
    "negative labels": ((X, np.full(5, -2)), r"0 or more, -1 for none \(got -2\)"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_data_are_answered_in_one_line(name: str) -> None:
    data, message = WRONG[name]
    with pytest.raises(DataError, match=message) as caught:
        as_arrays(data)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("data")


def test_a_wrong_layout_is_named() -> None:
    with pytest.raises(DataError, match="say layout='NCHW'"):
        as_arrays(np.zeros((5, 3, 8, 8), np.uint8), layout="NHWC")
    with pytest.raises(DataError, match="should be one of NL, NCL"):
        as_arrays(X, layout="HWC")  # type: ignore[arg-type]


WRONG_LAYOUTS: dict[str, tuple[tuple[int, ...], Any, str]] = {
    "volumes without": ((5, 4, 4, 4, 1), None, "say layout='NCDHW' or layout='NDHWC'"),
    "dimensions": ((5, 4, 4), "NHWC", "has 4 dimensions, and x has shape"),
    "signals": ((5, 64, 3), "NCL", "say layout='NLC'"),
    "volumes": ((5, 6, 6, 6, 1), "NCDHW", "say layout='NDHWC'"),
    "too many": ((5, 1, 1, 1, 1, 1), None, "signals or volumes with a layout"),
}


@pytest.mark.parametrize("name", WRONG_LAYOUTS)
def test_wrong_layouts_are_answered_in_one_line(name: str) -> None:
    shape, layout, message = WRONG_LAYOUTS[name]
    with pytest.raises(DataError, match=message) as caught:
        as_arrays(np.zeros(shape, np.float32), layout)
    assert "\n" not in str(caught.value)


def test_signals_and_volumes_have_their_channels_first() -> None:
    x = np.random.default_rng(0).random((5, 6, 7, 8, 2), np.float32)
    assert (as_arrays(x, "NDHWC").images == x.transpose(0, 4, 1, 2, 3)).all()
    assert (as_arrays(x[..., 0], "NDHW").images == x[:, None, ..., 0]).all()
    assert (as_arrays(x[:, :, 0, 0], "NLC").images == x[:, :, 0, 0].transpose(0, 2, 1)).all()
    assert as_arrays(x[:, :, 0, 0, 0], "NL").images.shape == (5, 1, 6)
    assert as_arrays(np.zeros((5, 4, 8, 8), np.uint8), "NCHW").images.shape == (5, 4, 8, 8)


def test_layouts_and_types_give_one_form() -> None:
    x = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3)
    nhwc = as_arrays(x, "NHWC").images
    assert nhwc.shape == (2, 3, 4, 5)
    assert (nhwc == as_arrays(torch.from_numpy(x).permute(0, 3, 1, 2)).images).all()
    assert as_arrays(x[..., 0]).images.shape == (2, 1, 4, 5)
    vectors = as_arrays(np.ones((2, 7), np.float64)).images
    assert (vectors.shape, vectors.dtype) == ((2, 1, 1, 7), np.float32)
    assert as_arrays(torch.ones(2, 7, dtype=torch.bfloat16)).images.dtype == np.float32
    assert as_arrays([torch.ones(7), torch.zeros(7)]).images.shape == (2, 1, 1, 7)
    of_arrays = np.empty(2, object)
    of_arrays[:] = [np.ones(7), np.zeros(7)]
    assert as_arrays(of_arrays).images.shape == (2, 1, 1, 7)
    assert as_arrays(np.zeros((3, 8, 8), np.uint8), "NHW").images.shape == (3, 1, 8, 8)
    assert as_arrays((X, [1, 2, 3, 4, -1])).labels.tolist() == [1, 2, 3, 4, -1]
    assert as_arrays(X).labels.tolist() == [-1] * 5


def test_equal_samples_have_one_id_and_others_another() -> None:
    ids = {
        as_arrays(X).id,
        as_arrays(X.copy()).id,
        as_arrays((X, np.zeros(5, int))).id,
        as_arrays(X.astype(np.float32)).id,
        as_arrays(X.reshape(5, 1, 2, 8)).id,
    }
    assert len(ids) == 4


def test_a_fraction_splits_evenly_and_without_overlap() -> None:
    arrays = as_arrays(np.arange(50, dtype=np.float32)[:, None])
    train, validation = halves(arrays, 0.1)
    held = validation.images.ravel()
    assert (held // 10).tolist() == [0, 1, 2, 3, 4]  # one of each ten
    assert sorted([*held, *train.images.ravel()]) == list(range(50))
    # Not in step with data that takes turns, as MNIST's two sources do.
    _, validation = halves(as_arrays((np.arange(1000, dtype=np.float32) % 2)[:, None]), 0.1)
    assert 0.35 < validation.images.mean() < 0.65
    for fraction in (0.0, 1.0, 0.001):
        with pytest.raises(DataError, match="validation"):
            halves(arrays, fraction)
