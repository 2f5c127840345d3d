"""Every network with every method, prior and posterior: what is admitted trains, resumes, loads."""

import itertools
from typing import Any

import pytest
import torch
from helpers.ranks import single_world
from helpers.steps import MODELS, SHAPE, run_step, tiny_config

from aae_dist.config import RunConfig
from aae_dist.errors import ConfigError
from aae_dist.methods import Method, StepInputs, build_method
from aae_dist.models import build_networks, build_posterior
from aae_dist.models.build import DTYPES
from aae_dist.priors import build_prior
from aae_dist.training.checkpoint import Saved
from aae_dist.training.checkpoint_files import decode, encode_documents, encode_tensors, snapshot
from aae_dist.training.state import TrainState
from aae_dist.training.trained_run import TrainedRun
from aae_dist.training.weight_average import WeightAverage

STEPS = 20
MODEL_CHOICES = ("mlp", "conv", "resnet")
POSTERIORS = ("deterministic", "gaussian", "universal", "categorical")
METHODS: dict[str, dict[str, Any]] = {
    "adversarial": {},
    "least_squares": {"kind": "adversarial", "adversary": "least_squares", "weight": 2.0},
    "hinge": {"kind": "adversarial", "adversary": "hinge", "r1_weight": 0.1, "r1_every": 3},
    "blurred": {"kind": "adversarial", "input_noise": 0.1, "gradient_ratio": 0.5},
    "variational": {},
    "autoencoder": {},
    "mmd": {},
    "sliced_wasserstein": {},
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
}
WITH_DENSITY = ("gaussian", "mixture", "laplace", "student_t", "custom")
ON_THE_SIMPLEX = ("categorical", "data", "run", "custom")
LOSSES = ("sum_half", "mean", "bce", "l1")

Combination = tuple[str, str, str, str]
ALL: list[Combination] = list(itertools.product(MODEL_CHOICES, METHODS, PRIORS, POSTERIORS))


def refusal(model: str, method: str, prior: str, posterior: str) -> str | None:
    """Return words of the reason why a combination is refused; None if it is admitted."""
    if posterior == "categorical" and prior not in ON_THE_SIMPLEX:
        return "use prior.kind=categorical"
    if method == "variational" and posterior != "gaussian":
        return "method variational needs posterior.kind=gaussian"
    if method == "variational" and prior not in WITH_DENSITY:
        return "so method variational has no KL term"
    return None


def cover() -> list[Combination]:
    """Return few admitted combinations that have every value of every part at least once."""
    wanted = {(part, value) for combination in ALL for part, value in enumerate(combination)}
    admitted = [combination for combination in ALL if refusal(*combination) is None]
    chosen = []
    while wanted:
        best = max(admitted, key=lambda c: len(wanted & set(enumerate(c))))
        wanted -= set(enumerate(best))
        chosen.append(best)
    return chosen


COVER = cover()


def config_of(model: str, method: str, prior: str, posterior: str) -> RunConfig:
    number = ALL.index((model, method, prior, posterior))
    loss = {"reconstruction_loss": LOSSES[number % len(LOSSES)]}
    return tiny_config(
        model={**MODELS[model], "latent_dim": 2},
        method={"kind": method, **METHODS[method], **loss},
        prior={"kind": prior, **PRIORS[prior]},
        posterior={"kind": posterior},
        train={
            "steps": STEPS,
            "global_batch_size": 24,
            "precision": "fp32",
            "micro_batch_size": (None, 10)[number % 2],
            "ema_decay": (None, 0.9)[number % 2],
        },
    )


class Run:
    """What training holds in memory, without data and files."""

    def __init__(self, config: RunConfig) -> None:
        world, self.config = single_world(), config
        draw = torch.Generator().manual_seed(0)
        is_set = config.prior.kind in ("data", "run")
        self.vectors = torch.rand(9, 2, generator=draw) if is_set else None
        prior = build_prior(config.prior, 2, self.vectors)
        networks = build_networks(config, SHAPE, world.device)
        self.method: Method = build_method(config, networks, prior, SHAPE, world)
        decay = config.train.ema_decay
        average = WeightAverage(networks, decay) if decay else None
        self.state = TrainState(networks, self.method.optimizers, average, self.vectors)
        self.inputs = StepInputs(
            seed=0,
            prior=prior,
            posterior=build_posterior(config.posterior),
            rows=slice(0, 24),
            global_batch_size=24,
            micro_batch_size=config.train.micro_batch_size,
            world=world,
            dtype=DTYPES[config.train.precision],
        )

    def train(self, until: int) -> None:
        while self.state.step < until:
            losses = run_step(self.method, self.inputs, self.config, self.state.step)
            assert all(bool(loss.isfinite()) for loss in losses.values()), losses
            self.state.step += 1
            if self.state.average:
                self.state.average.update(self.state.step)

    def saved(self) -> Saved:
        """Return the state as a checkpoint holds it, by way of the bytes of its files."""
        documents = {
            "state": self.state.document(),
            "config": self.config.model_dump(mode="json"),
            "data": {"image_shape": SHAPE},
        }
        files = encode_tensors(snapshot(self.state.tensors())) | encode_documents(documents)
        return decode(self.state.step, files)


def check(combination: Combination) -> None:
    reason = refusal(*combination)
    if reason is not None:
        with pytest.raises((ConfigError, ValueError), match=reason):
            config_of(*combination)
        return
    config = config_of(*combination)
    unbroken, broken, resumed = Run(config), Run(config), Run(config)
    unbroken.train(STEPS)
    broken.train(STEPS // 2)
    halfway = broken.saved()
    resumed.state.load(halfway.tensors, halfway.documents["state"])
    resumed.train(STEPS)
    wanted, got = unbroken.saved(), resumed.saved()
    assert wanted.documents["state"] == got.documents["state"]
    for file, tensors in wanted.tensors.items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, got.tensors[file][name]), (file, name)
    changed = Run(config).saved().tensors["model"]
    assert not all(torch.equal(changed[k], v) for k, v in wanted.tensors["model"].items())
    loaded = TrainedRun(wanted, "memory", torch.device("cpu"))
    images = torch.rand(3, *SHAPE)
    assert loaded.reconstruct(images).shape == images.shape
    assert loaded.sample(4).shape == (4, *SHAPE)
    assert bool(loaded.encode(images).isfinite().all())


@pytest.mark.run
@pytest.mark.parametrize("combination", COVER, ids="-".join)
def test_each_network_method_prior_and_posterior_trains_resumes_and_loads(
    combination: Combination,
) -> None:
    check(combination)


@pytest.mark.slow
@pytest.mark.parametrize("combination", [c for c in ALL if c not in COVER], ids="-".join)
def test_every_combination_trains_resumes_and_loads_or_is_refused(combination: Combination) -> None:
    check(combination)


def test_refusals_are_told_at_once() -> None:
    refused = [c for c in ALL if refusal(*c) is not None and c[0] == "mlp"]
    for combination in refused:
        with pytest.raises((ConfigError, ValueError), match=refusal(*combination)):
            config_of(*combination)
    assert len(refused) == 88
