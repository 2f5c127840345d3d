"""Checkpoints of every schema so far load; a newer one is not taken for damage."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers.equality import seal
from helpers.shards import write_shards

import aae_dist
from aae_dist.checkpoints.store import CheckpointStore
from aae_dist.cli import main
from aae_dist.errors import CheckpointError
from aae_dist.storage import open_storage

FROZEN = Path(__file__).parent / "checkpoints"


@pytest.mark.parametrize("schema", [1])
def test_a_frozen_checkpoint_loads_and_computes_what_it_did(
    schema: int, tmp_path: Path, row
) -> None:
    row(
        "25",
        f"a checkpoint that schema {schema} once wrote, frozen with what it computed",
        "loads and computes the same",
    )
    run = tmp_path / "run"
    shutil.copytree(FROZEN / f"schema-{schema}", run)
    expected = json.loads((run / "expected.json").read_text())
    loaded = aae_dist.load_run(str(run))
    assert loaded.step == expected["step"]
    pixels = torch.arange(2 * 16, dtype=torch.uint8).reshape(2, 1, 4, 4) * 7
    codes = loaded.encode(pixels)
    assert torch.allclose(codes, torch.tensor(expected["codes"]), atol=1e-5)
    assert torch.allclose(loaded.decode(codes), torch.tensor(expected["images"]), atol=1e-5)
    saved = CheckpointStore(open_storage(str(run)), keep=1).newest()
    assert saved is not None
    assert {name: sorted(group) for name, group in saved.tensors.items()} == expected["tensors"]
    assert saved.metadata["state"] == expected["state"]


@pytest.mark.run
def test_a_frozen_checkpoint_is_resumed_under_the_present_names_of_keys(tmp_path: Path) -> None:
    shutil.copytree(FROZEN / "schema-1", tmp_path / "run")
    saved = json.loads(next(tmp_path.glob("run/checkpoints/*/config.json")).read_text())
    assert saved["train"]["max_roll_backs"] == 0
    [shard] = write_shards(tmp_path / "data", [64])
    model = "{latent_dim: 2, encoder_widths: [3], decoder_widths: [3], discriminator_widths: [3]}"
    items = [f"run.storage={tmp_path}", "run.name=run", f"data.train={shard}", f"model={model}"]
    items += ["train.steps=10", "train.global_batch_size=8", "launch.kind=local"]
    items += ["phases.generator.optimizer={lr: 0.0005, eps: 1e-8}"]  # once the defaults
    items += ["run.resume=must", "wandb.mode=disabled", "train.max_rollbacks=1"]
    items += ["data.accept_new_shards=true"]  # its labels are others
    assert main(["train", *items]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["step"] == 10
    assert summary["config"]["train"]["max_rollbacks"] == 1


def test_a_newer_schema_is_neither_damaged_nor_passed_over(tmp_path: Path) -> None:
    store = CheckpointStore(open_storage(str(tmp_path)), keep=2)
    for step in (200, 400):
        store.save(step, {"model": {"x": torch.ones(1)}}, {"state": {"step": step}})
    store.wait()
    folder = tmp_path / "checkpoints" / "step-000000400"
    fields = json.loads((folder / "MANIFEST.json").read_text())
    del fields["sha256"]
    fields |= {"schema_version": 2, "compression": "zstd"}
    (folder / "MANIFEST.json").write_bytes(seal(fields))
    with pytest.raises(CheckpointError, match="is of schema 2, .* install the version that wrote"):
        CheckpointStore(open_storage(str(tmp_path)), keep=2).newest()
    assert not (folder / "DAMAGED.json").exists()
