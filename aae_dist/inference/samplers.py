"""Densities fitted to the codes of a trained run: to sample from where codes miss the prior.

A sampler is a file `samplers/KIND.safetensors` in the run's folder: numbers, and metadata that say
which weights it was fitted to. Fitting needs scikit-learn or zuko (extra `samplers`); using a
Gaussian mixture needs neither. Shapes: n codes, Z latent_dim, K components.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_tensors, save as format_tensors
from torch import Tensor

from aae_dist.data import Dataset
from aae_dist.errors import ConfigError
from aae_dist.evaluation.prior_match import Accuracy, c2st
from aae_dist.inference.trained_run import TrainedRun
from aae_dist.priors import Prior
from aae_dist.storage import open_storage
from aae_dist.utils.arrays import stratified
from aae_dist.utils.tensors import keyed_generator

CHUNK = 256
MAX_CODES = 100_000
"""Training codes that a sampler is fitted to, spread over all."""
MAX_COMPARED = 10_000
MAX_BYTES = 1 << 28
"""Largest file of a sampler that is read: 20 components of 1,000 dimensions take 160 MB."""
PACKAGES = {"gmm": ("sklearn", "scikit-learn"), "flow": ("zuko", "zuko")}
"""By kind of sampler: the module and the package that fit it."""
FLOW_STEPS = 2000
FLOW_BATCH = 512
FLOW_SHAPE = {"transforms": 3, "hidden_features": [128, 128]}
STARTS = 3
"""Starts of a mixture, of which the likeliest is kept."""
SMALLEST_VARIANCE = 1e-6
"""Added to the diagonal of each component's covariance, of codes with standard deviation 1."""


class Sampler(Protocol):
    """A density of codes."""

    def sample(self, num: int, generator: torch.Generator) -> Tensor:
        """Return `num` codes, float32 (num, Z)."""

    def log_prob(self, z_nZ: Tensor) -> Tensor:
        """Return log densities in nats, float64 (n)."""

    def tensors(self) -> dict[str, Tensor]:
        """Return the numbers that decide the density."""


class GaussianMixture:
    """A mixture of Gaussians with full covariances, in float64."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        """Take `weights` (K), `means` (K, Z) and `factors` (K, Z, Z), L of covariances L L^T."""
        self._weights, self._means, self._factors = (
            tensors[name].double() for name in ("weights", "means", "factors")
        )

    def sample(self, num: int, generator: torch.Generator) -> Tensor:
        which = torch.multinomial(self._weights, num, replacement=True, generator=generator)
        noise = torch.randn(num, self._means.shape[1], generator=generator, dtype=torch.float64)
        # By component: the factors of all samples would take Z^2 numbers for each.
        z = self._means[which]
        for k in range(len(self._weights)):
            rows = which == k
            z[rows] += noise[rows] @ self._factors[k].T
        return z.float()

    def log_prob(self, z_nZ: Tensor) -> Tensor:
        logs = []
        for weight, mean, factor in zip(self._weights, self._means, self._factors, strict=True):
            centred = (z_nZ.double() - mean).T
            white = torch.linalg.solve_triangular(factor, centred, upper=False)
            scale = factor.diagonal().log().sum() + len(mean) / 2 * math.log(2 * math.pi)
            logs.append(weight.log() - white.square().sum(0) / 2 - scale)
        return torch.stack(logs).logsumexp(0)

    def tensors(self) -> dict[str, Tensor]:
        return {"weights": self._weights, "means": self._means, "factors": self._factors}


class Flow:
    """A neural spline flow (Durkan et al., arXiv 1906.04032) of standardized codes, by zuko."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        """Take `mean` and `std` (Z), and the weights of the flow by name."""
        import zuko

        self._mean, self._std = tensors["mean"], tensors["std"]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.network: Any = zuko.flows.NSF(len(self._mean), **FLOW_SHAPE)
        weights = {k: v for k, v in tensors.items() if k not in ("mean", "std")}
        if weights:
            self.network.load_state_dict(weights)

    def standardized(self, z_nZ: Tensor) -> Tensor:
        """Return codes with mean 0 and standard deviation 1."""
        return (z_nZ.float() - self._mean) / self._std

    @torch.no_grad()
    def sample(self, num: int, generator: torch.Generator) -> Tensor:
        noise = torch.randn(num, len(self._mean), generator=generator)
        z: Tensor = self.network().transform.inv(noise)
        return z * self._std + self._mean

    @torch.no_grad()
    def log_prob(self, z_nZ: Tensor) -> Tensor:
        logs: Tensor = self.network().log_prob(self.standardized(z_nZ))
        return logs.double() - self._std.double().log().sum()

    def tensors(self) -> dict[str, Tensor]:
        return {"mean": self._mean, "std": self._std, **self.network.state_dict()}


KINDS: Mapping[str, Callable[[Mapping[str, Tensor]], Sampler]] = {
    "gmm": GaussianMixture,
    "flow": Flow,
}


def check_packages(kind: str) -> None:
    """Raise ConfigError unless what fits the kind of sampler is installed."""
    module, package = PACKAGES[kind]
    if find_spec(module) is None:
        raise ConfigError(
            f"fitting --kind {kind} needs {package}: pip install {package}, or 'aae_dist[samplers]'"
        )


def fit_gmm(codes_nZ: Tensor, components: int, seed: int) -> GaussianMixture:
    """Fit a mixture by expectation maximisation; there are as many codes as components or more."""
    from sklearn.mixture import GaussianMixture as Fitted

    std = codes_nZ.double().std(0).clamp_min(1e-12)
    rows = (codes_nZ.double() / std).numpy()
    fitted = Fitted(
        components, reg_covar=SMALLEST_VARIANCE, random_state=seed, max_iter=200, n_init=STARTS
    )
    fitted.fit(rows)
    factors = torch.linalg.cholesky(torch.from_numpy(fitted.covariances_))
    means, weights = torch.from_numpy(fitted.means_), torch.from_numpy(fitted.weights_)
    return GaussianMixture(
        {"weights": weights, "means": means * std, "factors": factors * std[:, None]}
    )


def fit_flow(codes_nZ: Tensor, seed: int, steps: int = FLOW_STEPS) -> Flow:
    """Fit a flow by maximum likelihood, with Adam at 1e-3 that falls along a cosine."""
    std = codes_nZ.float().std(0).clamp_min(1e-12)
    flow = Flow({"mean": codes_nZ.float().mean(0), "std": std})
    x, draw = flow.standardized(codes_nZ), torch.Generator().manual_seed(seed)
    adam = torch.optim.Adam(flow.network.parameters(), lr=1e-3)
    fall = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    for _ in range(steps):
        rows = torch.randint(len(x), (min(FLOW_BATCH, len(x)),), generator=draw)
        loss = -flow.network().log_prob(x[rows]).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        fall.step()
    return flow


def readable_chunks(
    dataset: Dataset, most: int, advance: Callable[[int], object]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield images and labels of at most `most` samples, spread over all, without bad ones."""
    numbers = stratified(most, len(dataset))
    for start in range(0, len(numbers), CHUNK):
        samples = dataset.with_label_holes(dataset.load(numbers[start : start + CHUNK]))
        good = torch.ones(len(samples.labels), dtype=torch.bool)
        good[list(samples.bad)] = False
        yield samples.images[good], samples.labels[good]
        advance(len(good))


def codes_of(
    run: TrainedRun,
    data: str | list[str] | tuple[str, ...] | None,
    most: int,
    advance: Callable[[int], object] = lambda _: None,
) -> Tensor:
    """Return codes drawn from q(z|x) of at most `most` samples, spread over all: float32 (n, Z).

    Samples that cannot be read are left out. Codes of two calls are equal.
    """
    codes = []
    for number, (images, labels) in enumerate(readable_chunks(run.open(data), most, advance)):
        draw = keyed_generator(run.config.run.seed, "codes of a sampler", number * CHUNK)
        codes.append(run.encode(images, labels, generator=draw).float().cpu())
    found = torch.cat(codes) if codes else torch.empty(0, run.config.model.latent_dim)
    return found[found.isfinite().all(1)]


def match(sampler: Sampler | Prior, codes_nZ: Tensor, seed: int) -> Accuracy:
    """Return the accuracy of a classifier that tells samples from codes, 0.5 for a match."""
    samples = sampler.sample(len(codes_nZ), keyed_generator(seed, "samples of a sampler"))
    return c2st(codes_nZ, samples, keyed_generator(seed, "evaluation/c2st"))


def save_sampler(run: TrainedRun, kind: str, sampler: Sampler, about: Mapping[str, Any]) -> str:
    """Write the sampler into the run's folder and return its URI."""
    known = {"kind": kind, "step": run.step, "weights": run.fingerprint(), **about}
    tensors = {name: tensor.contiguous() for name, tensor in sampler.tensors().items()}
    folder = open_storage(run.uri)
    folder.write(_key(kind), format_tensors(tensors, {"sampler": json.dumps(known)}))
    return f"{folder.uri}/{_key(kind)}"


def load_sampler(run: TrainedRun, kind: str) -> Sampler:
    """Return a sampler that was fitted to the codes of a run.

    Args:
        run: the run, at the checkpoint to which the sampler was fitted.
        kind: gmm or flow.

    Raises:
        ConfigError: it was not fitted, or to other weights, or its file is damaged, or zuko is
            needed and not installed.
    """
    command, data = _command(run, kind), read_sampler(run, kind)
    if kind == "flow":
        check_packages(kind)
    try:
        size = int.from_bytes(data[:8], "little")
        about = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["sampler"])
        fitted_to = about["weights"]
        sampler = KINDS[kind](parse_tensors(data))
        fits = sampler.sample(1, torch.Generator()).shape == (1, run.config.model.latent_dim)
    except (SafetensorError, ValueError, LookupError, TypeError, RuntimeError) as error:
        raise ConfigError(f"{run.uri}/{_key(kind)} is damaged ({error}): {command}") from None
    if fitted_to != run.fingerprint() or not fits:
        raise ConfigError(
            f"the sampler {kind} of {run.uri} was fitted to other weights (step {about['step']}, "
            f"these are of step {run.step}); fit it again: {command}"
        )
    return sampler


def read_sampler(run: TrainedRun, kind: str) -> bytes:
    """Return the file of a sampler; ConfigError if there is none, or it is no such file."""
    folder, command = open_storage(run.uri), _command(run, kind)
    size = folder.size(_key(kind))
    if size is None:
        raise ConfigError(f"{run.uri} has no sampler {kind}: {command}")
    if size > MAX_BYTES:
        raise ConfigError(f"{run.uri}/{_key(kind)} is damaged ({size:,} bytes): {command}")
    return folder.read(_key(kind))


def _command(run: TrainedRun, kind: str) -> str:
    return f"aae-dist fit-sampler {run.uri} --kind {kind}"


def _key(kind: str) -> str:
    return f"samplers/{kind}.safetensors"
