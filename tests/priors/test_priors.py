"""Priors: samples, densities and classes agree with each other."""

import math

import pytest
import torch
from torch import Tensor

from aae_dist.config.sections import model as sections
from aae_dist.errors import ConfigError
from aae_dist.priors import (
    CategoricalPrior,
    EmpiricalPrior,
    GaussianPrior,
    LaplacePrior,
    MixturePrior,
    Prior,
    SpherePrior,
    StudentTPrior,
    SwissRollPrior,
    UniformPrior,
    build_prior,
)

PRIORS = [
    GaussianPrior(4, std=2.0),
    MixturePrior(2),
    MixturePrior(6, num_modes=5),
    SwissRollPrior(2),
    UniformPrior(3, half_width=2.0),
    LaplacePrior(3, scale=0.5),
    StudentTPrior(3, degrees_of_freedom=4, scale=2.0),
    SpherePrior(3, radius=1.5),
    CategoricalPrior(5),
    EmpiricalPrior(torch.arange(12.0).reshape(6, 2)),
]


def drawing(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("prior", PRIORS)
def test_samples_are_float32_and_a_function_of_the_generator_alone(prior: Prior) -> None:
    first = prior.sample(50, drawing())
    torch.manual_seed(3)
    assert first.shape == (50, prior.latent_dim)
    assert first.dtype == torch.float32
    assert torch.equal(first, prior.sample(50, drawing()))
    assert not torch.equal(first, prior.sample(50, drawing(1)))


@pytest.mark.parametrize(
    "prior",
    [
        GaussianPrior(1, std=0.7),
        MixturePrior(2, std_radial=0.3),
        UniformPrior(2, half_width=1.7125),
        LaplacePrior(1, scale=0.4),
        StudentTPrior(1, degrees_of_freedom=9, scale=0.3),
        StudentTPrior(2, degrees_of_freedom=30, scale=0.3),
    ],
)
def test_density_integrates_to_one(prior: Prior) -> None:
    axis = torch.linspace(-4, 4, 321, dtype=torch.float64)
    grid = torch.cartesian_prod(*[axis] * prior.latent_dim).reshape(-1, prior.latent_dim)
    log_prob = prior.log_prob(grid)
    assert log_prob is not None
    cell = (8 / 320) ** prior.latent_dim
    assert float(log_prob.exp().sum() * cell) == pytest.approx(1.0, abs=1e-3)


def test_mixture_density_is_that_of_its_components_in_every_pair_of_dimensions() -> None:
    prior = MixturePrior(4, num_modes=3, std_radial=0.5, std_tangential=0.2)
    z = prior.sample(7, drawing()).double()
    slow = []
    for row in z:
        density = 0.0
        for k in range(3):
            angle = 2 * math.pi * k / 3
            log_p = 0.0
            for x, y in row.reshape(2, 2).tolist():
                radial = math.cos(angle) * x + math.sin(angle) * y - 1.4
                tangential = -math.sin(angle) * x + math.cos(angle) * y
                log_p -= 0.5 * ((radial / 0.5) ** 2 + (tangential / 0.2) ** 2)
                log_p -= math.log(2 * math.pi * 0.5 * 0.2)
            density += math.exp(log_p) / 3
        slow.append(math.log(density))
    got = prior.log_prob(z)
    assert got.tolist() == pytest.approx(slow, rel=1e-6)


def test_mixture_classes_are_the_modes_around_the_ring() -> None:
    prior = MixturePrior(2, num_modes=10)
    labels = torch.arange(10).repeat(200)
    z = prior.sample_class(labels, drawing()).reshape(200, 10, 2).mean(0)
    angles = torch.arange(10) * (2 * math.pi / 10)
    means = 1.4 * torch.stack([angles.cos(), angles.sin()], 1)
    assert torch.allclose(z, means, atol=0.15)


@pytest.mark.parametrize(
    ("prior", "variance"),
    [
        (UniformPrior(3, half_width=2.0), 4 / 3),
        (LaplacePrior(3, scale=0.5), 2 * 0.25),
        (StudentTPrior(3, degrees_of_freedom=10, scale=2.0), 4 * 10 / 8),
        (SpherePrior(3, radius=1.5), 1.5**2 / 3),
        (CategoricalPrior(4), 3 / 16),
        (EmpiricalPrior(torch.tensor([[0.0, 0.0], [2.0, 2.0]])), 1.0),
    ],
)
def test_samples_have_the_moments_of_their_distribution(prior: Prior, variance: float) -> None:
    z = prior.sample(40_000, drawing()).double()
    assert z.var(0).tolist() == pytest.approx([variance] * prior.latent_dim, rel=0.05)
    middle = z.mean(0) if not isinstance(prior, CategoricalPrior) else z.mean(0) - 1 / 4
    middle = middle - 1 if isinstance(prior, EmpiricalPrior) else middle
    assert float(middle.abs().max()) < 0.03


@pytest.mark.parametrize(
    "prior", [LaplacePrior(1, scale=0.5), StudentTPrior(1, degrees_of_freedom=3, scale=0.7)]
)
def test_density_agrees_with_a_histogram_of_samples(prior: Prior) -> None:
    z = prior.sample(100_000, drawing())[:, 0]
    edges = torch.linspace(-2, 2, 21)
    shares = torch.histc(z, bins=20, min=-2, max=2) / len(z)
    log_prob = prior.log_prob(((edges[1:] + edges[:-1]) / 2)[:, None])
    assert log_prob is not None
    assert torch.allclose(shares, log_prob.exp() * 0.2, atol=5e-3)


def test_density_of_student_t_is_that_of_its_formula_in_several_dimensions() -> None:
    # A multivariate t is a Gaussian with a random variance k / c: integrate over c ~ chi2(k).
    prior, k = StudentTPrior(3, degrees_of_freedom=6, scale=0.8), 6
    z = prior.sample(4, drawing()).double()
    c = torch.linspace(1e-3, 80, 200_001, dtype=torch.float64)
    log_chi2 = (k / 2 - 1) * c.log() - c / 2 - k / 2 * math.log(2) - math.lgamma(k / 2)
    for row, log_prob in zip(z, prior.log_prob(z), strict=True):
        std = 0.8 * (k / c).sqrt()
        log_normal = -row.square().sum() / (2 * std**2) - 3 * (
            std.log() + math.log(2 * math.pi) / 2
        )
        density = float(torch.trapezoid((log_chi2 + log_normal).exp(), c))
        assert float(log_prob) == pytest.approx(math.log(density), abs=1e-4)


def test_samples_stay_where_their_prior_is() -> None:
    assert float(UniformPrior(2, half_width=0.5).sample(999, drawing()).abs().max()) <= 0.5
    assert UniformPrior(1).log_prob(torch.tensor([[1.5]])).item() == -math.inf
    assert torch.allclose(
        SpherePrior(4, radius=3.0).sample(99, drawing()).norm(dim=1), torch.tensor(3.0)
    )
    one_hot = CategoricalPrior(4).sample(99, drawing())
    assert torch.equal(one_hot.sum(1), torch.ones(99))
    assert set(one_hot.flatten().tolist()) == {0.0, 1.0}
    assert CategoricalPrior(4).sample_class(torch.tensor([2]), drawing()).tolist() == [[0, 0, 1, 0]]


def test_swiss_roll_lies_on_its_curve_and_classes_go_outwards() -> None:
    prior = SwissRollPrior(2)
    z = prior.sample(500, drawing())
    radius = z.norm(dim=1)
    angle = 4 * math.pi * radius / 3.0
    curve = radius[:, None] * torch.stack([angle.cos(), angle.sin()], 1)
    assert torch.allclose(z, curve, atol=1e-4)
    inner = prior.sample_class(torch.zeros(100, dtype=torch.int64), drawing()).norm(dim=1)
    assert float(inner.max()) <= 3.0 * math.sqrt(0.1) + 1e-5


class Ring(Prior):
    def __init__(self, latent_dim: int, radius: float = 1.0) -> None:
        super().__init__(latent_dim)
        self.radius = radius

    def sample(self, num_samples: int, generator: torch.Generator) -> Tensor:
        z = torch.randn(num_samples, self.latent_dim, generator=generator)
        return self.radius * z / z.norm(dim=1, keepdim=True)


def custom(path: str, **arguments: float) -> sections.CustomPrior:
    return sections.CustomPrior(kind="custom", path=path, arguments=arguments)


def test_a_prior_of_ones_own_is_built_from_its_import_path(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import sys
    import types

    module = types.ModuleType("ring_prior")
    module.Ring = Ring  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ring_prior", module)
    prior = build_prior(custom("ring_prior:Ring", radius=2.0), 3)
    assert torch.allclose(prior.sample(9, drawing()).norm(dim=1), torch.full((9,), 2.0))
    with pytest.raises(ConfigError, match=r"prior\.path: ring_prior:Ring failed with TypeError"):
        build_prior(custom("ring_prior:Ring", size=2.0), 3)
    with pytest.raises(ConfigError, match="failed with ModuleNotFoundError"):
        build_prior(custom("no_such_module:Ring"), 3)


class Global(Prior):
    """Draws from torch's global generator, as torch.distributions does."""

    def sample(self, num_samples: int, generator: torch.Generator) -> Tensor:
        return torch.randn(num_samples, self.latent_dim)


def test_a_prior_of_ones_own_must_draw_from_the_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    import types

    module = types.ModuleType("global_prior")
    module.Global = Global  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "global_prior", module)
    with pytest.raises(ConfigError, match="other numbers for an equal generator"):
        build_prior(custom("global_prior:Global"), 3)


def test_priors_without_classes_or_density_say_so() -> None:
    with pytest.raises(TypeError, match="has no classes"):
        GaussianPrior(2).sample_class(torch.zeros(1, dtype=torch.int64), drawing())
    assert SwissRollPrior(2).log_prob(torch.zeros(1, 2)) is None
