"""Labels in the step: a given part, a prior guided by labels, a classification phase."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.ranks import single_world
from helpers.steps import MODELS, build, global_batch, global_labels, tiny_config

from aae_dist.config import load_config
from aae_dist.errors import ConfigError
from aae_dist.losses import sliced_wasserstein
from aae_dist.methods.adversarial import LabelGuidedMethod, SemiSupervisedMethod
from aae_dist.models import DeterministicPosterior, PartwiseDiscriminator, ProductPosterior
from aae_dist.priors import CategoricalPrior, GaussianPrior, MixturePrior, ProductPrior

STYLE = {"dims": 2, "prior": {"kind": "gaussian"}}
GIVEN: dict[str, Any] = {
    "model": {**MODELS["mlp"], "latent_dim": 5},
    "prior": {
        "kind": "product",
        "parts": (STYLE, {"dims": 3, "prior": {"kind": "categorical"}, "given": "label"}),
    },
}
LABELLED: dict[str, Any] = {
    "model": {**MODELS["mlp"], "latent_dim": 5},
    "method": {"kind": "semi_supervised", "balance": "none"},
    "prior": {"kind": "product", "parts": (STYLE, {"dims": 3, "prior": {"kind": "categorical"}})},
    "data": {"train": "x", "labelled": "y"},
}
GUIDED: dict[str, Any] = {
    "method": {"kind": "label_guided"},
    "prior": {"kind": "mixture", "num_modes": 3},
}


def test_a_given_part_is_the_label_and_the_encoder_infers_the_others() -> None:
    config = tiny_config(**GIVEN)
    networks, method, inputs = build(config, single_world())
    images, valid = global_batch(config, 0)
    labels = global_labels(config, 0)
    (part,) = inputs.parts(images, valid, 24, 0, labels)
    z = method.encode(part, part.noise_reconstruction_BN)
    assert torch.equal(z[:, 2:], F.one_hot(labels, 3).double())
    assert networks.encoder(part.x_BCHW).shape == (24, 2)
    assert isinstance(networks.discriminator, PartwiseDiscriminator)
    assert networks.discriminator.columns == (slice(0, 2),)
    assert networks.discriminator.given == (slice(2, 5),)
    assert networks.decoder(z).shape == part.x_BCHW.shape


def test_rows_without_a_label_have_no_class_in_a_given_part() -> None:
    own = DeterministicPosterior()
    posterior = ProductPosterior([(2, own), (3, own)], given=[1])
    with_labels = posterior.with_labels(torch.ones(3, 2), torch.tensor([2, -1, 0]))
    assert with_labels.tolist() == [[1, 1, 0, 0, 1], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]]


def test_one_label_numbers_the_combinations_of_two_given_parts() -> None:
    own, sizes = DeterministicPosterior(), (3, 2)
    posterior = ProductPosterior([(3, own), (1, own), (2, own)], given=[0, 2])
    types, batches = torch.tensor([2, 0, 1, 1]), torch.tensor([1, 0, 0, 1])
    labels = torch.from_numpy(np.ravel_multi_index((types.numpy(), batches.numpy()), sizes))
    codes = posterior.with_labels(torch.full((4, 1), 7.0), labels)
    wanted = [F.one_hot(types, 3), torch.full((4, 1), 7), F.one_hot(batches, 2)]
    assert torch.equal(codes, torch.cat(wanted, 1).float())
    assert posterior.num_outputs(6) == 1
    prior = ProductPrior([CategoricalPrior(3), GaussianPrior(1), CategoricalPrior(2)], [0, 2])
    drawn = prior.sample_class(labels, torch.Generator().manual_seed(0))
    assert torch.equal(drawn[:, [0, 1, 2, 4, 5]], codes[:, [0, 1, 2, 4, 5]])
    assert (prior.num_classes, len(prior.given), len(prior.parts)) == (6, 2, 1)


def test_labels_choose_the_mode_and_a_sample_without_one_meets_the_whole_prior() -> None:
    config = tiny_config(**GUIDED)
    _, method, inputs = build(config, single_world())
    assert isinstance(method, LabelGuidedMethod)
    images, valid = global_batch(config, 0)
    labels = torch.tensor([0, 1, 2, -1] * 6)
    (part,) = inputs.parts(images, valid, 24, 0, labels)
    prior = inputs.prior
    assert isinstance(prior, MixturePrior)
    modes = torch.stack([torch.atan2(p[:, 1], p[:, 0]) for p in part.z_prior_BZ.split(2, 1)])
    expected = torch.pi * 2 / 3 * labels[labels >= 0]
    error = (modes[:, labels >= 0] - expected + torch.pi) % (2 * torch.pi) - torch.pi
    assert float(error.abs().max()) < 0.6  # a mode is narrow across its radius
    # Without labels: the prior samples of any other run of this seed.
    (blind,) = inputs.parts(images, valid, 24, 0)
    assert torch.equal(blind.z_prior_BZ[labels < 0], part.z_prior_BZ[labels < 0])
    assert not torch.equal(blind.z_prior_BZ, part.z_prior_BZ)
    # The discriminator reads the label: another one gives another logit.
    logits = method.discriminator(part.z_prior_BZ, labels)
    assert not torch.isclose(logits, method.discriminator(part.z_prior_BZ, (labels + 1) % 3)).any()
    nameless = torch.full_like(labels, -1)
    assert torch.equal(method.discriminator(part.z_prior_BZ), method.discriminator(
        part.z_prior_BZ, nameless
    ))  # fmt: skip


def test_the_distance_compares_codes_with_prior_samples_of_their_label() -> None:
    draw = torch.Generator().manual_seed(0)
    labels = torch.tensor([-1, 0, 2] * 8)
    z, prior = torch.randn(2, 24, 4, generator=draw, dtype=torch.float64)
    weights = torch.where(labels < 0, 0.06, 0.04).double()
    weights[[1, 5, 8, 15]] = 0.0
    directions = torch.randn(4, 9, generator=draw, dtype=torch.float64)
    found = sliced_wasserstein(z, prior, weights, directions, labels.double())
    slow = 0.0
    for label in (-1, 0, 2):
        own = (labels == label) & (weights > 0)
        slow += float(sliced_wasserstein(z[own], prior[own], weights[own], directions))
    assert float(found) == pytest.approx(slow, rel=1e-12)


def test_the_few_rows_with_a_label_weigh_as_much_as_all_others() -> None:
    config = tiny_config(**GUIDED)
    _, method, inputs = build(config, single_world())
    assert isinstance(method, LabelGuidedMethod)
    images, valid = global_batch(config, 4)  # a third is masked
    few = torch.tensor([0, 1, 2] + [-1] * 5).repeat(3)
    for labels, shares in ((few, (0.5, 0.5)), (few.clamp(min=0), (1.0, 0.0))):
        parts = inputs.parts(images, valid, int(valid.sum()), 4, labels)
        method.step(parts)
        weights, known = method.game_weights(parts[0]), labels >= 0
        assert not weights[~valid].any()
        for own, share in ((known, shares[0]), (~known, shares[1])):
            assert float(weights[own].sum()) == pytest.approx(share, rel=1e-12)
            assert len(weights[own & valid].unique()) == (share > 0)


def test_classification_learns_the_labelled_set_alone() -> None:
    config = tiny_config(**LABELLED)
    networks, method, inputs = build(config, single_world())
    assert isinstance(method, SemiSupervisedMethod)
    assert inputs.labelled is not None
    before = {n: [p.clone() for p in net.parameters()] for n, net in networks.named().items()}
    images, valid = global_batch(config, 0)
    first, last = 0.0, 0.0
    for step in range(150):
        parts = inputs.parts(images, valid, int(valid.sum()), step)
        terms = method.optimizers["classification"].update_terms(method.classification_loss, parts)
        last = float(terms["loss/classification"])
        first = first or last
    assert first == pytest.approx(1.0986, abs=0.2)
    assert last < 0.3
    for name, net in networks.named().items():
        same = [torch.equal(p, q) for p, q in zip(net.parameters(), before[name], strict=True)]
        assert all(same) == (name != "encoder")


def test_the_rows_of_a_step_come_from_the_whole_labelled_set() -> None:
    config = tiny_config(**LABELLED)
    _, _, inputs = build(config, single_world())
    images, valid = global_batch(config, 0)
    assert inputs.labelled is not None
    drawn = []
    for step in range(20):
        (part,) = inputs.parts(images, valid, 24, step)
        assert part.labelled_x_BCHW is not None
        assert part.labelled_B is not None
        rows = (part.labelled_x_BCHW * 255).round().to(torch.uint8).flatten(1)
        held = inputs.labelled.images.flatten(1)
        which = (rows[:, None] == held).all(2).int().argmax(1)
        assert torch.equal(inputs.labelled.labels[which], part.labelled_B)
        drawn += which.tolist()
    assert set(drawn) == set(range(9))


RUN = ["run.name=a", "data.train=builtin://digits/train", "train.steps=3"]
GIVEN_PART = "{dims: 6, prior: {kind: categorical}, given: label}"
CLASS_PART = "{dims: 6, prior: {kind: categorical}}"


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["method.kind=label_guided"], "method label_guided needs a prior with classes"),
        (
            ["method.kind=semi_supervised", "data.labelled=x"],
            "method semi_supervised needs prior.kind=product with a categorical part",
        ),
        (["method.kind=semi_supervised"], "(got data.labelled=null, method.kind=semi_supervised)"),
        (["data.labelled=x"], "(got data.labelled=shards, method.kind=adversarial)"),
        ([f"prior={{kind: product, parts: [{GIVEN_PART}]}}"], "every part is given; add one"),
        (
            [f"prior={{kind: product, parts: [{GIVEN_PART}, {GIVEN_PART}]}}"],
            "every part is given; add one",
        ),
        (
            ["prior={kind: product, parts: [{dims: 6, given: label}, {dims: 2}]}"],
            "prior.parts.0.given: needs prior: {kind: categorical} (got gaussian)",
        ),
        (
            [
                f"prior={{kind: product, parts: [{GIVEN_PART}, {{dims: 2}}]}}",
                "data.label_key=null",
            ],
            "needs labels, and data.label_key is null",
        ),
        (
            [
                f"prior={{kind: product, parts: [{GIVEN_PART}, {{dims: 2}}]}}",
                "method.kind=semi_supervised",
                "data.labelled=x",
            ],
            "and none that is given",
        ),
    ],
)
def test_labels_that_cannot_be_read_are_refused(overrides: list[str], reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config([], [*RUN, *overrides])
    assert reason in str(caught.value)
