"""Tensors and metadata keep every bit on their way through the files of a checkpoint."""

import pytest
import torch
from torch import Tensor

from aae_dist.checkpoints.format import decode, encode_metadata, encode_tensors, snapshot
from aae_dist.errors import CheckpointError

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool]


def there_and_back(group: dict[str, Tensor]) -> dict[str, Tensor]:
    return decode(0, encode_tensors(snapshot({"model": group}))).tensors["model"]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_survives(dtype: torch.dtype) -> None:
    values = torch.randint(0, 2, (64,), generator=torch.Generator().manual_seed(0)).to(dtype)
    back = there_and_back({"x": values, "empty": values[:0], "scalar": values[0]})
    assert back["x"].dtype == dtype
    assert torch.equal(back["x"], values)
    assert back["empty"].shape == (0,)
    assert back["scalar"].shape == ()


def test_not_a_number_and_signed_zero_keep_their_bits() -> None:
    bits = torch.tensor([0x7FF8000000000123, 0, 1], dtype=torch.int64)
    odd = torch.cat([bits.view(torch.float64), torch.tensor([-0.0, float("inf")]).double()])
    back = there_and_back({"x": odd})["x"]
    assert torch.equal(back.view(torch.int64), odd.view(torch.int64))


def test_tensors_that_share_memory_or_are_views_are_saved_apart() -> None:
    weight = torch.arange(6.0).reshape(2, 3).requires_grad_()
    group = {"weight": weight, "tied": weight, "turned": weight.T, "row": weight[1]}
    back = there_and_back(group)
    assert all(torch.equal(back[name], group[name]) for name in group)
    back["weight"].zero_()
    assert torch.equal(back["tied"], weight)


def test_a_snapshot_does_not_see_later_changes() -> None:
    weight = torch.ones(3)
    copy = snapshot({"model": {"weight": weight}})["model"]["weight"]
    weight.zero_()
    assert torch.equal(copy, torch.ones(3))


def test_a_sparse_tensor_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"model: x is torch.sparse_coo; only dense"):
        snapshot({"model": {"x": torch.eye(2).to_sparse()}})


def test_a_number_that_json_cannot_hold_is_refused() -> None:
    with pytest.raises(ValueError, match="JSON"):
        encode_metadata({"state": {"loss": float("nan")}})


def test_metadata_keeps_the_order_of_its_keys() -> None:
    files = encode_metadata({"config": {"b": 1, "a": {"z": None, "y": 0.1}}})
    document = decode(0, files).metadata["config"]
    assert list(document) == ["b", "a"]
    assert document == {"b": 1, "a": {"z": None, "y": 0.1}}


@pytest.mark.parametrize("file", ["model.safetensors", "state.json"])
def test_what_cannot_be_parsed_is_a_checkpoint_error(file: str) -> None:
    with pytest.raises(CheckpointError, match=f"{file} cannot be parsed"):
        decode(0, {file: b"\xff" * 16})
