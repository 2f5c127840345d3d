"""The prior of a code in parts."""

import pytest
import torch

from aae_dist.config import load_config
from aae_dist.errors import ConfigError
from aae_dist.priors import (
    CategoricalPrior,
    GaussianPrior,
    MixturePrior,
    ProductPrior,
    SwissRollPrior,
    matched_parts,
)

PARTS = [CategoricalPrior(3), GaussianPrior(2, std=2.0), SwissRollPrior()]


def test_samples_are_those_of_the_parts_side_by_side() -> None:
    prior, draw = ProductPrior(PARTS), torch.Generator().manual_seed(3)
    z = prior.sample(50, torch.Generator().manual_seed(3))
    assert torch.equal(z, torch.cat([part.sample(50, draw) for part in PARTS], 1))
    assert [(p.columns, p.dims, p.is_categorical) for p in prior.parts] == [
        (slice(0, 3), 3, True),
        (slice(3, 5), 2, False),
        (slice(5, 7), 2, False),
    ]


def test_a_class_is_that_of_the_first_part_that_has_some() -> None:
    prior, labels = ProductPrior(PARTS[1:] + PARTS[:1]), torch.arange(10).repeat(20)
    assert prior.num_classes == 10
    z = prior.sample_class(labels, torch.Generator().manual_seed(0))
    angle_free = z[:, 2:4].norm(dim=1) / 3.0  # the roll's radius is the root of u
    assert torch.equal((angle_free.square() * 10).floor().long(), labels)
    assert z[:, 4:].sum(0).min() > 40  # the second part with classes is drawn from its prior
    without = ProductPrior([GaussianPrior(1), GaussianPrior(1)])
    with pytest.raises(TypeError, match="no classes"):
        without.sample_class(labels, torch.Generator())


def test_densities_are_multiplied_where_every_part_has_one() -> None:
    parts = [GaussianPrior(2), MixturePrior(2)]
    z = torch.randn(9, 4)
    found = ProductPrior(parts).log_prob(z)
    assert found is not None
    each = [parts[0].log_prob(z[:, :2]), parts[1].log_prob(z[:, 2:])]
    assert torch.allclose(found, each[0] + each[1])
    assert ProductPrior(PARTS).log_prob(torch.zeros(1, 7)) is None


def test_classes_are_compared_with_samples_where_there_is_nothing_else() -> None:
    both = ProductPrior(PARTS)
    assert matched_parts(both) == both.parts[1:]
    classes = ProductPrior([CategoricalPrior(3), CategoricalPrior(2)])
    assert matched_parts(classes) == classes.parts
    assert matched_parts(PARTS[0]) == PARTS[0].parts


RUN = ["run.name=a", "data.train=builtin://digits/train", "train.steps=3"]


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ("[{dims: 3}, {dims: 4}]", "model.latent_dim: must be the sum of prior.parts' dims, 7 "),
        ("[{dims: 0}, {dims: 4}]", "prior.parts.0.dims: should be greater than 0, got 0"),
        ("[{dims: 8, prior: {kind: swiss_roll}}]", "prior.parts.0.prior.kind: swiss_roll exists"),
        ("[{dims: 8, prior: {kind: run, uri: x}}]", "prior.parts.0.prior.kind: should be one of "),
        ("[{dims: 8, prior: {std: 2, width: 1}}]", "prior.parts.0.prior.kind: should be one of "),
        (
            "[{dims: 8, prior: {kind: gaussian, width: 1}}]",
            "prior.parts.0.prior.width: unknown key, got 1 ",
        ),
        ("[{dims: 8, straight_through: true}]", "prior.parts.0.straight_through: is for a categ"),
        ("[]", "prior.parts: should be a list of 1 or more, got []"),
    ],
)
def test_parts_that_do_not_work_are_refused(parts: str, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config([], [*RUN, f"prior={{kind: product, parts: {parts}}}"])
    assert reason in str(caught.value)
