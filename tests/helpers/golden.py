"""Golden checkpoints: the hashes of what eight tiny runs end with, per kind of machine.

`PYTHONPATH=tests python -m helpers.golden` adds the hashes of this machine to golden.json. It must
be run on a commit whose numbers are known to be right.
"""

import hashlib
import io
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from helpers.runs import final_tensors, run
from helpers.shards import encoded
from numpy.typing import NDArray
from webdataset import TarWriter

from aae_dist.cli.main import main

GOLDEN = Path(__file__).parents[1] / "end_to_end" / "golden.json"
STEPS = 24

COMMON = (
    "run.name=golden",
    "run.seed=3",
    "train.global_batch_size=48",
    f"train.steps={STEPS}",
    "train.log_every_steps=6",
    "wandb.mode=disabled",
    "launch.kind=local",
)
FORMER = (
    "phases.reconstruction.optimizer.lr=2e-3",
    "phases.discriminator.optimizer.lr=1e-3",
    "phases.generator.optimizer={lr: 1e-3, betas: [0.5, 0.999], eps: 1e-3}",
    "data.standardize=false",
    "train.best_metric=prior_match/c2st",
)
"""What was the default when the hashes were made."""
WIDTHS = "encoder_widths: [32], decoder_widths: [32], discriminator_widths: [32]"
CONVOLUTIONS = "encoder_width: 4, decoder_width: 4, discriminator_widths: [32]"
MLP = ("DATA=grey", f"model={{latent_dim: 2, {WIDTHS}}}")
CONV = (
    "DATA=colour",
    f"model={{kind: conv, latent_dim: 4, {CONVOLUTIONS}}}",
    "model.decoder={path: helpers.former_decoder:FormerDecoder, arguments: {width: 4}}",
)
VECTORS = (
    "DATA=vectors",
    "data.image_keys=[npy]",
    f"model={{latent_dim: 3, {WIDTHS}, decoder_output: linear}}",
)
AUGMENT = "data.augment={flip: true, crop: 2, brightness: 0.2, contrast: 0.2}"

CASES: dict[str, tuple[int, tuple[str, ...]]] = {
    "mlp adversarial ema": (
        1,
        (*MLP, "method.balance=none", "train.ema_decay=0.9", "posterior.kind=gaussian"),
    ),
    "mlp adversarial micro-batches": (
        2,
        (
            *MLP,
            "train.micro_batch_size=8",
            "prior.kind=mixture",
            "method={balance: none, r1_weight: 0.1, r1_every: 4}",
        ),
    ),
    "mlp hinge augmentation": (
        3,
        (
            *MLP,
            AUGMENT,
            "method={balance: none, adversary: hinge, input_noise: 0.1, gradient_ratio: 0.5}",
        ),
    ),
    "conv adversarial bf16 augmentation": (
        1,
        (
            *CONV,
            "method.balance=none",
            "model.discriminator_spectral_norm=true",
            "train.precision=bf16",
            AUGMENT,
            "data.augment.saturation=0.2",
            "data.decoded=none",
        ),
    ),
    "conv variational ema": (
        2,
        (
            *CONV,
            "method={kind: variational, beta: 0.5}",
            "posterior.kind=gaussian",
            "train.ema_decay=0.9",
            "phases.reconstruction.schedule={kind: cosine, warmup: 0.2}",
        ),
    ),
    "conv mmd micro-batches": (
        3,
        (*CONV, "method.kind=mmd", "train.micro_batch_size=8", "data.lanes=6"),
    ),
    "vectors mmd": (1, (*VECTORS, "method.kind=mmd", "prior.kind=laplace")),
    "vectors sliced_wasserstein ema": (
        2,
        (
            *VECTORS,
            "method.kind=sliced_wasserstein",
            "posterior={kind: universal, noise_dim: 2}",
            "phases.reconstruction={clip_norm: 1.0, optimizer: {kind: sgd, lr: 0.001}}",
            "train.ema_decay=0.9",
        ),
    ),
}
"""Ranks and overrides of each run, by name; DATA stands for both splits of a data set below."""


def machine() -> str:
    """Return what a result's last bit depends on: the kind of CPU and the libraries' versions."""
    fields: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    cpu = [fields.get(name, "?") for name in ("vendor_id", "cpu family", "model")]
    cpu.append(torch.backends.cpu.get_cpu_capability())
    return " ".join([*cpu, f"torch {torch.__version__}", f"numpy {np.__version__}"])


def _smooth(numbers: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    steps = numbers.integers(-16, 17, shape)
    return np.clip(128 + steps.cumsum(0).cumsum(1), 0, 255).astype(np.uint8)


def grey(numbers: np.random.Generator) -> tuple[str, bytes]:
    return "png", encoded(_smooth(numbers, (16, 16)))


def colour(numbers: np.random.Generator) -> tuple[str, bytes]:
    return "png", encoded(_smooth(numbers, (16, 16, 3)))


def vectors(numbers: np.random.Generator) -> tuple[str, bytes]:
    buffer = io.BytesIO()
    np.save(buffer, (numbers.integers(-8, 9, 10).cumsum() / 32).astype(np.float32))
    return "npy", buffer.getvalue()


DATA: dict[str, Callable[[np.random.Generator], tuple[str, bytes]]] = {
    "grey": grey,
    "colour": colour,
    "vectors": vectors,
}


def write_data(kind: str, folder: Path) -> list[str]:
    """Write 400 training samples in two shards and 160 to validate; return the overrides."""
    numbers = np.random.default_rng(1)
    for split, count in (("train-0", 250), ("train-1", 150), ("validation-0", 160)):
        with TarWriter(str(folder / f"{split}.tar")) as writer:
            for number in range(count):
                field, content = DATA[kind](numbers)
                label = str(number % 3).encode()
                writer.write({"__key__": f"{number:06d}", field: content, "cls": label})
    return [f"data.train={folder}/train-{{0..1}}.tar", f"data.validation={folder}/validation-0.tar"]


def train_and_hash(name: str, folder: Path) -> dict[str, Any]:
    """Train a case to its end; return the SHA-256 of every tensor, and the state."""
    ranks, (data, *items) = CASES[name]
    shards = write_data(data.removeprefix("DATA="), folder)
    arguments = ["train", *COMMON, *FORMER, f"run.storage={folder}/runs", *shards, *items]
    if ranks == 1:
        assert main(arguments) == 0  # in this process: importing torch takes longer than the run
    else:
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        command, log = [sys.executable, *torchrun, "-m", "aae_dist", *arguments], folder / "log.txt"
        # Ranks import a decoder of the helpers.
        with mock.patch.dict(os.environ, PYTHONPATH=str(GOLDEN.parents[1])):
            assert run(command, log) == 0, log.read_text()[-3000:]
    found = final_tensors(f"{folder}/runs/golden", STEPS)
    return {key: _hash(value) for key, value in sorted(found.items())}


def _hash(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    content = value.contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(f"{value.dtype} {tuple(value.shape)} ".encode() + content).hexdigest()


def add_hashes() -> None:
    """Add the hashes of this machine."""
    stored = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    hashes = {}
    for name in CASES:
        with tempfile.TemporaryDirectory() as folder:
            hashes[name] = train_and_hash(name, Path(folder))
        print(f"{name}: {len(hashes[name])} hashes")
    stored[machine()] = hashes
    GOLDEN.write_text(json.dumps(stored, indent=1) + "\n")


if __name__ == "__main__":
    add_hashes()
