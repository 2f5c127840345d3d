"""The step that benchmarks measure: our engine on random images, by default 784-1000-1000-Z."""

from dataclasses import dataclass

import torch
from torch import Tensor

from aae_dist.config import config_from_tree
from aae_dist.data import rank_rows
from aae_dist.distributed.world import World
from aae_dist.methods import Method, StepInputs, build_method
from aae_dist.models import Networks, build_networks, build_posterior
from aae_dist.priors import Prior, build_prior

SHAPE = (1, 28, 28)
NUM_BATCHES = 8


@dataclass
class Engine:
    """Networks, method and inputs of one rank, and a step over random images."""

    networks: Networks
    method: Method
    inputs: StepInputs
    prior: Prior
    images: Tensor
    """uint8, (NUM_BATCHES, rows of this rank, C, H, W)."""
    steps_done: int = 0

    def step(self) -> None:
        """Train on the next batch."""
        images = self.images[self.steps_done % NUM_BATCHES]
        valid = torch.ones(len(images), dtype=torch.bool)
        self.method.set_progress(0.0)
        batch = self.inputs.global_batch_size
        self.method.step(self.inputs.parts(images, valid, batch, self.steps_done))
        self.steps_done += 1


def build_engine(
    world: World,
    global_batch_size: int,
    latent_dim: int = 16,
    kind: str = "mlp",
    shape: tuple[int, int, int] = SHAPE,
    compiled: bool = False,
    balance: str = "none",
) -> Engine:
    """Return our engine with plain Adam at a constant rate, as textbooks have it.

    Args:
        world: this process's place among the ranks; a collective for several.
        global_batch_size: samples a step over all ranks.
        latent_dim: dimensions of the code.
        kind: of the networks, mlp, conv or resnet.
        shape: of the images, (C, H, W).
        compiled: train with torch.compile's code.
        balance: `method.balance`; textbooks have none.
    """
    phases = ("reconstruction", "discriminator", "generator")
    adam = {"kind": "adam", "lr": 1e-3, "betas": [0.9, 0.999]}
    config = config_from_tree(
        {
            "run": {"name": "benchmark"},
            "data": {"train": "builtin://digits/train"},
            "model": {"kind": kind, "latent_dim": latent_dim},
            "method": {"balance": balance},
            "phases": {p: {"optimizer": adam, "schedule": {"kind": "constant"}} for p in phases},
            "train": {
                "steps": 10**6,
                "global_batch_size": global_batch_size,
                "compile": compiled,
            },
        }
    )
    prior = build_prior(config.prior, latent_dim)
    networks = build_networks(config, shape, world.device)
    rows = rank_rows(world.rank, world.size, config.lanes, global_batch_size)
    inputs = StepInputs(
        seed=0,
        prior=prior,
        posterior=build_posterior(config.posterior, config.prior),
        rows=rows,
        global_batch_size=global_batch_size,
        micro_batch_size=None,
        world=world,
        dtype=torch.float32,
    )
    method = build_method(config, networks, prior, shape, world)
    draw = torch.Generator().manual_seed(0)
    size = (NUM_BATCHES, global_batch_size, *shape)
    images = torch.randint(0, 256, size, generator=draw, dtype=torch.uint8)
    return Engine(networks, method, inputs, prior, images[:, rows].clone())
