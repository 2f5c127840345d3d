"""The whole configuration of a run, and the checks that span sections."""

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from typing import Any, cast

from pydantic import create_model, model_validator
from pydantic_core import PydanticCustomError

from aae_dist.config.sections import Section
from aae_dist.config.sections.data import Data
from aae_dist.config.sections.launch import Launch
from aae_dist.config.sections.method import AdversarialMethod, Method
from aae_dist.config.sections.model import DeterministicPosterior, MlpModel, Model, Posterior
from aae_dist.config.sections.phases import Phases
from aae_dist.config.sections.prior import GaussianPrior, Prior
from aae_dist.config.sections.run import Checkpoint, Run, Train, Wandb


class RunConfig(Section):
    """Everything that determines a run."""

    run: Run
    data: Data
    model: Model = MlpModel()
    posterior: Posterior = DeterministicPosterior()
    prior: Prior = GaussianPrior()
    method: Method = AdversarialMethod()
    phases: Phases = Phases()
    train: Train = Train()
    checkpoint: Checkpoint = Checkpoint()
    launch: Launch = Launch()
    wandb: Wandb = Wandb()

    @property
    def lanes(self) -> int:
        """Parallel sample streams of the run (see `data.lanes`)."""
        return _lanes(self)

    @property
    def decoding_threads(self) -> int:
        """Threads of a rank that decode samples (see `data.threads`)."""
        threads = self.data.threads
        return self.launch.cpus_per_worker if threads is None else threads

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


class _Absent(Exception):
    """A check reads a section that is not valid itself."""


class _Valid:
    """The valid sections of a configuration, as a check reads them."""

    def __init__(self, sections: Mapping[str, Any]) -> None:
        self._sections = sections

    def __getattr__(self, name: str) -> Any:
        if name not in self._sections:
            raise _Absent
        return self._sections[name]


def cross_checks(config: RunConfig) -> Iterator[Problem]:
    """Yield every contradiction between two sections."""
    for check in CHECKS:
        # Of a whole configuration no section is absent.
        with suppress(_Absent):
            yield from check(config)


def checks_of_the_rest(tree: Mapping[str, Any], broken: Collection[str]) -> Iterator[Problem]:
    """Yield the contradictions between valid sections of a configuration that has others.

    Args:
        tree: the configuration as JSON has it.
        broken: its sections that are not valid.
    """
    fields: dict[str, Any] = {
        name: (field.annotation, field)
        for name, field in RunConfig.model_fields.items()
        if name not in broken
    }
    rest = create_model("Rest", __base__=Section, **fields)
    known = {name: value for name, value in tree.items() if name in fields}
    found = rest.model_validate_json(json.dumps(known))
    valid = _Valid({name: getattr(found, name) for name in fields})
    yield from cross_checks(cast(RunConfig, valid))


def _lanes(config: RunConfig) -> int:
    return config.data.lanes or default_lanes(config.train.global_batch_size)


def _length_problems(config: RunConfig) -> Iterator[Problem]:
    if (config.train.steps is None) == (config.train.epochs is None):
        yield "train", "give train.steps or train.epochs (exactly one), for example train.epochs=20"


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


def _posterior_problems(config: RunConfig) -> Iterator[Problem]:
    kind = config.prior.kind
    if config.posterior.kind == "categorical" and kind not in ON_THE_SIMPLEX:
        yield (
            "posterior.kind",
            f"categorical codes are probabilities, which prior.kind={kind} is not; "
            "use prior.kind=categorical",
        )


def _loss_problems(config: RunConfig) -> Iterator[Problem]:
    if config.method.reconstruction_loss == "bce" and config.model.decoder_output == "linear":
        yield "method.reconstruction_loss", "bce needs model.decoder_output=sigmoid (got linear)"


def _method_problems(config: RunConfig) -> Iterator[Problem]:
    method = config.method
    if method.kind == "adversarial" and method.gradient_ratio and method.weight != 1.0:
        yield "method.gradient_ratio", "stands instead of method.weight; set method.weight=1"
    if method.kind == "variational" and config.posterior.kind != "gaussian":
        got = config.posterior.kind
        yield "posterior.kind", f"method variational needs posterior.kind=gaussian (got {got})"


def _kl_problems(config: RunConfig) -> Iterator[Problem]:
    prior = config.prior.kind
    if config.method.kind == "variational" and prior in WITHOUT_KL:
        yield (
            "prior.kind",
            f"{prior} {WITHOUT_KL[prior]}, so method variational has no KL term; "
            "use method.kind=adversarial",
        )


def _batch_problems(config: RunConfig) -> Iterator[Problem]:
    batch, lanes = config.train.global_batch_size, _lanes(config)
    if batch % lanes:
        advice = f"must divide train.global_batch_size={batch} (got {lanes})"
        yield "data.lanes", f"{advice}; try {default_lanes(batch)}"


def _worker_problems(config: RunConfig) -> Iterator[Problem]:
    fewest, workers = config.launch.fewest_workers, config.launch.most_workers
    if fewest > workers:
        yield "launch.workers", f"[fewest, most] (got {[fewest, workers]}); use {[workers, fewest]}"
    batch, lanes = config.train.global_batch_size, _lanes(config)
    if config.launch.kind == "ray" and workers > lanes:
        yield (
            "launch.workers",
            f"at most one worker a lane (got {workers} workers, {lanes} lanes); "
            f"use launch.workers={lanes} or raise data.lanes to a divisor of {batch}",
        )
    gpus = config.launch.gpus_per_worker
    if config.launch.kind == "ray" and workers > 1 and gpus != "auto" and 0 < gpus < 1:
        yield (
            "launch.gpus_per_worker",
            f"parts of a GPU are for one worker, as two ranks on one GPU cannot talk (got {gpus} "
            f"for {workers} workers); use launch.gpus_per_worker=1 or launch.workers=1",
        )


CHECKS: tuple[Callable[[RunConfig], Iterator[Problem]], ...] = (
    _length_problems,
    _prior_problems,
    _posterior_problems,
    _loss_problems,
    _method_problems,
    _kl_problems,
    _batch_problems,
    _worker_problems,
)
"""Each reads as few sections as it can: the others may not be valid."""
