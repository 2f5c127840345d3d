"""The sliced Wasserstein autoencoder: Kolouri et al., arXiv 1804.01947."""

from collections.abc import Mapping

import torch
from torch import Tensor

from aae_dist.distributed.host_copy import to_device
from aae_dist.distributed.synchronized_optimizer import SynchronizedOptimizer
from aae_dist.losses import sliced_wasserstein
from aae_dist.methods.inputs import Draws
from aae_dist.methods.matching import MatchingMethod
from aae_dist.methods.method import Modules


class SlicedWassersteinMethod(MatchingMethod):
    """Codes and prior samples are compared along random directions, new ones each step."""

    def __init__(
        self,
        modules: Modules,
        optimizers: Mapping[str, SynchronizedOptimizer],
        weight: float,
        num_projections: int,
    ) -> None:
        """Take the networks, the optimizer, the weight and the number of directions."""
        super().__init__(modules, optimizers, weight)
        self.num_projections = num_projections

    def distance(self, z_GZ: Tensor, prior_GZ: Tensor, weights_G: Tensor, draws: Draws) -> Tensor:
        """Return the mean squared Wasserstein-2 distance over the step's directions."""
        shape = (z_GZ.shape[1], self.num_projections)
        drawn = torch.randn(shape, generator=draws.generator("directions"))
        directions_ZP = to_device(drawn, z_GZ.device, z_GZ.dtype)
        return sliced_wasserstein(z_GZ, prior_GZ, weights_G, directions_ZP)
