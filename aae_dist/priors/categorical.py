"""The categorical prior of the AAE paper's semi-supervised and clustering experiments."""

import torch
import torch.nn.functional as F
from torch import Tensor

from aae_dist.priors.prior import Prior


class CategoricalPrior(Prior):
    """One-hot vectors; every dimension is a class, all equally likely."""

    def __init__(self, latent_dim: int) -> None:
        """Take the number of classes."""
        super().__init__(latent_dim)
        self.num_classes: int = latent_dim

    def sample(self, num_samples: int, generator: torch.Generator) -> Tensor:
        """Draw samples of shape (N, Z)."""
        labels_N = torch.randint(self.latent_dim, (num_samples,), generator=generator)
        return self.sample_class(labels_N, generator)

    def sample_class(self, labels_N: Tensor, generator: torch.Generator) -> Tensor:
        """Return the one-hot vectors, shape (N, Z), of the given classes; nothing is drawn."""
        return F.one_hot(labels_N, self.latent_dim).float()
