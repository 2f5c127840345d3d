"""Train a small model on random images, on any number of ranks, without data or files."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from aae_dist.config import RunConfig
from aae_dist.config.run_config import COUNTS, label_rule
from aae_dist.distributed.world import World
from aae_dist.methods import Method, StepInputs, build_method
from aae_dist.methods.method import LabelledSet
from aae_dist.models import DTYPES, Networks, build_networks, build_posterior
from aae_dist.priors import build_prior

SHAPE = (1, 6, 6)
BASELINE = 1.5
"""Half the summed variance of 36 random pixels, as a run measures it."""
COMMON = {"latent_dim": 4, "discriminator_widths": (24, 16)}
MODELS: dict[str, dict[str, Any]] = {
    "mlp": {"kind": "mlp", **COMMON, "encoder_widths": (24, 16), "decoder_widths": (24, 16)},
    "conv": {"kind": "conv", **COMMON, "encoder_width": 4, "decoder_width": 4},
    "resnet": {"kind": "resnet", **COMMON, "encoder_width": 4, "decoder_width": 4},
}
"""Small networks of every kind."""


def tiny_config(**sections: Any) -> RunConfig:
    """Return a small configuration; keyword arguments are merged into its sections."""
    tree: dict[str, Any] = {
        "run": {"name": "tiny"},
        "data": {"train": "builtin://digits/train"},
        "model": MODELS["mlp"],
        "train": {"steps": 100, "global_batch_size": 24, "precision": "fp64"},
    }
    for name, section in sections.items():
        same_kind = section.get("kind", "mlp") == "mlp" or name != "model"
        tree[name] = {**tree.get(name, {}), **section} if same_kind else section
    return RunConfig.model_validate(tree)


def build(
    config: RunConfig, world: World, shape: tuple[int, ...] = SHAPE
) -> tuple[Networks, Method, StepInputs]:
    prior = build_prior(config.prior, config.model.latent_dim)
    labelled = None
    if config.data.labelled is not None:
        draw = torch.Generator().manual_seed(7)
        images = torch.randint(0, 256, (9, *shape), generator=draw, dtype=torch.uint8)
        labelled = LabelledSet(images, torch.arange(9) % 3)
    networks = build_networks(config, shape, world.device)
    method = build_method(config, networks, prior, shape, world, BASELINE)
    batch, lanes = config.train.global_batch_size, config.lanes
    share = batch // lanes
    rows = slice(
        world.rank * lanes // world.size * share, (world.rank + 1) * lanes // world.size * share
    )
    inputs = StepInputs(
        seed=config.run.seed,
        prior=prior,
        posterior=build_posterior(config.posterior, config.prior),
        rows=rows,
        global_batch_size=batch,
        micro_batch_size=config.train.micro_batch_size,
        world=world,
        dtype=DTYPES[config.train.precision],
        is_guided=config.method.kind == "label_guided",
        labelled=labelled,
    )
    return networks, method, inputs


def global_batch(
    config: RunConfig, step: int, shape: tuple[int, ...] = SHAPE
) -> tuple[Tensor, Tensor]:
    """Return uint8 images and the mask of a step's whole batch; every fifth batch has a tail.

    Of losses for counts, whole numbers as floats; of tables, such columns as `data.columns` names.
    """
    generator = torch.Generator().manual_seed(step)
    size = config.train.global_batch_size
    images = torch.randint(0, 256, (size, *shape), generator=generator, dtype=torch.uint8)
    if config.method.reconstruction_loss in COUNTS:
        images = (images % 12).float()
    if (columns := config.data.columns) is not None:
        parts = [images[..., : columns.real] / 255, (images[..., : columns.counts] % 12).float()]
        drawn = images[..., : len(columns.categories)].long()
        each = zip(drawn.unbind(-1), columns.categories, strict=True)
        images = torch.cat([*parts, *(F.one_hot(d % num, num).float() for d, num in each)], -1)
    valid = torch.ones(size, dtype=torch.bool)
    if step % 5 == 4:
        valid[torch.randperm(size, generator=generator)[: size // 3]] = False
    return images, valid


def global_labels(config: RunConfig, step: int) -> Tensor:
    """Return labels of a step's whole batch, 0 to 2 by default; a part has none, -1.

    A code that holds the label has one of every sample.
    """
    generator = torch.Generator().manual_seed(1000 + step)
    num, needed = label_rule(config) or (3, False)
    lowest = 0 if needed else -1
    return torch.randint(lowest, num, (config.train.global_batch_size,), generator=generator)


def run_step(
    method: Method,
    inputs: StepInputs,
    config: RunConfig,
    step: int,
    shape: tuple[int, ...] = SHAPE,
) -> dict[str, Tensor]:
    images, valid = global_batch(config, step, shape)
    method.set_progress(step / 100)
    rows = inputs.rows
    labels = global_labels(config, step)[rows]
    return method.step(inputs.parts(images[rows], valid[rows], int(valid.sum()), step, labels))


def train_steps(
    world: World,
    tree: dict[str, Any],
    num_steps: int,
    before_step: Callable[[int, Networks], None] | None = None,
    shape: tuple[int, ...] = SHAPE,
) -> tuple[list[dict[str, float]], list[Tensor]]:
    """Return this rank's losses of every step and its flattened networks at the end."""
    torch.set_num_threads(1)
    config = tiny_config(**tree)
    networks, method, inputs = build(config, world, shape)
    losses = []
    for step in range(num_steps):
        if before_step is not None:
            before_step(step, networks)
        values = run_step(method, inputs, config, step, shape)
        losses.append({name: float(value) for name, value in values.items()})
    flat = [
        torch.cat([p.detach().flatten() for p in network.parameters()])
        for network in networks.named().values()
    ]
    return losses, flat
