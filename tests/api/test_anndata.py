"""Sparse matrices and AnnData objects: rows stay sparse, labels have names, errors are one line."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers.arrays import small
from helpers.cells import simulated_cells
from helpers.equality import assert_bit_equal

import aae_dist
from aae_dist.api.data import as_arrays, halves
from aae_dist.config.sections.run import Data
from aae_dist.data.arrays import ArrayDataset, SparseRows, hold
from aae_dist.errors import DataError

COUNTS, TYPES = simulated_cells(300, 20)
NAMES = np.array(["B", "NK", "T", "M", "D", "P"])


# Imported by the tests, not by all who collect them: half a second.
def scipy_sparse() -> Any:
    return pytest.importorskip("scipy.sparse")


def annotated(x: Any = None, **layers: Any) -> Any:
    """What of an AnnData object is read."""
    pandas = pytest.importorskip("pandas")
    obs = pandas.DataFrame({"cell_type": NAMES[TYPES], "batch": TYPES % 2, "size": COUNTS.sum(1)})
    obs["cell_type"] = obs["cell_type"].astype("category")
    return SimpleNamespace(X=x, layers=layers, obs=obs, var=None, isbacked=False)


def test_rows_of_sparse_matrices_are_those_of_dense_ones() -> None:
    dense, sparse = as_arrays(COUNTS), as_arrays(scipy_sparse().csr_matrix(COUNTS))
    assert isinstance(sparse.images, SparseRows)
    assert sparse.images.shape == dense.images.shape
    datasets = [ArrayDataset(a, Data(train=hold(a))) for a in (dense, sparse)]
    wanted, got = (d.load([5, 250, 5]) for d in datasets)
    assert (wanted.images == got.images).all()
    assert datasets[0].dtype == datasets[1].dtype
    for expected, part in zip(halves(dense, 0.25), halves(sparse, 0.25), strict=True):
        assert isinstance(part.images, SparseRows)
        assert (part.images[0:300] == expected.images).all()


def test_equal_numbers_have_one_id_however_they_are_held() -> None:
    forms = [scipy_sparse().csr_matrix, scipy_sparse().csc_matrix, scipy_sparse().coo_array]
    ids = {as_arrays(form(COUNTS)).id for form in forms}
    with_zeros = scipy_sparse().csr_matrix(COUNTS.astype(np.int64))
    with_zeros.data[0] = 0
    assert ids == {as_arrays(scipy_sparse().csr_matrix(COUNTS)).id}
    assert as_arrays(with_zeros).id not in ids


def test_layers_and_labels_of_observations() -> None:
    adata = annotated(COUNTS * 2, counts=scipy_sparse().csr_matrix(COUNTS))
    samples = aae_dist.from_anndata(adata, layer="counts", label="cell_type")
    assert (samples.images[0:300][:, 0, 0] == COUNTS).all()
    names = {number: name for name, number in samples.classes.items()}
    assert [names[label] for label in samples.labels.tolist()] == NAMES[TYPES].tolist()
    assert samples.manifest.classes == samples.classes
    assert aae_dist.from_anndata(adata, label="batch").labels.tolist() == (TYPES % 2).tolist()
    assert (aae_dist.from_anndata(adata).images[:, 0, 0] == COUNTS * 2).all()
    adata.obs.loc[3, "cell_type"] = None
    assert aae_dist.from_anndata(adata, label="cell_type").labels[3] == -1


def test_several_columns_are_numbered_together() -> None:
    adata = annotated(COUNTS)
    adata.obs["batch"] = adata.obs["batch"].map({0: "first", 1: "second"})
    samples = aae_dist.from_anndata(adata, label=["cell_type", "batch"])
    types, batches = (adata.obs[n].astype("category").cat.codes for n in ("cell_type", "batch"))
    assert samples.labels.tolist() == np.ravel_multi_index((types, batches), (6, 2)).tolist()
    names = {number: name for name, number in samples.classes.items()}
    assert names[int(samples.labels[3])] == "M, second"
    adata.obs.loc[3, "batch"] = None
    assert aae_dist.from_anndata(adata, label=["cell_type", "batch"]).labels[3] == -1


def backed() -> Any:
    adata = annotated(COUNTS)
    adata.isbacked = True
    return adata


WRONG: dict[str, tuple[Callable[[], Any], dict[str, str], str]] = {
    "layer": (
        lambda: annotated(COUNTS, counts=COUNTS),
        {"layer": "raw"},
        "no layer; it has counts",
    ),
    "column": (
        lambda: annotated(COUNTS),
        {"label": "type"},
        "no column of obs; it has cell_type, batch",
    ),
    "floats": (lambda: annotated(COUNTS), {"label": "size"}, "no classes; give integers or text"),
    "no X": (lambda: annotated(None, counts=COUNTS), {}, "has no X; name a layer; it has counts"),
    "on disk": (backed, {}, "adata.to_memory"),
    "text": (lambda: annotated(NAMES[TYPES][:, None]), {}, "X should be numbers"),
    "nan": (lambda: annotated(scipy_sparse().csr_matrix(COUNTS * np.nan)), {}, "not finite"),
    "empty": (lambda: annotated(scipy_sparse().csr_matrix((0, 4))), {}, "not empty"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said_in_one_line(name: str) -> None:
    make, arguments, message = WRONG[name]
    adata = make()
    with pytest.raises(DataError, match=message) as caught:
        aae_dist.from_anndata(adata, **arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.run
@pytest.mark.timeout(180)
def test_sparse_cells_train_as_dense_ones_and_continue_on_shards(tmp_path: Path) -> None:
    sections: dict[str, Any] = {
        "model": {"decoder_output": "linear"},
        "method": {"reconstruction_loss": "negative_binomial"},
    }
    dense = aae_dist.train(small(tmp_path, run={"name": "a"}, **sections), COUNTS, progress=False)
    cells = annotated(scipy_sparse().csr_matrix(COUNTS))
    sparse = aae_dist.train(small(tmp_path, run={"name": "b"}, **sections), cells, progress=False)
    assert [r["loss/reconstruction"] for r in sparse.history] == [
        r["loss/reconstruction"] for r in dense.history
    ]
    samples = aae_dist.from_anndata(cells, label="cell_type")
    data = {"train": aae_dist.pack(samples, tmp_path / "p"), "image_keys": ["npy"]}
    named = small(tmp_path, run={"name": "c"}, **sections)
    whole = aae_dist.train(named, samples, progress=False)
    packed = small(tmp_path, run={"name": "c"}, data=data, **sections)
    assert aae_dist.train(packed, progress=False).state == "already_finished"
    assert_bit_equal(whole.uri, f"{tmp_path}/c", 24)
    assert set(whole.run.classes.values()) == set(NAMES)
