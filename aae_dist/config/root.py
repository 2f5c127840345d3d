"""The whole configuration of a run, and the checks that span sections."""

from collections.abc import Iterator

from pydantic import model_validator
from pydantic_core import PydanticCustomError

from aae_dist.config import parts, settings
from aae_dist.config.phases import Phases
from aae_dist.config.section import Section


class RunConfig(Section):
    """Everything that determines a run."""

    run: settings.Run
    data: settings.Data
    model: parts.MlpModel = parts.MlpModel()
    posterior: parts.Posterior = parts.DeterministicPosterior()
    prior: parts.Prior = parts.GaussianPrior()
    method: parts.Method = parts.AdversarialMethod()
    phases: Phases = Phases()
    train: settings.Train = settings.Train()
    checkpoint: settings.Checkpoint = settings.Checkpoint()
    launch: settings.Launch = settings.Launch()
    wandb: settings.Wandb = settings.Wandb()

    @property
    def lanes(self) -> int:
        """Parallel sample streams of the run (see `data.lanes`)."""
        return self.data.lanes or default_lanes(self.train.global_batch_size)

    @model_validator(mode="after")
    def _sections_fit_each_other(self) -> "RunConfig":
        problems = list(cross_checks(self))
        if problems:
            # One error that carries all problems; the loader prints each on a line of its own.
            raise PydanticCustomError("sections", "{problems}", {"problems": problems})
        return self


def default_lanes(global_batch_size: int) -> int:
    """Return the largest divisor of the global batch up to 32: each lane keeps a shard or more open."""
    return max(n for n in range(1, 33) if global_batch_size % n == 0)


def cross_checks(config: RunConfig) -> Iterator[tuple[str, str]]:
    """Yield (path, message) for every pair of sections that contradict each other."""
    yield from _lengths(config)
    yield from _latent_shapes(config)
    yield from _batches(config)


def _lengths(config: RunConfig) -> Iterator[tuple[str, str]]:
    if (config.train.steps is None) == (config.train.epochs is None):
        yield "train", "give train.steps or train.epochs (exactly one), for example train.epochs=20"


def _latent_shapes(config: RunConfig) -> Iterator[tuple[str, str]]:
    latent_dim, prior, method = config.model.latent_dim, config.prior, config.method
    if prior.kind == "swiss_roll" and latent_dim != 2:
        yield "prior.kind", f"swiss_roll exists in 2 dimensions only (got model.latent_dim={latent_dim}); set model.latent_dim=2 or choose another prior"
    if prior.kind == "mixture" and latent_dim % 2:
        yield "prior.kind", f"mixture needs an even model.latent_dim (got {latent_dim}); use {latent_dim + 1} or choose another prior"
    if method.kind == "variational" and config.posterior.kind != "gaussian":
        yield "posterior.kind", f"method variational needs posterior.kind=gaussian (got {config.posterior.kind})"
    if method.kind == "variational" and prior.kind == "swiss_roll":
        yield "prior.kind", "swiss_roll has no density, so method variational has no KL term; use method.kind=adversarial"


def _batches(config: RunConfig) -> Iterator[tuple[str, str]]:
    batch, lanes = config.train.global_batch_size, config.lanes
    if batch % lanes:
        yield "data.lanes", f"must divide train.global_batch_size={batch} (got {lanes}); try {default_lanes(batch)}"
    if config.launch.kind == "ray" and config.launch.workers > lanes:
        yield "launch.workers", f"at most one worker a lane (got {config.launch.workers} workers, {lanes} lanes); use launch.workers={lanes} or raise data.lanes to a divisor of {batch}"
