"""The whole configuration of a run, and the checks that span sections."""

from collections.abc import Iterator

from pydantic import model_validator
from pydantic_core import PydanticCustomError

from aae_dist.config import networks, parts, priors, settings
from aae_dist.config.phases import Phases
from aae_dist.config.section import Section


class RunConfig(Section):
    """Everything that determines a run."""

    run: settings.Run
    data: settings.Data
    model: networks.Model = networks.MlpModel()
    posterior: networks.Posterior = networks.DeterministicPosterior()
    prior: priors.Prior = priors.GaussianPrior()
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
    """Return the largest divisor of the global batch up to 32: each lane keeps a shard open."""
    return max(n for n in range(1, 33) if global_batch_size % n == 0)


Problem = tuple[str, str]
"""Path of the key, and what is wrong with it, what was got, what to do."""


def cross_checks(config: RunConfig) -> Iterator[Problem]:
    """Yield every contradiction between two sections."""
    if (config.train.steps is None) == (config.train.epochs is None):
        yield "train", "give train.steps or train.epochs (exactly one), for example train.epochs=20"
    yield from _prior_problems(config)
    yield from _method_problems(config)
    yield from _batch_problems(config)


ON_THE_SIMPLEX = ("categorical", "data", "run", "custom")
"""Priors that can be matched by codes that are probabilities."""
WITHOUT_KL = {
    "swiss_roll": "has no density",
    "sphere": "has no density",
    "categorical": "has no density",
    "data": "has no density",
    "run": "has no density",
    "uniform": "has density 0 outside its cube, where a Gaussian q(z|x) reaches",
}
"""Priors that KL(q(z|x) || p(z)) of a Gaussian q is infinite for, and why."""


def _prior_problems(config: RunConfig) -> Iterator[Problem]:
    kind, latent_dim = config.prior.kind, config.model.latent_dim
    if kind == "swiss_roll" and latent_dim != 2:
        yield (
            "prior.kind",
            f"swiss_roll exists in 2 dimensions only (got model.latent_dim={latent_dim}); "
            "set model.latent_dim=2 or choose another prior",
        )
    if kind == "mixture" and latent_dim % 2:
        yield (
            "prior.kind",
            f"mixture needs an even model.latent_dim (got {latent_dim}); "
            f"use {latent_dim + 1} or choose another prior",
        )

    if kind in ("sphere", "categorical") and latent_dim < 2:
        yield "prior.kind", f"{kind} needs at least 2 dimensions; set model.latent_dim=2 or more"
    if config.posterior.kind == "categorical" and kind not in ON_THE_SIMPLEX:
        yield (
            "posterior.kind",
            f"categorical codes are probabilities, which prior.kind={kind} is not; "
            "use prior.kind=categorical",
        )


def _method_problems(config: RunConfig) -> Iterator[Problem]:
    method, prior = config.method, config.prior.kind
    if method.reconstruction_loss == "bce" and config.model.decoder_output == "linear":
        yield "method.reconstruction_loss", "bce needs model.decoder_output=sigmoid (got linear)"
    if method.kind == "adversarial" and method.gradient_ratio and method.weight != 1.0:
        yield "method.gradient_ratio", "stands instead of method.weight; set method.weight=1"
    if method.kind != "variational":
        return
    if config.posterior.kind != "gaussian":
        got = config.posterior.kind
        yield "posterior.kind", f"method variational needs posterior.kind=gaussian (got {got})"
    if prior in WITHOUT_KL:
        yield (
            "prior.kind",
            f"{prior} {WITHOUT_KL[prior]}, so method variational has no KL term; "
            "use method.kind=adversarial",
        )


def _batch_problems(config: RunConfig) -> Iterator[Problem]:
    batch, lanes, workers = config.train.global_batch_size, config.lanes, config.launch.most_workers
    if batch % lanes:
        advice = f"must divide train.global_batch_size={batch} (got {lanes})"
        yield "data.lanes", f"{advice}; try {default_lanes(batch)}"
    fewest = config.launch.fewest_workers
    if fewest > workers:
        yield "launch.workers", f"[fewest, most] (got {[fewest, workers]}); use {[workers, fewest]}"
    if config.launch.kind == "ray" and workers > lanes:
        yield (
            "launch.workers",
            f"at most one worker a lane (got {workers} workers, {lanes} lanes); "
            f"use launch.workers={lanes} or raise data.lanes to a divisor of {batch}",
        )
