"""Networks for counts: cells by genes, words, events per bin.

The total of a sample, its library size, is given and not learned, as in scVI (Lopez et al. 2018,
doi 10.1038/s41592-018-0229-2): the encoder reads what is independent of it, and the decoder gives
proportions, which the loss multiplies by it. Shapes: B samples, C H W counts (vectors of D features
are (1, 1, D)), K parameters per feature, Z latent_dim.
"""

import torch
from torch import Tensor, nn

from aae_dist.models.standardized import StandardizedEncoder

LEAST_COUNT = 0.1
"""Added to each feature of the mean profile, in counts at the median total."""
NUM_OUTPUTS = {"poisson": 1, "negative_binomial": 1, "zinb": 2}
"""Outputs of the decoder's network per feature: proportions and, for zinb, dropout logits."""


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


NUM_PARAMETERS = {"poisson": 1, "negative_binomial": 2, "zinb": 3}
"""K by likelihood."""


class ExpectedCounts(nn.Module):
    """z -> expected counts of the median total, as one module."""

    def __init__(self, decoder: CountDecoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, z_BZ: Tensor) -> Tensor:
        """Map codes of shape (B, Z) to counts of shape (B, C, H, W)."""
        return self.decoder.expected(self.decoder(z_BZ))
