"""Convolutions against fully connected networks: error of reconstruction in equal wall time.

    python benchmarks/conv.py [--seconds 60] [--threads 1] [--train 4000] [--latent-dim 16]

Colour images of 32 x 32 pixels, made here of the real digits that ship with the package: each digit
and its background get colours, and it is rotated, all keyed by its number. Both adversarial
autoencoders train in turns of two seconds, on the same batches in the same order, so that a noisy
machine hits both alike; their errors are those on digits that neither has seen.
"""

import argparse
import time
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from timing import print_header
from torch import Tensor

from aae_dist.config import RunConfig, config_from_tree
from aae_dist.data import open_dataset
from aae_dist.distributed.seeds import generator
from aae_dist.distributed.world import single
from aae_dist.methods import StepInputs, build_method
from aae_dist.models import build_networks, build_posterior
from aae_dist.priors import build_prior

SIDE, BATCH, TURN_SECONDS = 32, 64, 2.0
MODELS: dict[str, dict[str, Any]] = {
    "mlp": {"kind": "mlp", "encoder_widths": [1000, 1000], "decoder_widths": [1000, 1000]},
    "conv": {"kind": "conv"},
    "resnet": {"kind": "resnet"},
}


def colour_digits(url: str, count: int) -> Tensor:
    """Return uint8 images (count, 3, 32, 32): digits turned by up to 90 degrees, in two colours."""
    settings = config("mlp", 2, 1).data
    grey = open_dataset(url, settings).read(np.arange(count))[0].float() / 255
    draw = generator(0, f"colours of {url}")
    angle = (torch.rand(count, generator=draw) - 0.5) * torch.pi
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros(count)
    turn = torch.stack([cos, -sin, zero, sin, cos, zero], 1).reshape(count, 2, 3)
    grid = F.affine_grid(turn, [count, 1, SIDE, SIDE], align_corners=False)
    shape = F.grid_sample(F.pad(grey, (2, 2, 2, 2)), grid, align_corners=False)
    ink, paper = torch.rand(2, count, 3, 1, 1, generator=draw)
    colours: Tensor = (shape * ink + (1 - shape) * paper) * 255
    return colours.round().to(torch.uint8)


def config(model: str, latent_dim: int, steps: int) -> RunConfig:
    """Return the configuration of one side; the schedule stays constant for equal turns."""
    constant = {"schedule": {"kind": "constant"}}
    return config_from_tree(
        {
            "run": {"name": model},
            "data": {"train": "builtin://digits/train"},
            "model": {**MODELS[model], "latent_dim": latent_dim},
            "phases": {name: constant for name in ("reconstruction", "discriminator", "generator")},
            "train": {"steps": steps, "global_batch_size": BATCH},
        }
    )


class Side:
    """One adversarial autoencoder, its clock and its step."""

    def __init__(self, model: str, latent_dim: int) -> None:
        """Build the networks."""
        settings, world, shape = config(model, latent_dim, 1), single(), (3, SIDE, SIDE)
        prior, posterior = (
            build_prior(settings.prior, latent_dim),
            build_posterior(settings.posterior),
        )
        self.networks = build_networks(settings, shape, world.device)
        self.method = build_method(settings, self.networks, prior, shape, world)
        self.inputs = StepInputs(
            0, prior, posterior, slice(0, BATCH), BATCH, None, world, torch.float32
        )
        self.steps, self.seconds = 0, 0.0

    def train(self, images: Tensor, seconds: float) -> None:
        """Train for some time."""
        valid, started = torch.ones(BATCH, dtype=torch.bool), time.perf_counter()
        while time.perf_counter() - started < seconds:
            draw = generator(0, "batch", self.steps)
            chosen = torch.randint(len(images), (BATCH,), generator=draw)
            self.method.set_progress(0.0)
            self.method.step(self.inputs.parts(images[chosen], valid, BATCH, self.steps))
            self.steps += 1
        self.seconds += time.perf_counter() - started

    @torch.no_grad()
    def error(self, images: Tensor) -> float:
        """Return the mean squared error a pixel value."""
        x = images.float() / 255
        return float((self.networks.decoder(self.networks.encoder(x)) - x).square().mean())


def main() -> None:
    """Train in turns and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="of training, each side")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--train", type=int, default=4000)
    parser.add_argument("--latent-dim", type=int, default=16)
    parser.add_argument("--models", nargs="+", default=["mlp", "conv"], choices=list(MODELS))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    images = colour_digits("builtin://digits/train", arguments.train)
    held_out = colour_digits("builtin://digits/validation", 1000)
    sides = {name: Side(name, arguments.latent_dim) for name in arguments.models}
    for side in sides.values():
        side.train(images, 0.01)  # the first step pays for imports
        side.seconds = 0.0
    rows, marks = [], [arguments.seconds * part for part in (0.25, 0.5, 1.0)]
    for mark in marks:
        while min(side.seconds for side in sides.values()) < mark:
            for side in sides.values():
                side.train(images, TURN_SECONDS)
        for name, side in sides.items():
            rows.append((mark, name, side.steps, side.error(held_out)))
    size = arguments.latent_dim
    print_header(f"Colour digits, 32 x 32, latent_dim {size}, batch {BATCH}, {len(images)} images")
    print("variance of the pixels: " + f"{float((held_out.float() / 255).var()):.4f}\n")
    print("| seconds of training | networks | steps | held-out error a pixel |\n|---|---|---|---|")
    for mark, name, steps, error in rows:
        print(f"| {mark:.0f} | {name} | {steps} | {error:.5f} |")


if __name__ == "__main__":
    main()
