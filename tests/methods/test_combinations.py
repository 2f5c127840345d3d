"""Every network with every method, prior and posterior: what is admitted trains, resumes, loads.

What else can be chosen (loss, micro-batches, moving average, shape of samples, spectral norm,
straight-through, cluster heads, smoothness) is spread over the combinations by a hash.
"""

import hashlib
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.ranks import single_world
from helpers.steps import MODELS, global_batch, global_labels, tiny_config
from torch import Tensor

import aae_dist
from aae_dist.checkpoints.format import Checkpoint, WeightAverage
from aae_dist.checkpoints.store import CheckpointStore
from aae_dist.config import RunConfig
from aae_dist.errors import ConfigError
from aae_dist.methods import Method, StepInputs, build_method
from aae_dist.methods.method import LabelledSet
from aae_dist.models import DTYPES, build_networks, build_posterior
from aae_dist.priors import Prior, build_prior
from aae_dist.storage import open_storage
from aae_dist.training.state import TrainState

STEPS = 20
MODEL_CHOICES = ("mlp", "conv", "resnet")
POSTERIORS = ("deterministic", "gaussian", "universal", "categorical")
METHODS: dict[str, dict[str, Any]] = {
    "adversarial": {},
    "least_squares": {"kind": "adversarial", "adversary": "least_squares", "weight": 2.0},
    "hinge": {"kind": "adversarial", "adversary": "hinge", "r1_weight": 0.1, "r1_every": 3},
    "blurred": {"kind": "adversarial", "input_noise": 0.1},
    "ratio": {"kind": "adversarial", "balance": "none", "gradient_ratio": 0.5},
    "label_guided": {},
    "semi_supervised": {},
    "variational": {},
    "autoencoder": {},
    "mmd": {},
    "sliced_wasserstein": {},
    "characteristic": {},
}
PRIORS: dict[str, dict[str, Any]] = {
    "gaussian": {},
    "mixture": {"num_modes": 3},
    "swiss_roll": {},
    "uniform": {},
    "laplace": {},
    "student_t": {},
    "sphere": {},
    "categorical": {},
    "data": {"vectors": "unused"},
    "run": {"uri": "unused"},
    "custom": {"path": "aae_dist.priors:GaussianPrior"},
    "product": {
        "parts": (
            {"dims": 3, "prior": {"kind": "categorical"}},
            {"dims": 2, "prior": {"kind": "mixture"}},
        )
    },
    "given": {
        "kind": "product",
        "parts": (
            {"dims": 3, "prior": {"kind": "categorical"}, "given": "label"},
            {"dims": 2, "prior": {"kind": "mixture"}},
        ),
    },
}
LATENT_DIMS = {"product": 5, "given": 5}
WITH_DENSITY = ("gaussian", "mixture", "laplace", "student_t", "custom")
ON_THE_SIMPLEX = ("categorical", "data", "run", "custom")
WITH_ADVERSARY = ("adversarial", "least_squares", "hinge", "blurred", "ratio", "semi_supervised")
LOSSES = ("sum_half", "mean", "bce", "l1")

Combination = tuple[str, str, str, str]
ALL: list[Combination] = list(itertools.product(MODEL_CHOICES, METHODS, PRIORS, POSTERIORS))


def refusal(model: str, method: str, prior: str, posterior: str) -> str | None:
    """Return words of the reason why a combination is refused; None if it is admitted."""
    if method == "label_guided" and prior not in ("mixture", "swiss_roll"):
        return "method label_guided needs a prior with classes"
    if method == "semi_supervised" and prior != "product":
        return "method semi_supervised needs prior.kind=product"
    if posterior == "categorical" and prior in ("product", "given"):
        return "choose another posterior"
    if posterior == "categorical" and prior not in ON_THE_SIMPLEX:
        return "use prior.kind=categorical"
    if method == "variational" and posterior != "gaussian":
        return "method variational needs posterior.kind=gaussian"
    if method == "variational" and prior not in (*WITH_DENSITY, "given"):
        return "so method variational has no KL term"
    return None


@dataclass(frozen=True)
class Extras:
    """What a combination is tried with, beside its four parts."""

    loss: str
    micro_batch_size: int | None
    ema_decay: float | None
    shape: tuple[int, int, int]
    is_linear: bool
    spectral_norm: bool
    straight_through: bool
    has_more: bool
    """Cluster heads and smoothness, where the code has parts."""

    @classmethod
    def of(cls, model: str, *others: str) -> "Extras":
        digest = hashlib.blake2b("-".join((model, *others)).encode()).digest()
        loss, shape = LOSSES[digest[0] % 4], SHAPES[model][digest[3] % 2]
        return cls(
            loss=loss,
            micro_batch_size=(None, 10)[digest[1] % 2],
            ema_decay=(None, 0.9)[digest[2] % 2],
            shape=shape,
            is_linear=shape[:2] == (1, 1) and loss != "bce",
            spectral_norm=digest[4] % 2 == 1,
            straight_through=digest[5] % 2 == 1,
            has_more=digest[6] % 2 == 1,
        )


SHAPES = {"mlp": ((1, 6, 6), (1, 1, 9)), "conv": ((1, 6, 6), (3, 5, 7))}
SHAPES["resnet"] = SHAPES["conv"]


def features(combination: Combination) -> set[Any]:
    """Return what a small choice of combinations should have at least once."""
    model, method, prior, posterior = combination
    chosen = {*vars(Extras.of(*combination)).items()}
    return {(method, posterior), (model, posterior), prior, *chosen}


def cover() -> list[Combination]:
    """Return few admitted combinations that have every feature of all at least once."""
    admitted = [combination for combination in ALL if refusal(*combination) is None]
    features_of = {combination: features(combination) for combination in admitted}
    wanted, chosen = set().union(*features_of.values()), []
    while wanted:
        best = max(admitted, key=lambda c: len(wanted & features_of[c]))
        wanted -= features_of[best]
        chosen.append(best)
    return chosen


COVER = cover()


def config_of(model: str, method: str, prior: str, posterior: str) -> RunConfig:
    extras = Extras.of(model, method, prior, posterior)
    straight = {"straight_through": extras.straight_through} if posterior == "categorical" else {}
    chosen = PRIORS[prior]
    if prior == "product":
        first, *others = chosen["parts"]
        chosen = {"parts": (first | {"straight_through": extras.straight_through}, *others)}
    more = {}
    if extras.has_more and prior == "product" and method in WITH_ADVERSARY:
        more = {"smoothness": 0.5}
    heads = {"cluster_heads": {}} if extras.has_more and prior in ("product", "given") else {}
    labelled = {"data": {"train": "x", "labelled": "y"}} if method == "semi_supervised" else {}
    return tiny_config(
        **labelled,
        model={
            **MODELS[model],
            **heads,
            "latent_dim": LATENT_DIMS.get(prior, 2),
            "decoder_output": "linear" if extras.is_linear else "sigmoid",
            "discriminator_spectral_norm": extras.spectral_norm,
        },
        method={"kind": method, **METHODS[method], **more, "reconstruction_loss": extras.loss},
        prior={"kind": prior, **chosen},
        posterior={"kind": posterior, **straight},
        train={
            "steps": STEPS,
            "global_batch_size": 24,
            "precision": "fp32",
            "micro_batch_size": extras.micro_batch_size,
            "ema_decay": extras.ema_decay,
        },
    )


def samples(extras: Extras, num: int, seed: int) -> Tensor:
    """Return images as bytes; vectors as floats, beyond [0, 1] for a linear decoder."""
    draw = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (num, *extras.shape), generator=draw, dtype=torch.uint8)
    if extras.shape[:2] != (1, 1):
        return images
    return images / 40 - 3 if extras.is_linear else images / 255


class Run:
    """A run without its data set and its loop."""

    def __init__(self, config: RunConfig, extras: Extras) -> None:
        world, self.config, self.extras = single_world(), config, extras
        draw = torch.Generator().manual_seed(0)
        is_set = config.prior.kind in ("data", "run")
        self.vectors = torch.rand(9, 2, generator=draw) if is_set else None
        prior = build_prior(config.prior, config.model.latent_dim, self.vectors)
        networks = build_networks(config, extras.shape, world.device)
        self.method: Method = build_method(config, networks, prior, extras.shape, world)
        decay = config.train.ema_decay
        average = WeightAverage(networks, decay) if decay else None
        labelled = None
        if config.data.labelled is not None:
            labelled = LabelledSet(samples(extras, 9, 99), torch.arange(9) % 3)
        optimizers = self.method.optimizers
        self.state = TrainState(networks, optimizers, average, self.vectors, labelled)
        self.inputs = StepInputs(
            seed=0,
            prior=prior,
            posterior=build_posterior(config.posterior, config.prior),
            rows=slice(0, 24),
            global_batch_size=24,
            micro_batch_size=config.train.micro_batch_size,
            world=world,
            dtype=DTYPES[config.train.precision],
            is_guided=config.method.kind == "label_guided",
            labelled=self.state.labelled,
        )

    def train(self, until: int) -> None:
        while self.state.step < until:
            step = self.state.step
            images, (_, valid) = samples(self.extras, 24, step), global_batch(self.config, step)
            self.method.set_progress(step / 100)
            labels = global_labels(self.config, step)
            parts = self.inputs.parts(images, valid, int(valid.sum()), step, labels)
            losses = self.method.step(parts)
            assert all(bool(loss.isfinite()) for loss in losses.values()), losses
            self.state.step += 1
            if self.state.average:
                self.state.average.update(self.state.step)

    def saved(self, folder: Path) -> Checkpoint:
        """Return the state as it comes back from a checkpoint on disk."""
        metadata = {
            "state": self.state.metadata(),
            "config": self.config.model_dump(mode="json"),
            "data": {"image_shape": self.extras.shape},
        }
        store = CheckpointStore(open_storage(str(folder)), keep=3)
        store.save(self.state.step, self.state.tensors(), metadata)
        store.wait()
        return store.load(self.state.step)


def check(combination: Combination, folder: Path) -> None:
    reason = refusal(*combination)
    if reason is not None:
        with pytest.raises((ConfigError, ValueError), match=reason):
            config_of(*combination)
        return
    torch.set_num_threads(1)
    config, extras = config_of(*combination), Extras.of(*combination)
    unbroken, resumed = Run(config, extras), Run(config, extras)
    fresh = {k: v.clone() for k, v in unbroken.state.tensors()["model"].items()}
    unbroken.train(STEPS // 2)
    halfway = unbroken.saved(folder)
    unbroken.train(STEPS)
    resumed.state.load(halfway.tensors, halfway.metadata["state"])
    resumed.train(STEPS)
    wanted, got = unbroken.saved(folder), resumed.saved(folder / "resumed")
    assert wanted.metadata["state"] == got.metadata["state"]
    for file, tensors in wanted.tensors.items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, got.tensors[file][name]), (file, name)
    assert not all(torch.equal(fresh[k], v) for k, v in wanted.tensors["model"].items())
    loaded = aae_dist.load_run(str(folder))
    assert loaded.step == STEPS
    images = samples(extras, 3, STEPS)
    assert loaded.reconstruct(images, labels=[0, 1, 2]).shape == images.shape
    assert loaded.sample(4).shape == (4, *extras.shape)
    assert bool(loaded.encode(images, labels=[0, 1, 2]).isfinite().all())


@pytest.mark.run
@pytest.mark.parametrize("combination", COVER, ids="-".join)
def test_each_network_method_prior_and_posterior_trains_resumes_and_loads(
    combination: Combination, tmp_path: Path
) -> None:
    check(combination, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("combination", [c for c in ALL if c not in COVER], ids="-".join)
def test_every_combination_trains_resumes_and_loads_or_is_refused(
    combination: Combination, tmp_path: Path
) -> None:
    check(combination, tmp_path)


def test_every_posterior_meets_every_value_of_what_is_spread_by_a_hash() -> None:
    values = {field: set() for field in vars(Extras.of(*ALL[0]))}
    met = {posterior: {field: set() for field in values} for posterior in POSTERIORS}
    for combination in ALL:
        for field, value in vars(Extras.of(*combination)).items():
            values[field].add(value)
            if refusal(*combination) is None:
                met[combination[-1]][field].add(value)
    assert all(found == values for found in met.values())
    assert len(values["loss"]) == 4


def test_refusals_are_told_at_once() -> None:
    refused = [c for c in ALL if refusal(*c) is not None and c[0] == "mlp"]
    for combination in refused:
        with pytest.raises((ConfigError, ValueError), match=refusal(*combination)):
            config_of(*combination)
    assert len(refused) == 222


class WithoutDensity(Prior):
    """A prior that can be sampled and has no density."""

    def sample(self, num_samples: int, generator: torch.Generator) -> Tensor:
        return torch.rand(num_samples, self.latent_dim, generator=generator)


def test_a_variational_method_refuses_an_own_prior_without_density() -> None:
    combination = ("mlp", "variational", "custom", "gaussian")
    config, extras = config_of(*combination), Extras.of(*combination)
    prior = config.prior.model_copy(update={"path": f"{__name__}:WithoutDensity"})
    with pytest.raises(
        ConfigError, match="WithoutDensity without log_prob.*use method.kind=adversarial"
    ):
        Run(config.model_copy(update={"prior": prior}), extras)
