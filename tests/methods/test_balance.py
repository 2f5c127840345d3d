"""The balanced step against itself written out slowly: distance, shared moments and R1."""

import copy

import pytest
import torch
import torch.nn.functional as F
from helpers.ranks import single_world
from helpers.steps import build, global_batch, run_step, tiny_config

from aae_dist.config.sections import method as sections
from aae_dist.config.sections.model import ConvModel, MlpModel, Model, OwnNetwork
from aae_dist.losses import sliced_wasserstein
from aae_dist.methods.build import build_method, build_optimizer, default_lr
from aae_dist.models import build_networks
from aae_dist.priors import GaussianPrior, build_prior
from aae_dist.utils.tensors import keyed_generator

ADAM = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8}
PHASE = {"optimizer": {"kind": "adam", **ADAM}, "schedule": {"kind": "constant"}}
PHASES = {phase: PHASE for phase in ("reconstruction", "discriminator", "generator")}
OWN = OwnNetwork(path="parts:Encoder")
WEIGHTS = {"weight": 0.3, "distance_weight": 0.5, "r1_weight": 0.2, "r1_every": 3}


class SlowAdam:
    """Adam, algorithm 1 of Kingma and Ba, with a floor under the second moments."""

    def __init__(self, parameters: list[torch.nn.Parameter]) -> None:
        self.parameters, self.t = parameters, 0
        self.m = [torch.zeros_like(p) for p in parameters]
        self.v = [torch.zeros_like(p) for p in parameters]

    def step(self, loss: torch.Tensor, floor: list[torch.Tensor] | None = None) -> None:
        self.t += 1
        gradients = torch.autograd.grad(loss, self.parameters)
        with torch.no_grad():
            for i, (p, g) in enumerate(zip(self.parameters, gradients, strict=True)):
                self.m[i] = 0.9 * self.m[i] + 0.1 * g
                self.v[i] = 0.999 * self.v[i] + 0.001 * g * g
                v = self.v[i] if floor is None else torch.maximum(self.v[i], floor[i])
                m_hat, v_hat = self.m[i] / (1 - 0.9**self.t), v / (1 - 0.999**self.t)
                p -= 1e-3 * m_hat / (v_hat.sqrt() + 1e-8)


def test_balanced_steps_equal_the_algorithm_written_out_slowly() -> None:
    method = {"kind": "adversarial", "balance": "auto", "num_projections": 16, **WEIGHTS}
    config = tiny_config(phases=PHASES, method=method, prior={"kind": "gaussian", "std": 2.0})
    prior = build_prior(config.prior, 4)
    baseline = 7.0
    networks, _, inputs = build(config, single_world())
    ours = build_method(config, networks, prior, (1, 6, 6), single_world(), baseline)
    twin = copy.deepcopy(networks)
    e, d, c = twin.encoder, twin.decoder, twin.discriminator
    assert c is not None
    reconstruct = SlowAdam([*e.parameters(), *d.parameters()])
    tell, fool = SlowAdam(list(c.parameters())), SlowAdam(list(e.parameters()))
    num = len(list(e.parameters()))
    variance = float(prior.sample(4096, keyed_generator(0, "width of the prior")).var(0).sum())
    for step in range(6):
        images, valid = global_batch(config, step)
        x = images[valid].double() / 255
        z_prior = prior.sample(len(images), keyed_generator(0, "prior", step))[valid].double()
        # Reconstruction and distance.
        z, n = e(x), len(x)
        error = ((d(z) - x) ** 2).sum() / 2 / n
        directions = torch.randn((4, 16), generator=keyed_generator(0, "directions", step)).double()
        even = torch.full((n,), 1 / n, dtype=torch.float64)
        distance = sliced_wasserstein(z, z_prior, even, directions)
        weight = 0.5 * baseline / (variance / 4)
        reconstruct.step(error + weight * distance)
        # Discriminator.
        samples = z_prior.clone().requires_grad_()
        real, fake = c(samples), c(e(x).detach())
        loss = (F.softplus(-real) + F.softplus(fake)).mean()
        if step % 3 == 0:
            (slope,) = torch.autograd.grad(real.sum(), samples, create_graph=True)
            loss = loss + 3 * 0.2 * variance / 2 * slope.square().sum(1).mean()
        tell.step(loss)
        # Generator, its steps in units of reconstruction's second moments.
        fooled = F.softplus(-c(e(x))).mean()
        fool.step(0.3 * baseline * fooled, floor=reconstruct.v[:num])
        got = run_step(ours, inputs, config, step)
        assert float(got["loss/reconstruction"]) == pytest.approx(error.item(), rel=1e-8)
        assert float(got["loss/distance"]) == pytest.approx(distance.item(), rel=1e-8)
    for mine, slow in zip(networks.encoder.parameters(), e.parameters(), strict=True):
        assert torch.allclose(mine, slow, rtol=1e-7, atol=1e-9)


def test_weights_have_no_unit() -> None:
    """Images 3 times as bright, scaled back by a decoder, train the same encoder."""
    config = tiny_config()
    prior = GaussianPrior(4)
    networks = build_networks(config, (1, 6, 6), single_world().device)
    found = []
    for baseline in (1.0, 9.0):
        method = build_method(config, networks, prior, (1, 6, 6), single_world(), baseline)
        found.append((method.weight, method.distance_weight, method.r1.weight))
    (a, b, c), (a9, b9, c9) = found
    assert (a9, b9, c9) == pytest.approx((9 * a, 9 * b, c))


@pytest.mark.parametrize(
    ("model", "rate"),
    [
        (MlpModel(), 2e-3),
        (MlpModel(encoder_widths=(256, 256), decoder_widths=(256,)), 3.01e-3),
        (MlpModel(encoder_widths=(64,), decoder_widths=(2000,)), 1.625e-3),
        (MlpModel(encoder=OWN, decoder=OWN), 2e-3),
        (ConvModel(), 2e-3),
    ],
)
def test_the_default_rate_follows_the_widest_layer(model: Model, rate: float) -> None:
    assert default_lr(model) == pytest.approx(rate, rel=2e-3)


def test_a_phase_takes_the_default_rate_only_where_none_is_given() -> None:
    network = torch.nn.Linear(2, 2)
    given = sections.Phase(optimizer=sections.Adam(lr=5e-3))
    for phase, rate in ((sections.Phase(), 7e-3), (given, 5e-3)):
        assert build_optimizer(phase, {"encoder": network}, default_lr=7e-3).base_lr == rate
