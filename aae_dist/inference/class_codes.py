"""Codes of runs whose code has a class part: walks between classes, and what keeps the class.

Shapes: K classes, S styles or steps, Z latent_dim.
"""

import torch
from torch import Tensor

from aae_dist.config.run_config import label_rule
from aae_dist.errors import ConfigError
from aae_dist.evaluation.classes import class_part
from aae_dist.inference.trained_run import TrainedRun
from aae_dist.priors import Part


def needed_class_part(run: TrainedRun, kind: str) -> Part:
    """Return the class part; ConfigError without one, or where it is the whole code."""
    part = class_part(run.prior)
    if part is None or part.dims == run.prior.latent_dim:
        raise ConfigError(
            f"--kind {kind} changes the class and keeps the style, and the code of {run.uri} "
            f"(prior.kind={run.config.prior.kind}) has not both; train with prior.kind=product"
        )
    return part


def has_labels_as_classes(run: TrainedRun) -> bool:
    """Return whether class k of the prior is label k: the run has trained on labels."""
    return run.config.method.kind == "semi_supervised" or label_rule(run.config) is not None


def class_walks(style_Z: Tensor, part: Part, num_steps: int) -> Tensor:
    """Return codes (K, S, Z) of one style: row k goes from class k to the next one, ends included.

    The way is straight: between, the class part is a mixture of both classes.
    """
    one_hot_KK = torch.eye(part.dims, dtype=style_Z.dtype)
    share_S1 = torch.linspace(0, 1, num_steps, dtype=style_Z.dtype)[:, None]
    start_K1K, end_K1K = one_hot_KK[:, None], one_hot_KK.roll(-1, 0)[:, None]
    codes_KSZ = style_Z.expand(part.dims, num_steps, len(style_Z)).clone()
    codes_KSZ[:, :, part.columns] = start_K1K + share_S1 * (end_K1K - start_K1K)
    return codes_KSZ


def with_class_of(codes_NZ: Tensor, others_NZ: Tensor, run: TrainedRun) -> Tensor:
    """Return codes with the given part of others; unchanged where no part is given."""
    part = run.prior.given
    if part is None:
        return codes_NZ
    changed = codes_NZ.clone()
    changed[:, part.columns] = others_NZ[:, part.columns]
    return changed
