"""Networks of the user's own by import path: used, tried out, and refused with the reason."""

import sys
import types
from typing import Any

import pytest
import torch
from helpers.frozen import FROZEN
from helpers.ranks import single_world
from helpers.steps import SHAPE, build, run_step, tiny_config
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from aae_dist.checkpoints.format import WeightAverage
from aae_dist.errors import ConfigError
from aae_dist.models import MlpDecoder, build_networks
from aae_dist.training.setup import Trial
from aae_dist.training.state import TrainState


class Encoder(nn.Module):
    def __init__(self, sample_shape: tuple[int, ...], num_outputs: int, hidden: int = 7) -> None:
        super().__init__()
        size = sample_shape[0] * sample_shape[1] * sample_shape[2]
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(size, hidden), nn.Tanh())
        self.head = nn.Linear(hidden, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(x))
        return out


class Noisy(Encoder):
    def __init__(self, noise_dim: int, **role: Any) -> None:
        super().__init__(**role)
        self.noise = nn.Linear(noise_dim, 7)

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:  # type: ignore[override]
        out: Tensor = self.head((self.body(x) + self.noise(noise)).tanh())
        return out


class Critic(nn.Module):
    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.layer = nn.Linear(latent_dim, 1)

    def forward(self, z: Tensor) -> Tensor:
        return self.layer(z).squeeze(1)


class WideCritic(Critic):
    def forward(self, z: Tensor) -> Tensor:
        out: Tensor = self.layer(z)
        return out


class BatchNorm(Encoder):
    def __init__(self, **role: Any) -> None:
        super().__init__(**role)
        self.body.append(nn.BatchNorm1d(7))


class Dropout(Encoder):
    def __init__(self, **role: Any) -> None:
        super().__init__(**role)
        self.body.append(nn.Dropout(0.5))


class DropoutFirst(Encoder):
    def __init__(self, **role: Any) -> None:
        super().__init__(**role)
        self.body.insert(0, nn.Dropout(0.5))


class Standardising(Encoder):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * float("inf"))


class StatelessBatchNorm(Encoder):
    def __init__(self, **role: Any) -> None:
        super().__init__(**role)
        self.body.append(nn.BatchNorm1d(7, track_running_stats=False))


class LinearDecoder(nn.Module):
    def __init__(self, latent_dim: int, sample_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape, self.layer = sample_shape, nn.Linear(latent_dim, 36)

    def forward(self, z: Tensor) -> Tensor:
        out: Tensor = self.layer(z).unflatten(1, self.shape)
        return out


class Buffered(Encoder):
    def __init__(self, **role: Any) -> None:
        super().__init__(**role)
        self.register_buffer("scale", torch.rand(7))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(x) * self.scale)
        return out


class BufferedCritic(Critic):
    def __init__(self, latent_dim: int) -> None:
        super().__init__(latent_dim)
        self.register_buffer("scale", torch.rand(1))

    def forward(self, z: Tensor) -> Tensor:
        return super().forward(z) * self.scale


class Spare(Encoder):
    def __init__(self, **role: Any) -> None:
        super().__init__(**role)
        self.spare = nn.Linear(7, 7)


class WithoutGraph(Encoder):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return super().forward(x)


class Reentrant(Critic):
    def forward(self, z: Tensor) -> Tensor:
        return checkpoint(super().forward, z, use_reentrant=True)


class AllFrozen(Encoder):
    def __init__(self, **role: Any) -> None:
        super().__init__(**role)
        self.requires_grad_(False)


OWN = (Encoder, Noisy, Critic, WideCritic, BatchNorm, Dropout)
OWN += (
    Reentrant,
    Buffered,
    BufferedCritic,
    DropoutFirst,
    Standardising,
    StatelessBatchNorm,
    LinearDecoder,
)
OWN += (Spare, WithoutGraph, AllFrozen)


@pytest.fixture(autouse=True)
def own_module(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("own_networks")
    for thing in OWN:
        setattr(module, thing.__name__, thing)
    monkeypatch.setitem(sys.modules, "own_networks", module)


def own(name: str, **arguments: Any) -> dict[str, Any]:
    path = name if ":" in name else f"own_networks:{name}"
    return {"path": path, "arguments": arguments}


def built(posterior: str = "deterministic", **model: Any) -> Any:
    config = tiny_config(model=model, posterior={"kind": posterior})
    return (*build(config, single_world()), config)


@pytest.mark.run
def test_own_networks_train_in_the_place_of_built_in_ones() -> None:
    networks, method, inputs, config = built(
        encoder=own("Encoder", hidden=9), discriminator=own("Critic")
    )
    assert type(networks.encoder).__name__ == "Encoder"
    assert isinstance(networks.decoder, MlpDecoder)
    before = [p.clone() for n in networks.named().values() for p in n.parameters()]
    run_step(method, inputs, config, 0)
    after = [p for n in networks.named().values() for p in n.parameters()]
    assert not any(map(torch.equal, before, after))


def test_a_frozen_trunk_stays_and_is_saved_and_averaged_with_the_rest() -> None:
    networks, method, inputs, config = built(**FROZEN)
    average = WeightAverage(networks, 0.9)
    state = TrainState(networks, method.optimizers, average)
    before = {key: value.clone() for key, value in networks.encoder.state_dict().items()}
    for step in range(2):
        run_step(method, inputs, config, step)
        average.update(step)
    tensors = state.tensors()
    for key, value in before.items():
        is_frozen = key.startswith("trunk.")
        for name in ("model", "ema"):
            assert torch.equal(tensors[name][f"encoder.{key}"], value) == is_frozen
        assert (f"encoder.{key}:exp_avg" in tensors["optimizer-generator"]) != is_frozen
    assert Trial(method.modules, (4, *SHAPE), torch.float64)(4)


def test_a_built_in_class_may_be_named_too_so_that_kinds_mix() -> None:
    networks, *_ = built(decoder=own("aae_dist.models:ConvDecoder", width=4))
    assert networks.decoder(torch.zeros(2, 4, dtype=torch.float64)).shape == (2, *SHAPE)


def test_the_encoder_of_a_universal_posterior_takes_noise() -> None:
    networks, method, inputs, config = built("universal", encoder=own("Noisy"))
    run_step(method, inputs, config, 0)
    with pytest.raises(ConfigError, match="noise_dim"):
        built("universal", encoder=own("Encoder"))


@pytest.mark.parametrize(
    ("key", "name", "reason"),
    [
        ("encoder", "BatchNorm", "changes its buffer body.3.running_mean.*replace_batch_norm"),
        (
            "encoder",
            "Dropout",
            "another result each time.*leave out dropout.*posterior.kind=gaussian",
        ),
        ("discriminator", "WideCritic", r"must map a batch of shape \(4, 4\) to \(4,\); got"),
        ("encoder", "DropoutFirst", "another result each time"),
        ("encoder", "Standardising", "gives numbers that are not finite"),
        (
            "encoder",
            "StatelessBatchNorm",
            "depend on the other samples of its batch.*replace_batch_norm",
        ),
        ("encoder", "Critic", "failed with TypeError.*takes the keyword arguments sample_shape"),
        ("encoder", "no_such_module:X", "failed with ModuleNotFoundError"),
        ("encoder", "torch:zeros", "failed with TypeError"),
        ("encoder", "Spare", "no gradient reaches: spare.weight, spare.bias; call requires_grad_"),
        ("encoder", "WithoutGraph", "no gradient reaches: body.1.weight"),
        ("encoder", "AllFrozen", "has no parameter to train"),
        ("encoder", "builtins:dict", "it must be a torch.nn.Module"),
    ],
)
def test_what_would_not_train_is_refused_with_the_reason(key: str, name: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=f"model.{key}.*{reason}"):
        built(**{key: own(name)})


def test_what_was_trained_with_an_unused_parameter_can_still_be_used() -> None:
    config = tiny_config(model={"encoder": own("Spare")}, posterior={"kind": "deterministic"})
    networks = build_networks(config, SHAPE, torch.device("cpu"), trains=False)
    assert isinstance(networks.encoder, Spare)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_what_is_checkpointed_in_the_old_way_is_refused_with_torchs_own_words() -> None:
    with pytest.raises(ConfigError, match=r"model\.discriminator: .*use_reentrant"):
        built(discriminator=own("Reentrant"))


def test_a_decoder_whose_pixels_leave_the_unit_range_is_refused_for_bce() -> None:
    decoder = {"decoder": own("LinearDecoder")}
    build(tiny_config(model=decoder), single_world())
    bce = {"kind": "adversarial", "reconstruction_loss": "bce"}
    with pytest.raises(ConfigError, match=r"model.decoder: LinearDecoder.*bce needs .*sigmoid"):
        build(tiny_config(model=decoder, method=bce), single_world())


def test_buffers_of_another_run_reach_the_average_and_the_frozen_discriminator() -> None:
    model = {"encoder": own("Buffered"), "discriminator": own("BufferedCritic")}
    networks, method, *_ = built(**model)
    state = TrainState(networks, method.optimizers, WeightAverage(networks, 0.9))
    others = {key: torch.full_like(v, 0.5) for key, v in state.tensors()["model"].items()}
    state.load_weights(others)
    assert state.average is not None
    assert float(state.average.networks.encoder.scale.unique()) == 0.5
    z = torch.rand(3, 4, dtype=torch.float64)
    assert networks.discriminator is not None
    assert torch.equal(method.frozen(z), networks.discriminator(z))
