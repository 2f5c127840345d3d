"""WAE-MMD, maximum mean discrepancy as the regularizer: Tolstikhin et al., arXiv 1711.01558."""

from collections.abc import Mapping

from torch import Tensor

from aae_dist.distributed import seeds
from aae_dist.distributed.synchronized_optimizer import SynchronizedOptimizer
from aae_dist.errors import ConfigError
from aae_dist.losses import maximum_mean_discrepancy
from aae_dist.methods.inputs import Draws
from aae_dist.methods.matching import MatchingMethod
from aae_dist.methods.method import Modules

NUM_SAMPLES_OF_SCALE = 4096


class MmdMethod(MatchingMethod):
    """WAE-MMD (algorithm 2), for any prior: kernels as wide as the prior."""

    def __init__(
        self, modules: Modules, optimizers: Mapping[str, SynchronizedOptimizer], weight: float
    ) -> None:
        """Take the networks, the optimizer and the weight; measure the prior's width once."""
        super().__init__(modules, optimizers, weight)
        draw = seeds.generator(0, "width of the prior")
        samples = modules.prior.sample(NUM_SAMPLES_OF_SCALE, draw).double()
        self.mean_square_distance = 2 * float(samples.var(0).sum())
        if self.mean_square_distance == 0:
            raise ConfigError(
                "method.kind=mmd needs a prior that spreads, as its kernels are as wide; these "
                "samples are all equal; use another prior or method.kind=sliced_wasserstein"
            )

    def distance(self, z_GZ: Tensor, prior_GZ: Tensor, weights_G: Tensor, draws: Draws) -> Tensor:
        """Return the unbiased estimate of the squared discrepancy."""
        return maximum_mean_discrepancy(z_GZ, prior_GZ, weights_G, self.mean_square_distance)
