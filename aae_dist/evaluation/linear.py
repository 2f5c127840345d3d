"""Baselines of reconstruction: the errors of predicting the mean, and of a PCA of the same size.

For counts, the unit of the loss: how much of it a code can explain.
"""

import math

import numpy as np
import torch
from torch import Tensor

from aae_dist.data.dataset import Dataset
from aae_dist.errors import AaeDistError
from aae_dist.losses import half_deviance, negative_binomial_log_prob, poisson_log_prob
from aae_dist.models.tables import log_normalized
from aae_dist.storage import is_remote
from aae_dist.utils.arrays import stratified

CHUNK = 256
"""Samples that are read at once."""
NUM_COMPARED = 2000
"""Validation samples that the variance and the error of a PCA are measured on."""
MAX_COMPARED_NUMBERS = 1 << 28
"""Numbers in all of these, read in chunks: 340 images of 512 x 512 in colour, at least 64."""
NUM_FITTED = 4096
"""Training samples that a PCA is fitted to, of at most `MAX_EXACT` numbers each."""
MAX_EXACT = 1024
"""Side of the matrix whose eigenvectors a PCA needs: 0.4 s; twice as large takes 9 s."""
MAX_FITTED_NUMBERS = 1 << 25
"""Numbers in all samples that a PCA is fitted to: 128 MiB."""
NUM_SHARDS = 16
"""Shards that these samples come from: with all, a thousand would be opened."""
SAMPLES_PER_DIRECTION = 4
"""Training samples that each direction of a PCA needs at least."""
LEAST_UNIT = 0.02
"""Least unit, in half deviances of the mean: for counts of which a code explains nothing."""
MIN_RATE = 0.05
"""Least rate that the PCA may predict, in rates of the mean profile."""
START_DISPERSION = 1.0
"""Of negative binomial counts, as at the start of training."""


def linear_baselines(
    dataset: Dataset,
    numbers: np.typing.NDArray[np.int64],
    training: Dataset | None,
    latent_dim: int,
) -> dict[str, float]:
    """Return the errors per pixel value of the mean and, where it can be had, of a PCA.

    Both are measured on some of the samples `numbers`, spread over all; the PCA, of `latent_dim`
    directions, is fitted to samples of `training`.
    """
    num_values = math.prod(dataset.image_shape)
    fitted = None
    if training is not None and not why_no_pca(num_values, latent_dim):
        training_ND = training_rows(training, num_fitted(num_values))
        if len(training_ND) >= SAMPLES_PER_DIRECTION * latent_dim:
            fitted = fit_pca(training_ND, latent_dim)
    most = min(NUM_COMPARED, max(64, MAX_COMPARED_NUMBERS // num_values))
    compared = numbers[stratified(most, len(numbers))]
    errors = LinearErrors(fitted)
    for start in range(0, len(compared), CHUNK):
        errors.add(good_rows(dataset, compared[start : start + CHUNK]))
    return errors.metrics()


def num_fitted(num_values: int) -> int:
    """Return the most samples of `num_values` numbers that a PCA is fitted to."""
    most = NUM_FITTED if num_values <= MAX_EXACT else MAX_EXACT
    return min(most, MAX_FITTED_NUMBERS // num_values)


def why_no_pca(num_values: int, latent_dim: int) -> str | None:
    """Return why samples of `num_values` numbers are not compared with a PCA, None if they are."""
    if latent_dim >= num_values:
        return f"{latent_dim} latent dimensions for {num_values} numbers lose nothing"
    if num_fitted(num_values) < SAMPLES_PER_DIRECTION * latent_dim:
        return f"{latent_dim} directions of {num_values:,} numbers need too many samples"
    return None


def training_rows(dataset: Dataset, most: int) -> Tensor:
    """Return the good ones of `most` training samples as rows, none where they cannot be read.

    Of shards that have to be fetched it is the first alone.
    """
    num_shards = 1 if is_remote(dataset.manifest.shards[0].folder) else NUM_SHARDS
    numbers = spread_numbers(dataset, most, num_shards)
    try:
        rows = [
            good_rows(dataset, numbers[start : start + CHUNK])
            for start in range(0, len(numbers), CHUNK)
        ]
    except AaeDistError:  # a baseline is not worth a run
        rows = []
    return torch.cat(rows)[:most] if rows else torch.empty(0, math.prod(dataset.image_shape))


def spread_numbers(dataset: Dataset, most: int, num_shards: int) -> np.typing.NDArray[np.int64]:
    """Return the numbers of about `most` samples, spread over a few shards, ascending."""
    counts = np.asarray(dataset.manifest.counts)
    chosen = [shard for shard in stratified(num_shards, len(counts)) if counts[shard]]
    starts = np.cumsum(counts) - counts
    share = -(-most // max(len(chosen), 1))
    return np.concatenate(
        [starts[:0], *(starts[shard] + stratified(share, counts[shard]) for shard in chosen)]
    )


def good_rows(dataset: Dataset, numbers: np.typing.NDArray[np.int64]) -> Tensor:
    """Return the good ones of some samples as rows."""
    samples = dataset.load(numbers)
    good = torch.ones(len(numbers), dtype=torch.bool)
    good[list(samples.bad)] = False
    return as_rows(samples.images.cpu()[good])


def as_rows(images: Tensor) -> Tensor:
    """Return images as float32 rows, (n, C * H * W); bytes become numbers in [0, 1]."""
    rows = images.flatten(1).float()
    return rows / 255 if images.dtype == torch.uint8 else rows


def fit_pca(samples_ND: Tensor, latent_dim: int) -> tuple[Tensor, Tensor]:
    """Return the mean, float64 [D], and the first principal directions, float64 [D, Z].

    Exact, by the eigenvectors of the smaller of the covariance and the products of all pairs.
    """
    mean_D = torch.stack([part.double().sum(0) for part in samples_ND.split(CHUNK)]).sum(0)
    mean_D /= len(samples_ND)
    centred_ND = samples_ND - mean_D.float()
    is_wide = samples_ND.shape[1] > len(samples_ND)
    products = torch.zeros([min(samples_ND.shape)] * 2, dtype=torch.float64)
    for part in centred_ND.split(CHUNK, dim=1 if is_wide else 0):
        rows = part.double() if is_wide else part.double().T
        products += rows @ rows.T
    values, vectors = torch.linalg.eigh(products)
    # Data of a lower rank has no more directions.
    real = values[-latent_dim:] > 1e-12 * values[-1].clamp_min(1e-300)
    kept = vectors[:, -latent_dim:][:, real]
    if not is_wide:
        return mean_D, kept
    parts = [part.double().T @ kept for part in centred_ND.split(CHUNK, dim=1)]
    return mean_D, torch.cat(parts) / values[-latent_dim:][real].sqrt()


class LinearErrors:
    """Squared errors of the samples' own mean, and of a PCA, from chunks of samples."""

    def __init__(self, pca: tuple[Tensor, Tensor] | None) -> None:
        self._pca, self._num, self._num_values = pca, 0, 0
        self._sum: Tensor | float = 0.0
        self._square = self._of_pca = 0.0

    def add(self, samples_ND: Tensor) -> None:
        rows_ND = samples_ND.double()
        self._num, self._num_values = self._num + len(rows_ND), rows_ND.shape[1]
        self._sum = self._sum + rows_ND.sum(0)
        self._square += rows_ND.square().sum().item()
        if self._pca is not None:
            mean_D, directions_DZ = self._pca
            centred = rows_ND - mean_D
            kept = (centred @ directions_DZ).square().sum()
            self._of_pca += (centred.square().sum() - kept).item()

    def metrics(self) -> dict[str, float]:
        """Return both per pixel value; without samples, or a PCA, what there is."""
        count = max(self._num * self._num_values, 1)
        mean = torch.as_tensor(self._sum) / max(self._num, 1)
        variance = (self._square - self._num * mean.square().sum().item()) / count
        found = {"reconstruction/variance": max(variance, 0.0)}
        return found | ({"reconstruction/pca": self._of_pca / count} if self._pca else {})


def explainable_loss(likelihood: str, x_nCHW: Tensor, latent_dim: int) -> float:
    """Return how far the loss of the mean profile lies above that of a PCA, in nats per sample.

    The PCA has `latent_dim` components of log-normalized counts, fitted to the even samples and
    scored on the odd ones. For images the loss of the mean itself is such a unit; for counts most
    of it is noise that no code can explain.
    """
    x = x_nCHW.flatten(1).double()
    least = LEAST_UNIT * float(half_deviance(likelihood, x).mean())
    fitted, scored = x[::2], x[1::2]
    if len(scored) < 2:
        return least
    library = fitted.sum(1).median().clamp_min(1)
    features, others = log_normalized(fitted, library), log_normalized(scored, library)
    mean = features.mean(0)
    rank = min(latent_dim, *features.shape)
    axes = torch.linalg.eigh((features - mean).T @ (features - mean))[1][:, -rank:]
    profile = fitted.sum(0) / fitted.sum().clamp_min(1)
    predicted = ((others - mean) @ axes @ axes.T + mean).expm1()
    predicted = torch.maximum(predicted, MIN_RATE * library * profile)
    totals = scored.sum(1, keepdim=True)
    shares = predicted / predicted.sum(1, keepdim=True).clamp_min(1e-12)
    gain = _log_prob(likelihood, scored, shares * totals)
    gain -= _log_prob(likelihood, scored, profile * totals)
    return max(float(gain.sum(1).mean()), least)


def _log_prob(likelihood: str, x: Tensor, rates: Tensor) -> Tensor:
    if likelihood == "poisson":
        return poisson_log_prob(x, rates)
    return negative_binomial_log_prob(x, rates, torch.full_like(x, START_DISPERSION))
