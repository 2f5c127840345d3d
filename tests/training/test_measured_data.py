"""What a new run measures of its data: the unit of its weights, and the scaling of features."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from webdataset import TarWriter

from aae_dist import load_run
from aae_dist.checkpoints.store import CheckpointStore
from aae_dist.cli.main import main
from aae_dist.storage import open_storage

VECTORS = ("data.image_keys=[npy]", "model.decoder_output=linear")
SMALL = "latent_dim: 2, encoder_widths: [24], decoder_widths: [24], discriminator_widths: [24]"
COMMON = (
    "train.global_batch_size=32",
    "train.steps=40",
    "train.log_every_steps=20",
    "train.precision=fp64",
    "wandb.mode=disabled",
    "launch.kind=local",
)


def curves(num: int, seed: int = 0) -> NDArray[np.float64]:
    numbers = np.random.default_rng(seed)
    u = numbers.normal(size=(num, 2))
    return np.sin(u @ numbers.normal(size=(2, 6)) + numbers.normal(size=6))


def write_vectors(path: Path, rows: NDArray[Any]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    with TarWriter(str(path)) as tar:
        for number, row in enumerate(rows.astype(np.float32)):
            buffer = io.BytesIO()
            np.save(buffer, row)
            tar.write({"__key__": f"{number:06d}", "npy": buffer.getvalue()})
    return str(path)


def trained(folder: Path, rows: NDArray[Any], *overrides: str) -> Any:
    shard = write_vectors(folder / "data.tar", rows)
    names = (f"data.train={shard}", f"run.storage={folder}/runs", "run.name=run")
    assert main(["train", *names, f"model={{{SMALL}}}", *VECTORS, *COMMON, *overrides]) == 0
    return load_run(f"{folder}/runs/run")


@pytest.mark.run
def test_the_units_of_the_data_change_no_code(tmp_path: Path) -> None:
    """Rows in other units, with another zero: the same codes, and outputs in those units."""
    rows = curves(200)
    plain = trained(tmp_path / "plain", rows)
    scaled = trained(tmp_path / "scaled", 1000 * rows + 5000)
    x = torch.from_numpy(rows).float().reshape(-1, 1, 1, 6)
    codes, codes_scaled = plain.encode(x), scaled.encode(1000 * x + 5000)
    assert torch.allclose(codes, codes_scaled, rtol=0, atol=2e-2)
    out, out_scaled = plain.decode(codes), scaled.decode(codes_scaled)
    assert torch.allclose(1000 * out + 5000, out_scaled, rtol=0, atol=20)
    assert float((out - x).square().mean()) < 0.7 * float(x.var())


@pytest.mark.run
def test_mean_spread_and_baseline_are_those_of_the_first_samples(tmp_path: Path) -> None:
    rows = 3 * curves(200) + 7
    run = trained(tmp_path, rows, "train.steps=1")
    encoder = run._autoencoder.networks.encoder
    rows32 = rows.astype(np.float32).astype(np.float64)
    mean = rows32.mean(0)
    assert encoder.mean.flatten().numpy() == pytest.approx(mean, rel=1e-6)
    assert float(encoder.std) == pytest.approx(np.sqrt(((rows32 - mean) ** 2).mean()), rel=1e-6)
    checkpoint = CheckpointStore(open_storage(run.uri), keep=1).newest()
    assert checkpoint is not None
    baseline = checkpoint.metadata["data"]["baseline_loss"]
    assert baseline == pytest.approx(((rows32 - mean) ** 2).sum(1).mean() / 2, rel=1e-6)


@pytest.mark.run
def test_rows_that_are_all_the_same_are_no_error(tmp_path: Path) -> None:
    run = trained(tmp_path, np.ones((64, 6)), "train.steps=3")
    assert bool(run.encode(torch.ones(2, 1, 1, 6)).isfinite().all())


@pytest.mark.run
def test_numbers_stay_as_they_are_on_request(tmp_path: Path) -> None:
    run = trained(tmp_path, curves(64), "train.steps=2", "data.standardize=false")
    assert not hasattr(run._autoencoder.networks.encoder, "mean")
