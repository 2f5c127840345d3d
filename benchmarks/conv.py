"""Convolutions against fully connected networks: reconstruction error in equal time.

    python benchmarks/conv.py [--seconds 15 30 60] [--cpu-time] [--threads 1] [--images 5000]
        [--latent-dim 16]

Colour images of 32 x 32 pixels, made here of the real digits that ship with the package: each digit
and its background get colours, and it is rotated, all keyed by its number. They are written as PNG
files into class folders, packed by `data pack folder`, and read from the shards. Both adversarial
autoencoders train in turns of two seconds, on the same batches in the same order, so that a noisy
machine hits both alike; their errors are those on digits that neither has seen.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from timing import print_header
from torch import Tensor

from aae_dist.config import RunConfig, config_from_tree
from aae_dist.config.sections.run import Data
from aae_dist.data import Dataset, open_dataset
from aae_dist.data.pack import PackOptions, pack
from aae_dist.distributed.world import single
from aae_dist.methods import StepInputs, build_method
from aae_dist.models import build_networks, build_posterior
from aae_dist.priors import build_prior
from aae_dist.utils.tensors import keyed_generator

SIDE, BATCH, TURN_SECONDS = 32, 64, 2.0
MODELS: dict[str, dict[str, Any]] = {
    "mlp": {"kind": "mlp", "encoder_widths": [1000, 1000], "decoder_widths": [1000, 1000]},
    "conv": {"kind": "conv"},
    "resnet": {"kind": "resnet"},
}


class Row(NamedTuple):
    """What one side has reached after some seconds of training."""

    seconds: float
    model: str
    steps: int
    error: float
    """Mean squared error per pixel value, on held-out images."""


def pack_colour_digits(folder: Path, count: int) -> tuple[Dataset, Dataset]:
    """Write digits as PNG files into class folders, pack these, and open both sets.

    Each is turned by up to 90 degrees, in two colours; a fifth of them is held out.
    """
    settings = Data(train="builtin://digits/train")
    grey, labels = open_dataset(settings.train, settings).read(range(count))
    for number, (image, label) in enumerate(zip(coloured(grey), labels.tolist(), strict=True)):
        path = folder / "files" / str(label) / f"{number:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(path)
    options = PackOptions(validation_fraction=0.2)
    pack("folder", str(folder / "shards"), str(folder / "files"), options, lambda line: None)
    train, held_out = (str(folder / "shards" / name) for name in ("train", "validation"))
    return open_dataset(train, Data(train=train)), open_dataset(held_out, Data(train=held_out))


def coloured(grey_B1HW: Tensor) -> Tensor:
    """Return uint8 images (B, 3, 32, 32) of digits (B, 1, 28, 28)."""
    count, draw = len(grey_B1HW), keyed_generator(0, "colours")
    angle = (torch.rand(count, generator=draw) - 0.5) * torch.pi
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros(count)
    turn = torch.stack([cos, -sin, zero, sin, cos, zero], 1).reshape(count, 2, 3)
    grid = F.affine_grid(turn, [count, 1, SIDE, SIDE], align_corners=False)
    padded = F.pad(grey_B1HW.float() / 255, (2, 2, 2, 2))
    shape = F.grid_sample(padded, grid, align_corners=False)
    ink, paper = torch.rand(2, count, 3, 1, 1, generator=draw)
    colours: Tensor = (shape * ink + (1 - shape) * paper) * 255
    return colours.round().to(torch.uint8)


def config(model: str, latent_dim: int) -> RunConfig:
    """Return the configuration of one side; the schedule stays constant for equal turns."""
    constant = {"schedule": {"kind": "constant"}}
    return config_from_tree(
        {
            "run": {"name": model},
            "data": {"train": "shards"},
            "model": {**MODELS[model], "latent_dim": latent_dim},
            "phases": {name: constant for name in ("reconstruction", "discriminator", "generator")},
            "train": {"steps": 1, "global_batch_size": BATCH},
        }
    )


class Side:
    """One adversarial autoencoder, its clock and its step."""

    def __init__(self, model: str, latent_dim: int) -> None:
        """Build the networks."""
        settings, world, shape = config(model, latent_dim), single(), (3, SIDE, SIDE)
        prior, posterior = (
            build_prior(settings.prior, latent_dim),
            build_posterior(settings.posterior, settings.prior),
        )
        self.networks = build_networks(settings, shape, world.device)
        self.method = build_method(settings, self.networks, prior, shape, world)
        self.inputs = StepInputs(
            0, prior, posterior, slice(0, BATCH), BATCH, None, world, torch.float32
        )
        self.steps, self.seconds = 0, 0.0

    def train(self, data: Dataset, seconds: float, clock: Callable[[], float]) -> None:
        """Train for some time by the clock."""
        valid, started = torch.ones(BATCH, dtype=torch.bool), clock()
        while clock() - started < seconds:
            draw = keyed_generator(0, "batch", self.steps)
            images, _ = data.read(torch.randint(len(data), (BATCH,), generator=draw).numpy())
            self.method.set_progress(0.0)
            self.method.step(self.inputs.parts(images, valid, BATCH, self.steps))
            self.steps += 1
        self.seconds += clock() - started

    @torch.no_grad()
    def error(self, images: Tensor) -> float:
        """Return the mean squared error per pixel value."""
        x = images.float() / 255
        return float((self.networks.decoder(self.networks.encoder(x)) - x).square().mean())


def compare(
    models: Sequence[str],
    latent_dim: int,
    data: tuple[Dataset, Dataset],
    marks: Sequence[float],
    clock: Callable[[], float] = time.perf_counter,
) -> list[Row]:
    """Train in turns; return what each side has reached at each mark, in seconds by the clock."""
    train, held_out = data
    train.read(range(len(train)))  # decoded once, for both
    images = held_out.read(range(len(held_out)))[0]
    sides = {name: Side(name, latent_dim) for name in models}
    for side in sides.values():
        side.train(train, 0.01, clock)  # the first step pays for imports
        side.seconds = 0.0
    rows = []
    for mark in marks:
        while (side := min(sides.values(), key=lambda side: side.seconds)).seconds < mark:
            side.train(train, min(TURN_SECONDS, mark - side.seconds), clock)
        rows += [Row(mark, name, s.steps, s.error(images)) for name, s in sides.items()]
    return rows


def main() -> None:
    """Pack, train and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--seconds", type=float, nargs="+", default=[15.0, 30.0, 60.0], help="moments of scoring"
    )
    parser.add_argument("--cpu-time", action="store_true", help="seconds of the processor")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--images", type=int, default=5000, help="a fifth of them is held out")
    parser.add_argument("--latent-dim", type=int, default=16)
    parser.add_argument("--models", nargs="+", default=["mlp", "conv"], choices=list(MODELS))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    size = arguments.latent_dim
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    with tempfile.TemporaryDirectory() as folder:
        data = pack_colour_digits(Path(folder), arguments.images)
        print_header(f"Colour digits, 32 x 32, latent_dim {size}, batch {BATCH}")
        rows = compare(arguments.models, size, data, sorted(arguments.seconds), clock)
    pixels = data[1].read(np.arange(len(data[1])))[0].float() / 255
    print(f"{len(data[0])} images for training, {len(data[1])} held out,")
    print(f"whose pixels have variance {float(pixels.var()):.4f}\n")
    print(
        "| seconds of training | networks | steps | held-out error per pixel |\n|---|---|---|---|"
    )
    for row in rows:
        print(f"| {row.seconds:.0f} | {row.model} | {row.steps} | {row.error:.5f} |")


if __name__ == "__main__":
    main()
