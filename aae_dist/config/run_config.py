"""The whole configuration of a run, and the checks that span sections."""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pydantic import ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from aae_dist.config.sections import LARGEST_SAMPLES, Section, model as networks, run as runs
from aae_dist.config.sections.method import AdversarialMethod, AnyAdversarial, Method, Phases
from aae_dist.config.sections.model import Model, Posterior, Prior
from aae_dist.config.sections.run import Checkpoint, Data, Evaluation, Launch, Run, Train

CROSS_CHECKS = "cross_checks"
"""Type of the validation error for contradictions between sections."""


class RunConfig(Section):
    """Everything that determines a run."""

    run: Run
    data: Data
    model: Model = networks.MlpModel()
    posterior: Posterior = networks.DeterministicPosterior()
    prior: Prior = networks.GaussianPrior()
    method: Method = AdversarialMethod()
    phases: Phases = Phases()
    train: Train = Train()
    evaluation: Evaluation = Evaluation()
    checkpoint: Checkpoint = Checkpoint()
    launch: Launch = Launch()
    wandb: runs.Wandb = runs.Wandb()

    @property
    def lanes(self) -> int:
        """Parallel sample streams of the run (see `data.lanes`)."""
        return _lanes(self.data, self.train)

    @property
    def decoding_threads(self) -> int:
        """Decoding threads per rank (see `data.threads`)."""
        threads = self.data.threads
        return self.launch.threads if threads is None else threads

    @field_validator("*")
    @classmethod
    def _record_valid_section(cls, section: Section, info: ValidationInfo) -> Section:
        """Put the section into the validation's context, for checks if other sections fail."""
        if info.context is not None:
            info.context[info.field_name] = section
        return section

    @model_validator(mode="after")
    def _check_across_sections(self) -> "RunConfig":
        problems = list(cross_checks(dict(self)))
        if problems:
            text = "\n".join(f"{path}: {problem}" for path, problem in problems)
            raise PydanticCustomError(CROSS_CHECKS, "{text}", {"text": text})
        return self


def default_lanes(global_batch_size: int) -> int:
    """Return the largest divisor of the global batch up to 32: each lane keeps a shard open."""
    return max(n for n in range(1, 33) if global_batch_size % n == 0)


Problem = tuple[str, str]
"""Path of the key; what is wrong with it, the value it has, and how to fix it."""


def cross_checks(sections: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield every contradiction between valid sections; a check that needs another is skipped."""
    for check, needed in CHECKS.items():
        if sections.keys() >= needed:
            yield from check(**{name: sections[name] for name in needed})


def _lanes(data: Data, train: Train) -> int:
    return data.lanes or default_lanes(train.global_batch_size)


def _length_problems(train: Train) -> Iterator[Problem]:
    if (train.steps is None) == (train.epochs is None):
        yield "train", "give train.steps or train.epochs (exactly one), for example train.epochs=20"
    if train.steps is not None and train.steps * train.global_batch_size > LARGEST_SAMPLES:
        yield (
            "train.steps",
            f"{train.steps} steps of {train.global_batch_size} samples are more than 2^62 samples, "
            "which nothing can count; write fewer",
        )


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
"""Priors for which KL(q(z|x) || p(z)) of a Gaussian q is infinite, and why."""


def _channel_problems(data: Data) -> Iterator[Problem]:
    has_arrays = any(key.rpartition(".")[2] == "npy" for key in data.image_keys)
    if data.channels not in (None, 1, 3) and not has_arrays:
        yield (
            "data.channels",
            f"images have 1 (grey) or 3 (colour) (got {data.channels}); other numbers are for "
            "arrays, data.image_keys=[npy]",
        )


def _prior_problems(prior: Prior, model: Model) -> Iterator[Problem]:
    if prior.kind != "product":
        yield from _size_problems(prior.kind, "prior.kind", "model.latent_dim", model.latent_dim)
        return
    total = sum(part.dims for part in prior.parts)
    if total != model.latent_dim:
        yield (
            "model.latent_dim",
            f"must be the sum of prior.parts' dims, {total} (got {model.latent_dim}); "
            f"set model.latent_dim={total}",
        )
    for number, part in enumerate(prior.parts):
        path = f"prior.parts.{number}"
        yield from _size_problems(part.prior.kind, f"{path}.prior.kind", "dims", part.dims)
        if part.straight_through and part.prior.kind != "categorical":
            yield (
                f"{path}.straight_through",
                f"is for a categorical part (got prior.kind={part.prior.kind}); leave it out",
            )


def _given_problems(prior: Prior, data: Data) -> Iterator[Problem]:
    if prior.kind != "product":
        return
    given = [number for number, part in enumerate(prior.parts) if part.given]
    for number in given:
        part, path = prior.parts[number], f"prior.parts.{number}.given"
        if part.prior.kind != "categorical":
            yield path, f"needs prior: {{kind: categorical}} (got {part.prior.kind})"
        if part.straight_through:
            yield path, "is one-hot as it is; leave straight_through out"
        if data.label_key is None:
            yield path, "needs labels, and data.label_key is null; name their field"
    if len(given) == len(prior.parts):
        yield "prior.parts", "every part is given; add one that the encoder infers"


def num_classes_of(prior: Prior) -> int | None:
    """Return the number of classes of a prior that labels can guide; None for others."""
    match prior:
        case networks.MixturePrior():
            return prior.num_modes
        case networks.SwissRollPrior():
            return prior.num_classes
        case _:
            return None


def label_rule(config: RunConfig) -> tuple[int, bool] | None:
    """Return the number of labels that training reads, and whether every sample needs one.

    None where the samples' labels are not read.
    """
    prior = config.prior
    given = [p.dims for p in prior.parts if p.given] if prior.kind == "product" else []
    if given:
        return math.prod(given), True
    guided = num_classes_of(prior) if config.method.kind == "label_guided" else None
    return None if guided is None else (guided, False)


def _label_problems(method: Method, prior: Prior, data: Data) -> Iterator[Problem]:
    if method.kind == "label_guided" and num_classes_of(prior) is None:
        yield (
            "prior.kind",
            f"method label_guided needs a prior with classes, mixture or swiss_roll (got "
            f"{prior.kind})",
        )
    if method.kind == "label_guided" and data.label_key is None:
        yield "data.label_key", "method label_guided reads labels; name their field"
    if (data.labelled is None) == (method.kind == "semi_supervised"):
        yield (
            "data.labelled",
            "names the labelled samples of method.kind=semi_supervised, and no other method's "
            f"(got data.labelled={'null' if data.labelled is None else 'shards'}, "
            f"method.kind={method.kind})",
        )
    if method.kind != "semi_supervised":
        return
    parts = prior.parts if prior.kind == "product" else ()
    if not any(part.prior.kind == "categorical" for part in parts) or any(
        part.given for part in parts
    ):
        yield (
            "prior.kind",
            "method semi_supervised needs prior.kind=product with a categorical part for the "
            "class, and none that is given",
        )


def _head_problems(model: Model, prior: Prior) -> Iterator[Problem]:
    kinds = [part.prior.kind == "categorical" for part in getattr(prior, "parts", ())]
    if model.cluster_heads is not None and sorted(kinds) != [False, True]:
        yield (
            "model.cluster_heads",
            "needs prior.kind=product with one categorical part, the class, and one other, the "
            f"style (got {' and '.join(kinds_of(prior))})",
        )


def _smoothness_problems(method: Method, prior: Prior) -> Iterator[Problem]:
    if not isinstance(method, AnyAdversarial) or not method.smoothness:
        return
    parts = prior.parts if prior.kind == "product" else ()
    if not any(part.prior.kind == "categorical" and not part.given for part in parts):
        yield (
            "method.smoothness",
            "is for class probabilities, and needs prior.kind=product with a categorical part that "
            f"is not given (got {' and '.join(kinds_of(prior))})",
        )
    if method.reconstruction_loss in COUNTS:
        yield "method.smoothness", "is for images and other floats, not for counts; leave it out"


def _size_problems(kind: str, path: str, key: str, dims: int) -> Iterator[Problem]:
    if kind == "swiss_roll" and dims != 2:
        yield (
            path,
            f"swiss_roll exists in 2 dimensions only (got {key}={dims}); "
            f"set {key}=2 or choose another prior",
        )
    if kind == "mixture" and dims % 2:
        yield (
            path,
            f"mixture needs an even {key} (got {dims}); use {dims + 1} or choose another prior",
        )
    if kind in ("sphere", "categorical") and dims < 2:
        yield path, f"{kind} needs at least 2 dimensions; set {key}=2 or more"


def kinds_of(prior: Prior) -> list[str]:
    """Return the kinds of a prior's parts, or its own."""
    return [p.prior.kind for p in prior.parts] if prior.kind == "product" else [prior.kind]


def _posterior_problems(posterior: Posterior, prior: Prior) -> Iterator[Problem]:
    if posterior.kind != "categorical":
        return
    for kind in [kind for kind in kinds_of(prior) if kind not in ON_THE_SIMPLEX][:1]:
        advice = "use prior.kind=categorical"
        if prior.kind == "product":
            advice = "choose another posterior: categorical parts have a softmax in any case"
        yield (
            "posterior.kind",
            f"categorical codes are probabilities, which prior.kind={kind} is not; {advice}",
        )


COUNTS = ("poisson", "negative_binomial", "zinb")
"""Reconstruction losses that are likelihoods of counts."""


def _column_problems(method: Method, data: Data, model: Model) -> Iterator[Problem]:
    is_mixed = method.reconstruction_loss == "mixed"
    if is_mixed != (data.columns is not None):
        yield (
            "data.columns",
            "names the columns of method.reconstruction_loss=mixed, and of no other loss "
            f"(got {method.reconstruction_loss}); use both or neither",
        )
    if is_mixed and model.decoder_output != "linear":
        yield "method.reconstruction_loss", "mixed needs model.decoder_output=linear (got sigmoid)"


def _loss_problems(method: Method, model: Model) -> Iterator[Problem]:
    if method.reconstruction_loss == "bce" and model.decoder_output == "linear":
        yield "method.reconstruction_loss", "bce needs model.decoder_output=sigmoid (got linear)"
    if method.reconstruction_loss not in COUNTS:
        return
    if model.decoder_output != "linear":
        yield (
            "method.reconstruction_loss",
            f"{method.reconstruction_loss} needs model.decoder_output=linear (got sigmoid)",
        )
    if method.image_noise:
        yield "method.image_noise", "is for images and other floats, not for counts; leave it out"


def _scaling_problems(data: Data, model: Model) -> Iterator[Problem]:
    if data.standardize and model.decoder_output != "linear":
        yield "data.standardize", "needs model.decoder_output=linear (got sigmoid)"


def _balance_problems(method: Method, phases: Phases) -> Iterator[Problem]:
    if not isinstance(method, AnyAdversarial):
        return
    kinds = {phases.reconstruction.optimizer.kind, phases.generator.optimizer.kind}
    if method.kind == "semi_supervised":
        kinds.add(phases.classification.optimizer.kind)
    if method.balance == "auto" and not kinds <= {"adam", "adamw"}:
        yield (
            "method.balance",
            "auto needs Adam in reconstruction and generator, whose second moments they share "
            f"(got {' and '.join(sorted(kinds))}); use method.balance=none",
        )
    if method.balance == "auto" and method.gradient_ratio:
        yield "method.gradient_ratio", "replaces the balance; use it with method.balance=none"
    if method.gradient_ratio and method.weight not in (None, 1.0):
        yield "method.gradient_ratio", "replaces method.weight; leave that out"


def _variational_problems(method: Method, posterior: Posterior) -> Iterator[Problem]:
    if method.kind == "variational" and posterior.kind != "gaussian":
        yield (
            "posterior.kind",
            f"method variational needs posterior.kind=gaussian (got {posterior.kind})",
        )


def _kl_problems(method: Method, prior: Prior) -> Iterator[Problem]:
    # A given part is not inferred, so it has no KL.
    kinds = (
        [part.prior.kind for part in prior.parts if not part.given]
        if prior.kind == "product"
        else [prior.kind]
    )
    without = [kind for kind in kinds if kind in WITHOUT_KL]
    if method.kind == "variational" and without:
        yield (
            "prior.kind",
            f"{without[0]} {WITHOUT_KL[without[0]]}, so method variational has no KL term; "
            "use method.kind=adversarial",
        )


def _batch_problems(data: Data, train: Train) -> Iterator[Problem]:
    batch, lanes = train.global_batch_size, _lanes(data, train)
    if batch % lanes:
        advice = f"must divide train.global_batch_size={batch} (got {lanes})"
        yield "data.lanes", f"{advice}; try {default_lanes(batch)}"


def _worker_range_problems(launch: Launch) -> Iterator[Problem]:
    fewest, most = launch.fewest_workers, launch.most_workers
    if fewest > most:
        yield "launch.workers", f"[fewest, most] (got {[fewest, most]}); use {[most, fewest]}"


def _worker_problems(launch: Launch, data: Data, train: Train) -> Iterator[Problem]:
    workers, lanes = launch.most_workers, _lanes(data, train)
    if launch.kind == "ray" and workers > lanes:
        yield (
            "launch.workers",
            f"at most one worker per lane (got {workers} workers, {lanes} lanes); "
            f"use launch.workers={lanes} or raise data.lanes to a divisor of "
            f"{train.global_batch_size}",
        )


def _gpu_problems(launch: Launch) -> Iterator[Problem]:
    workers, gpus = launch.most_workers, launch.gpus_per_worker
    if launch.kind == "ray" and workers > 1 and gpus != "auto" and 0 < gpus < 1:
        yield (
            "launch.gpus_per_worker",
            f"fractions of a GPU are for one worker, as two ranks cannot share a GPU (got {gpus} "
            f"for {workers} workers); use launch.gpus_per_worker=1 or launch.workers=1",
        )


def _features_problems(evaluation: Evaluation) -> Iterator[Problem]:
    chosen = evaluation.features
    if not isinstance(chosen, runs.OwnFeatures):
        return
    given = [key for key in ("path", "run", "export") if getattr(chosen, key) is not None]
    if len(given) != 1:
        got = " and ".join(given) or "none"
        yield "evaluation.features", f"give exactly one of path, run and export (got {got})"
    elif chosen.arguments and chosen.path is None:
        yield "evaluation.features.arguments", "are those of path; leave them out"


_CHECKS: tuple[Callable[..., Iterator[Problem]], ...] = (
    _length_problems,
    _channel_problems,
    _features_problems,
    _prior_problems,
    _given_problems,
    _label_problems,
    _posterior_problems,
    _head_problems,
    _smoothness_problems,
    _loss_problems,
    _column_problems,
    _balance_problems,
    _scaling_problems,
    _variational_problems,
    _kl_problems,
    _batch_problems,
    _worker_range_problems,
    _worker_problems,
    _gpu_problems,
)
CHECKS = {check: set(inspect.signature(check).parameters) for check in _CHECKS}
"""The checks, each with the sections that it takes, and only those: others may be invalid."""
