"""Cluster heads: the decoder reads one vector per class plus the style, both of few dimensions.

Makhzani et al., arXiv 1511.05644, section 7. Shapes: B samples, Z latent_dim, K classes, S style.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from aae_dist.models.mlp import exact


class ClusterHeadDecoder(nn.Module):
    """Decodes W y + s, the head of the class plus the style, so that both share one space."""

    def __init__(
        self, network: nn.Module, classes: slice, style: slice, distance: float, weight: float
    ) -> None:
        """`network` decodes (B, S); the slices are the columns of y and s in the code.

        Heads start as normal numbers of standard deviation `distance`. Where two are nearer than
        that, `penalty` is `weight` times what is missing.
        """
        super().__init__()
        self.network, self.classes, self.style = network, classes, style
        self.distance, self.weight = distance, weight
        dims = style.stop - style.start
        self.heads = nn.Linear(classes.stop - classes.start, dims, bias=False)
        nn.init.normal_(self.heads.weight, std=distance)

    def represent(self, z_BZ: Tensor) -> Tensor:
        """Return the map of reduced dimension, shape (B, S): the inputs of the network."""
        return exact(self.heads, z_BZ[:, self.classes], z_BZ.dtype) + z_BZ[:, self.style]

    def forward(self, z_BZ: Tensor) -> Tensor:
        """Map codes of shape (B, Z) to samples."""
        x_BCHW: Tensor = self.network(self.represent(z_BZ))
        return x_BCHW

    def penalty(self) -> Tensor:
        """Return the weighted sum of the lengths that pairs of heads lack, a scalar."""
        distances = F.pdist(self.heads.weight.t())
        return self.weight * F.relu(self.distance - distances).sum()


def cluster_heads(decoder: nn.Module) -> ClusterHeadDecoder | None:
    """Return the cluster heads inside a decoder, wrapped in any way; None without."""
    found = (module for module in decoder.modules() if isinstance(module, ClusterHeadDecoder))
    return next(found, None)
