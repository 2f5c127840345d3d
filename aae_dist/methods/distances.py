"""Distances of the codes of a global batch to prior samples, per part of the code.

Where the code holds the label, they are distances of the joint distributions: codes are compared
with prior samples of their label, so that the other parts say nothing of it.

Shapes: G rows of the global batch, Z latent_dim, P directions, M labels.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from aae_dist.losses import sliced_energy_distance, sliced_wasserstein
from aae_dist.methods.method import Draws
from aae_dist.priors import Prior
from aae_dist.utils.tensors import keyed_generator, to_device

NUM_SAMPLES_OF_SCALE = 4096


def total_variance(prior: Prior) -> float:
    """Return the sum over dimensions of the prior's variance, estimated from 4,096 samples."""
    draw = keyed_generator(0, "width of the prior")
    return float(prior.sample(NUM_SAMPLES_OF_SCALE, draw).double().var(0).sum())


def given_labels(prior: Prior, z_GZ: Tensor, weights_G: Tensor) -> Tensor | None:
    """Return the labels that the given parts of codes hold, int64 (G); None if no part is given.

    Rows that are alone with their label share one more, the last: no distance of a single row is
    without bias, and together these too should be samples of the prior.
    """
    if not prior.given:
        return None
    labels_G = torch.zeros(len(z_GZ), dtype=torch.int64, device=z_GZ.device)
    for part in prior.given:
        labels_G = labels_G * part.dims + z_GZ[:, part.columns].argmax(1)
    counts_M = labels_G.new_zeros(_num_labels(prior))
    counts_M.scatter_add_(0, labels_G, (weights_G > 0).long())
    return torch.where(counts_M[labels_G] == 1, len(counts_M), labels_G)


def _num_labels(prior: Prior) -> int:
    return math.prod(part.dims for part in prior.given)


def weights_of_labels(
    prior: Prior, prior_GZ: Tensor, weights_G: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Return weights of the rows of each label, (M, G), and the labels' shares of all rows, (M).

    Labels are those of `given_labels`; one of a single row has no share. If no part is given, the
    weights (G) as they are, and None.
    """
    labels_G = given_labels(prior, prior_GZ, weights_G)
    if labels_G is None:
        return weights_G, None
    own_MG = torch.nn.functional.one_hot(labels_G, _num_labels(prior) + 1).t() * (weights_G > 0)
    sizes_M1 = own_MG.sum(1, keepdim=True).to(weights_G)
    shares_M = (sizes_M1 * weights_G.max() * (sizes_M1 > 1))[:, 0]
    return own_MG / sizes_M1.clamp(min=1), shares_M


def total(distances: Sequence[Tensor], shares_M: Tensor | None) -> Tensor:
    """Return the sum of the distances of parts, each a scalar, or one per label of these shares."""
    summed = torch.stack(list(distances)).sum(0)
    return summed if shares_M is None else shares_M @ summed


class PartwiseDistance:
    """The sliced Wasserstein distance of codes and prior samples, along new directions each step.

    Of a code in parts it is the sum over parts, each per variance of the part's prior: one-hot
    vectors of K classes have a variance of about 1 / K per dimension, which directions through the
    whole code would hardly see. Where the code holds the label, it is the sliced energy distance of
    the rows of each label, of which a batch has few, times the prior's standard deviation.
    """

    def __init__(self, prior: Prior, num_projections: int) -> None:
        self._prior, self._parts, self._num = prior, prior.parts, num_projections
        self._scales, self._stds = [1.0], [1.0]
        if len(self._parts) > 1 or prior.given:
            variances = [total_variance(part.prior) / part.dims for part in self._parts]
            self._stds = [math.sqrt(v) for v in variances]
        if len(self._parts) > 1:
            self._scales = [1 / v if v else 0.0 for v in variances]

    def __call__(
        self,
        z_GZ: Tensor,
        prior_GZ: Tensor,
        weights_G: Tensor,
        draws: Draws,
        labels_G: Tensor | None = None,
    ) -> Tensor:
        """Return the distance, a scalar; see `MatchingMethod.distance`, `sliced_wasserstein`."""
        generator, distances = draws.generator("directions"), []
        given_G = given_labels(self._prior, prior_GZ, weights_G)
        for part, scale, std in zip(self._parts, self._scales, self._stds, strict=True):
            directions_ZP = random_directions(part.dims, self._num, generator, z_GZ)
            z, prior = z_GZ[:, part.columns], prior_GZ[:, part.columns]
            if given_G is not None:
                distance = sliced_energy_distance(z, prior, weights_G, directions_ZP, given_G)
                found = std * distance
            else:
                found = sliced_wasserstein(z, prior, weights_G, directions_ZP, labels_G)
            distances.append(scale * found)
        return torch.stack(distances).sum()


def random_directions(
    dims: int, num_projections: int, generator: torch.Generator, like: Tensor
) -> Tensor:
    """Return directions of any length, [dims, P], on the device and of the type of `like`."""
    drawn = torch.randn((dims, num_projections), generator=generator)
    return to_device(drawn, like.device, like.dtype)
