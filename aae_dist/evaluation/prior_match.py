"""Baselines of the statistics: their values when codes match the prior perfectly.

Raw distances grow with the prior's scale and the number of dimensions and shrink with the number of
samples. They are divided by the distance of two prior samples of equal size, so that 1.0 is a
perfect match under every prior and latent size.

Codes are compared with many prior samples, not with one, and the root mean square distance is
scored: with one sample of 500 points a perfect swiss roll scored 1.56 under one seed and 0.84 under
the next. Both distances are norms of differences of means, so many samples cost no more than one:
their mean and the variance around it suffice.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (torch's own name for it)
from torch import Tensor

from aae_dist.priors import Prior
from aae_dist.utils.tensors import keyed_generator

NUM_PROJECTIONS = 256
"""Random directions of the sliced Wasserstein distance."""
SCALES = (2.0, 1.0, 0.5, 0.25, 0.125)
"""Standard deviations of the MMD's Gaussian kernels, in median distances between prior samples."""
_BLOCK_ROWS = 512
_Z95 = 1.959964
"""Two-sided 95 % quantile of the standard normal."""


@dataclass(frozen=True)
class Accuracy:
    """Held-out accuracy of the two-sample classifier with its 95 % Wilson interval."""

    value: float
    low: float
    high: float


def c2st(codes_nZ: Tensor, prior_nZ: Tensor, generator: torch.Generator) -> Accuracy:
    """Classifier two-sample test: how well a fresh network tells codes from prior samples.

    Both samples, n >= 4, are standardised with the statistics of the training half and each is
    split in halves; two hidden layers of 256, Adam 1e-3, 20 epochs on one half, accuracy on the
    other: 0.5 is a perfect match and 1.0 means disjoint samples.
    """
    train_x, train_y, test_x, test_y = _halves(codes_nZ, prior_nZ, generator)
    mean, std = train_x.mean(0), train_x.std(0).clamp_min(1e-12)
    accuracy = accuracy_of_trained_classifier(
        (train_x - mean) / std, train_y, (test_x - mean) / std, test_y, generator
    )
    low, high = wilson_interval(accuracy, len(test_y))
    return Accuracy(accuracy, low, high)


def wilson_interval(share: float, num: int) -> tuple[float, float]:
    """Return the 95 % Wilson score interval of a binomial share observed in `num` trials."""
    centre = (share + _Z95**2 / (2 * num)) / (1 + _Z95**2 / num)
    spread = math.sqrt(share * (1 - share) / num + _Z95**2 / (4 * num**2))
    half_width = _Z95 * spread / (1 + _Z95**2 / num)
    return centre - half_width, centre + half_width


def projections(latent_dim: int, generator: torch.Generator, num: int = NUM_PROJECTIONS) -> Tensor:
    """Return `num` directions drawn uniformly from the unit sphere, float32 [Z, num]."""
    directions_ZP = torch.randn(latent_dim, num, generator=generator)
    return torch.nn.functional.normalize(directions_ZP, dim=0)


def median_distance(prior_nZ: Tensor) -> float:
    """Return the median Euclidean distance between prior samples, float [n, Z]."""
    # A function of the prior alone, so that a statistic and its null use the same kernel. Takes all
    # n^2 / 2 distances at once: a thousand samples are enough and 4 MB.
    return max(torch.pdist(prior_nZ).median().item(), 1e-12)


def mean_kernel(a_nZ: Tensor, b_mZ: Tensor, bandwidth: float) -> float:
    """Return the mean over all n * m pairs of the MMD's kernel, which is 1 at distance 0."""
    unit = _widest(bandwidth)
    return _kernel_sum(a_nZ / unit, b_mZ / unit) / (len(a_nZ) * len(b_mZ) * len(SCALES))


def mean_kernel_within(a_nZ: Tensor, bandwidth: float) -> float:
    """Return `mean_kernel(a, a)`, each row with itself among the pairs, in half the time."""
    a, total = a_nZ / _widest(bandwidth), 0.0
    for start in range(0, len(a), _BLOCK_ROWS):
        rows, rest = a[start : start + _BLOCK_ROWS], a[start + _BLOCK_ROWS :]
        total += _kernel_sum(rows, rows) + 2 * _kernel_sum(rows, rest)
    return total / (len(a) ** 2 * len(SCALES))


def sorted_projections(x_nZ: Tensor, directions_ZP: Tensor) -> np.typing.NDArray[Any]:
    """Return the projections of n rows on every direction, each direction's in order, [P, n]."""
    # numpy's vectorised sort takes 11 ms for 256 rows of 10,000; torch's takes 200 ms on the CPU.
    projected: np.typing.NDArray[Any] = (directions_ZP.T @ x_nZ.T).numpy()
    projected.sort(axis=1)
    return projected


def _halves(
    codes_nZ: Tensor, prior_nZ: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Split each sample in halves: training rows and labels, held-out rows and labels."""
    # Splitting each side apart keeps both halves balanced, so that chance is exactly 0.5.
    half = len(codes_nZ) // 2
    codes = codes_nZ[torch.randperm(len(codes_nZ), generator=generator)]
    prior = prior_nZ[torch.randperm(len(prior_nZ), generator=generator)]
    train = torch.cat([prior[:half], codes[:half]])
    test = torch.cat([prior[half:], codes[half:]])
    train_y = (torch.arange(len(train)) < half).to(train.dtype)
    test_y = (torch.arange(len(test)) < len(prior) - half).to(test.dtype)
    return train, train_y, test, test_y


def _widest(bandwidth: float) -> float:
    """Return the unit of rows in which the widest kernel is exp(-distance^2)."""
    return math.sqrt(2.0) * SCALES[0] * bandwidth


def _kernel_sum(a: Tensor, b: Tensor) -> float:
    """Return the sum over all pairs of all kernels; rows are in units of the widest kernel."""
    total = 0.0
    for a_block in a.split(_BLOCK_ROWS):
        for b_block in b.split(_BLOCK_ROWS):
            total += _block_sum(a_block, b_block)
    return total


def _block_sum(a: Tensor, b: Tensor) -> float:
    """Return one block's part of `_kernel_sum`: one exponential, narrower kernels by squaring."""
    distance = torch.addmm(b.square().sum(1), a, b.T, alpha=-2).add_(
        a.square().sum(1, keepdim=True)
    )
    kernel = distance.clamp_min_(0).neg_().exp_()
    total = kernel.sum().item()
    for _ in SCALES[1:]:
        # Half the width is the fourth power. Without the floor (whose fourth power, 1e-36, adds
        # nothing) the products reach subnormal numbers, which slow a CPU down many times.
        kernel.clamp_min_(1e-9).square_().square_()
        total += kernel.sum().item()
    return total


HIDDEN = 256
EPOCHS = 20
BATCH = 256
LEARNING_RATE = 1e-3


class FlatAdam:
    """Adam with torch's defaults on one flat vector of parameters.

    Creating a `torch.optim` optimizer imports `torch._dynamo`, which takes seconds; one vector also
    needs five kernels per step instead of five per tensor.
    """

    def __init__(self, parameters: Tensor, lr: float) -> None:
        """Start with zero moments; `parameters` is updated in place."""
        self._parameters, self._lr, self._steps = parameters, lr, 0
        self._first, self._second = torch.zeros_like(parameters), torch.zeros_like(parameters)

    def step(self, gradient: Tensor) -> None:
        """Update the parameters with one gradient (Kingma and Ba 2015, algorithm 1)."""
        beta1, beta2, eps = 0.9, 0.999, 1e-8
        self._steps += 1
        self._first.lerp_(gradient, 1 - beta1)
        self._second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        root = (self._second / (1 - beta2**self._steps)).sqrt_().add_(eps)
        self._parameters.addcdiv_(self._first, root, value=-self._lr / (1 - beta1**self._steps))


def accuracy_of_trained_classifier(
    train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor, generator: torch.Generator
) -> float:
    """Train on one half, return the accuracy on the other; rows are standardised, y is 0 or 1."""
    with torch.inference_mode(mode=False), torch.enable_grad():
        layers = _train(train_x, train_y, generator)
    with torch.no_grad():
        called_one = _logits(layers, test_x) > 0
    return (called_one == (test_y > 0.5)).double().mean().item()


def _train(x: Tensor, y: Tensor, generator: torch.Generator) -> list[Tensor]:
    flat, layers = _initial_layers(x.shape[1], x.dtype, generator)
    adam = FlatAdam(flat, LEARNING_RATE)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(x), generator=generator).split(BATCH):
            loss = F.binary_cross_entropy_with_logits(_logits(layers, x[rows]), y[rows])
            gradients = torch.autograd.grad(loss, layers)
            adam.step(torch.cat([g.reshape(-1) for g in gradients]))
    return layers


def _initial_layers(
    num_inputs: int, dtype: torch.dtype, generator: torch.Generator
) -> tuple[Tensor, list[Tensor]]:
    """Return one flat vector and the layers that view it, drawn as torch.nn.Linear draws them."""
    sizes = [(num_inputs, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, 1)]
    shapes = [shape for fan_in, fan_out in sizes for shape in ((fan_out, fan_in), (fan_out,))]
    bounds = [fan_in**-0.5 for fan_in, _ in sizes for _ in range(2)]
    counts = [torch.Size(shape).numel() for shape in shapes]
    flat = torch.rand(sum(counts), dtype=dtype, generator=generator).mul_(2).sub_(1)
    layers = []
    for part, shape, bound in zip(flat.split(counts), shapes, bounds, strict=True):
        layers.append(part.mul_(bound).view(shape).detach().requires_grad_())
    return flat, layers


def _logits(layers: list[Tensor], x: Tensor) -> Tensor:
    w1, b1, w2, b2, w3, b3 = layers
    return F.linear(F.linear(F.linear(x, w1, b1).relu(), w2, b2).relu(), w3, b3)[:, 0]


NUM_SAMPLES = 64
"""Prior samples of n rows that the sliced Wasserstein distance is taken to, and its null among."""
POOL = 4
"""Rows that stand for the prior in the MMD, in multiples of n."""
BANDWIDTH_ROWS = 1000


@dataclass(frozen=True)
class SlicedWasserstein:
    """Root mean square sliced Wasserstein-2 distance to many prior samples of n rows."""

    directions: Tensor
    """Float32 [Z, P], shared by statistic and null."""
    quantiles: np.typing.NDArray[Any]
    """Float32 [P, n]: the samples' sorted projections, averaged over the samples."""
    variance: float
    """Mean squared difference of one sample's sorted projections from `quantiles`."""

    def __call__(self, codes_nZ: Tensor) -> float:
        """Return the distance of n codes, in units of the codes."""
        gap_Pn = sorted_projections(codes_nZ, self.directions)
        gap_Pn -= self.quantiles
        return math.sqrt(np.square(gap_Pn).mean(dtype=np.float64) + self.variance)

    @property
    def null(self) -> float:
        """The root mean square distance over all pairs among the prior samples."""
        return math.sqrt(2 * self.variance * NUM_SAMPLES / (NUM_SAMPLES - 1))


@dataclass(frozen=True)
class Mmd:
    """Root mean square MMD to the prior's samples of n rows, whose mean a large pool stands for."""

    pool: Tensor
    """Float32 [m, Z]: prior samples, m > n."""
    bandwidth: float
    """Unit of the kernels' widths, shared by statistic and null."""
    within: float
    """Mean kernel over all pairs of pooled rows, each with itself among them."""
    num_samples: int
    """n."""

    def __call__(self, codes_nZ: Tensor) -> float:
        """Return the root mean square MMD of n codes to prior samples of n rows."""
        across = mean_kernel(codes_nZ, self.pool, self.bandwidth)
        square = mean_kernel_within(codes_nZ, self.bandwidth) + self.within - 2 * across
        # The pool's mean lies nearer to the prior's than that of n rows; by how much is known.
        fewer_rows = (1 / self.num_samples - 1 / len(self.pool)) * self._spread
        return math.sqrt(max(square + fewer_rows, 0.0))

    @property
    def null(self) -> float:
        """The root mean square MMD of two prior samples of n rows."""
        # Exact: the biased MMD squared is the squared distance of two independent means of n kernel
        # features, each of which has this spread around the prior's.
        return math.sqrt(2 * self._spread / self.num_samples)

    @property
    def _spread(self) -> float:
        """1 - E k(z, z') by all pairs of different pooled rows; k is 1 at distance 0."""
        m = len(self.pool)
        return 1 - (self.within * m - 1) / (m - 1)


@dataclass(frozen=True)
class PriorBaseline:
    """The part of scoring against one prior that does not depend on the codes."""

    prior_samples: Tensor
    """Float32 [n, Z]: what the two-sample classifier sees, the same at every evaluation."""
    sliced_wasserstein: SlicedWasserstein
    mmd: Mmd


def build_baseline(prior: Prior, num_samples: int, seed: int) -> PriorBaseline:
    """Draw the prior samples, as many as codes that will be scored, and measure the null.

    Every draw is keyed by the run's seed. Takes seconds at 10,000 samples.
    """
    draw = keyed_generator(seed, "evaluation/prior")
    return PriorBaseline(
        prior_samples=prior.sample(num_samples, draw).float(),
        sliced_wasserstein=_sliced_wasserstein(prior, num_samples, seed),
        mmd=_mmd(prior, num_samples, seed),
    )


def score(codes_nZ: Tensor, baseline: PriorBaseline, seed: int) -> dict[str, float]:
    """Return the metrics of the match between codes, float [n, Z], and the prior.

    Codes that are not finite give metrics that are not a number.
    """
    codes = codes_nZ.float()
    if not bool(codes.isfinite().all()):
        return dict.fromkeys(_NAMES, math.nan) | {"prior_match/num_samples": float(len(codes))}
    draw = keyed_generator(seed, "evaluation/c2st")
    accuracy = c2st(codes, baseline.prior_samples, draw)
    distance = _ratio(baseline.sliced_wasserstein(codes), baseline.sliced_wasserstein.null)
    mmd = _ratio(baseline.mmd(codes), baseline.mmd.null)
    values = (accuracy.value, accuracy.low, accuracy.high, distance, mmd)
    return dict(zip(_NAMES, values, strict=True)) | {"prior_match/num_samples": float(len(codes))}


_MEASURES = ("c2st", "c2st_low", "c2st_high", "sliced_wasserstein", "mmd")
_NAMES = tuple(f"prior_match/{name}" for name in _MEASURES)


def _ratio(value: float, null: float) -> float:
    """Return a statistic in units of its null; a prior that is one point has none to give."""
    return value / null if null > 0 else math.nan


def _sliced_wasserstein(prior: Prior, num_samples: int, seed: int) -> SlicedWasserstein:
    directions_ZP = projections(prior.latent_dim, keyed_generator(seed, "projections"))
    draw = keyed_generator(seed, "evaluation/null")
    total = np.zeros((directions_ZP.shape[1], num_samples), dtype=np.float64)
    mean_square = 0.0
    for _ in range(NUM_SAMPLES):
        sample_nZ = prior.sample(num_samples, draw).float()
        sorted_Pn = sorted_projections(sample_nZ, directions_ZP)
        total += sorted_Pn
        mean_square += np.square(sorted_Pn).mean(dtype=np.float64) / NUM_SAMPLES
    quantiles_Pn = total / NUM_SAMPLES
    variance = mean_square - np.square(quantiles_Pn).mean()
    return SlicedWasserstein(directions_ZP, quantiles_Pn.astype(np.float32), max(variance, 0.0))


def _mmd(prior: Prior, num_samples: int, seed: int) -> Mmd:
    kernel_rows = prior.sample(BANDWIDTH_ROWS, keyed_generator(seed, "evaluation/bandwidth"))
    bandwidth = median_distance(kernel_rows.float())
    pool = prior.sample(POOL * num_samples, keyed_generator(seed, "evaluation/pool")).float()
    within = mean_kernel_within(pool, bandwidth)
    return Mmd(pool, bandwidth, within, num_samples)
