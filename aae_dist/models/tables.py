"""Networks for samples that are no pixels: standardized numbers, counts, columns of mixed kinds.

Counts are cells by genes, words, events per bin. The total of a sample, its library size, is given
and not learned, as in scVI (Lopez et al. 2018, doi 10.1038/s41592-018-0229-2): the encoder reads
what is independent of it, and the decoder gives proportions, which the loss multiplies by it.
Shapes: B samples, C H W counts, D columns as vectors (B, 1, 1, D), K parameters per feature, Z
latent_dim.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

LEAST_COUNT = 0.1
"""Added to means of counts where decoders start from, in counts at the median total."""
NUM_OUTPUTS = {"poisson": 1, "negative_binomial": 1, "zinb": 2}
"""Outputs of the decoder's network per feature: proportions and, for zinb, dropout logits."""
NUM_PARAMETERS = {"poisson": 1, "negative_binomial": 2, "zinb": 3}
"""K by likelihood."""
LEAST_SHARE = 0.01
"""Added to means of categories where decoders start from."""
LARGEST_LOG = 20.0
"""Logarithm of the largest expected count."""


class Standardized(nn.Module):
    """A network that sees features of mean 0 and variance 1, whatever the data's units.

    `mean` and `std` are constants, saved with the weights.
    """

    def __init__(self, network: nn.Module, sample_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.network = network
        self.mean = nn.Parameter(torch.zeros(sample_shape), requires_grad=False)
        self.std = nn.Parameter(torch.ones(()), requires_grad=False)


class StandardizedEncoder(Standardized):
    """Standardizes the encoder's inputs."""

    def forward(self, x_BCHW: Tensor, *noise: Tensor) -> Tensor:
        """Map samples in the data's units to posterior parameters of shape (B, P)."""
        outputs_BP: Tensor = self.network((x_BCHW - self.mean) / self.std, *noise)
        return outputs_BP


class StandardizedDecoder(Standardized):
    """Brings the decoder's outputs to the data's units."""

    def forward(self, z_BZ: Tensor) -> Tensor:
        """Map codes of shape (B, Z) to samples in the data's units."""
        x_BCHW: Tensor = self.network(z_BZ)
        return x_BCHW * self.std + self.mean


def log_normalized(x_BCHW: Tensor, library: Tensor) -> Tensor:
    """Return log(1 + x * library / total of x), with totals of each sample, of the same shape."""
    totals_B = x_BCHW.flatten(1).sum(1).clamp_min(1)
    factor_B = (library / totals_B).view(-1, *[1] * (x_BCHW.ndim - 1))
    return (x_BCHW * factor_B).log1p()


class CountEncoder(StandardizedEncoder):
    """Counts -> posterior parameters: log-normalized, centred, divided by one deviation.

    `library`, the median total of the training data, is a constant saved with the weights.

    Args:
        network: maps the normalised counts, (B, C, H, W), to posterior parameters (B, P).
        sample_shape: (C, H, W).
    """

    def __init__(self, network: nn.Module, sample_shape: tuple[int, ...]) -> None:
        super().__init__(network, sample_shape)
        self.library = nn.Parameter(torch.ones(()), requires_grad=False)

    def forward(self, x_BCHW: Tensor, *noise: Tensor) -> Tensor:
        """Map counts, whole numbers >= 0, to posterior parameters (B, P); noise is (B, N)."""
        return super().forward(log_normalized(x_BCHW, self.library), *noise)


class CountDecoder(nn.Module):
    """z -> parameters of the counts' distribution, (B, K, C, H, W).

    K = 0: proportions, which sum to 1; 1: log dispersion, one per feature; 2: dropout logits.
    Training starts from the mean profile, which Adam would need a thousand steps to reach.
    """

    def __init__(self, network: nn.Module, sample_shape: tuple[int, ...], likelihood: str) -> None:
        """`network` gives (B, outputs * C, H, W); `NUM_OUTPUTS` has these of each `likelihood`.

        `sample_shape` is (C, H, W).
        """
        super().__init__()
        self.network, self.num_outputs = network, NUM_OUTPUTS[likelihood]
        self.library = nn.Parameter(torch.ones(()), requires_grad=False)
        self.log_profile = nn.Parameter(torch.zeros(sample_shape), requires_grad=False)
        self.log_dispersion = None
        if likelihood != "poisson":
            self.log_dispersion = nn.Parameter(torch.zeros(sample_shape))

    def forward(self, z_BZ: Tensor) -> Tensor:
        """Map codes of shape (B, Z) to parameters of shape (B, K, C, H, W)."""
        # One channel after the other: (B, outputs * C, ...) -> outputs of (B, C, ...).
        outputs = self.network(z_BZ).chunk(self.num_outputs, dim=1)
        logits = outputs[0] + self.log_profile
        proportions = logits.flatten(1).softmax(1).view_as(logits)
        parameters = [proportions]
        if self.log_dispersion is not None:
            parameters.append(self.log_dispersion.expand_as(proportions))
        return torch.stack([*parameters, *outputs[1:]], dim=1)

    @torch.no_grad()
    def set_profile(self, mean_CHW: Tensor) -> None:
        """Set the mean profile from the mean of log-normalized counts."""
        self.log_profile.copy_((mean_CHW.expm1() + LEAST_COUNT).log())

    def expected(self, parameters_BKCHW: Tensor, x_BCHW: Tensor | None = None) -> Tensor:
        """Return expected counts (B, C, H, W), of totals as in `x_BCHW` or else the median one."""
        proportions = parameters_BKCHW[:, 0]
        totals_B = self.library.expand(len(proportions))
        if x_BCHW is not None:
            totals_B = x_BCHW.to(proportions).flatten(1).sum(1)
        expected = proportions * totals_B.view(-1, *[1] * (proportions.ndim - 1))
        if parameters_BKCHW.shape[1] == NUM_PARAMETERS["zinb"]:
            expected = expected * torch.sigmoid(-parameters_BKCHW[:, 2])
        return expected


class ExpectedCounts(nn.Module):
    """z -> expected counts of the median total, as one module."""

    def __init__(self, decoder: CountDecoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, z_BZ: Tensor) -> Tensor:
        """Map codes of shape (B, Z) to counts of shape (B, C, H, W)."""
        return self.decoder.expected(self.decoder(z_BZ))


class TableEncoder(nn.Module):
    """Columns -> posterior parameters: counts as log(1 + count), all others as they are."""

    def __init__(self, network: nn.Module, sizes: Sequence[int]) -> None:
        """Read the columns by a network.

        Args:
            network: maps transformed columns (B, 1, 1, D), and noise, to outputs (B, P).
            sizes: the numbers of real columns, of counts, and of each category's values.
        """
        super().__init__()
        self.network, self.sizes = network, tuple(sizes)

    def forward(self, x_B11D: Tensor, *noise: Tensor) -> Tensor:
        """Map samples (B, 1, 1, D) to posterior parameters (B, P); `noise` goes to the network."""
        real, counts, *categories = x_B11D.split(list(self.sizes), -1)
        outputs_BP: Tensor = self.network(
            torch.cat([real, counts.log1p(), *categories], -1), *noise
        )
        return outputs_BP


class TableDecoder(nn.Module):
    """z -> expected values: means of real columns and counts, probabilities of categories.

    Training starts from the means of the data, constants that are saved with the weights.
    """

    def __init__(self, network: nn.Module, sizes: Sequence[int]) -> None:
        """Put the parts' own functions behind a network.

        Args:
            network: maps codes (B, Z) to outputs (B, 1, 1, D).
            sizes: the numbers of real columns, of counts, and of each category's values.
        """
        super().__init__()
        self.network, self.sizes = network, tuple(sizes)
        self.offset = nn.Parameter(torch.zeros(sum(sizes)), requires_grad=False)

    def forward(self, z_BZ: Tensor) -> Tensor:
        """Map codes of shape (B, Z) to expected values of shape (B, 1, 1, D)."""
        outputs = self.network(z_BZ) + self.offset
        real, counts, *categories = outputs.split(list(self.sizes), -1)
        rates = counts.clamp(max=LARGEST_LOG).exp()
        return torch.cat([real, rates, *(nn.functional.softmax(c, -1) for c in categories)], -1)

    @torch.no_grad()
    def set_profile(self, mean_11D: Tensor) -> None:
        """Set where training starts from the mean of the data."""
        real, counts, *categories = mean_11D.flatten().split(list(self.sizes))
        shares = ((share + LEAST_SHARE).log() for share in categories)
        self.offset.copy_(torch.cat([real, (counts + LEAST_COUNT).log(), *shares]))
