"""Write the frozen checkpoint of the present schema: tests/training/checkpoints/schema-N.

    python tools/freeze_checkpoint.py FOLDER

A tiny run on 4 x 4 images, its newest checkpoint and what it computes. To be run once, by whoever
gives the layout a new number; frozen ones are never written again.
"""

import io
import json
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from webdataset import TarWriter

import aae_dist
from aae_dist.checkpoints.store import CheckpointStore
from aae_dist.cli import main as run_command
from aae_dist.storage import open_storage


def write_shard(path: Path) -> None:
    """Write 64 random 4 x 4 images as a shard."""
    with TarWriter(str(path)) as writer:
        for number in range(64):
            pixels = np.random.default_rng(number).integers(0, 256, (4, 4), np.uint8)
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "PNG")
            writer.write({"__key__": f"{number:06d}", "png": buffer.getvalue(), "cls": b"0"})


def main(target: Path) -> None:
    """Train, copy the checkpoint, note what it computes."""
    with tempfile.TemporaryDirectory() as folder:
        write_shard(Path(folder, "000.tar"))
        widths = "encoder_widths: [3], decoder_widths: [3], discriminator_widths: [3]"
        model = f"{{latent_dim: 2, {widths}}}"
        items = ["run.name=run", f"run.storage={folder}", f"data.train={folder}/000.tar"]
        items += ["launch.kind=local", "wandb.mode=disabled", "train.global_batch_size=8"]
        run_command(["train", *items, "train.steps=8", f"model={model}"])
        run = Path(folder, "run")
        shutil.copytree(run / "checkpoints", target / "checkpoints")
        note(run, target)


def note(run: Path, target: Path) -> None:
    """Write expected.json."""
    loaded = aae_dist.load_run(str(run))
    saved = CheckpointStore(open_storage(str(run)), keep=1).newest()
    assert saved is not None
    pixels = torch.arange(2 * 16, dtype=torch.uint8).reshape(2, 1, 4, 4) * 7
    codes = loaded.encode(pixels)
    expected = {
        "step": loaded.step,
        "codes": codes.tolist(),
        "images": loaded.decode(codes).tolist(),
        "tensors": {name: sorted(group) for name, group in saved.tensors.items()},
        "state": saved.metadata["state"],
    }
    (target / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
