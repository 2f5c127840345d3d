"""Networks and posteriors: plain modules with plain arguments, and those of a configuration.

Only this file of the package reads the configuration.
"""

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from aae_dist.config import RunConfig
from aae_dist.config.run_config import num_classes_of
from aae_dist.config.sections import model as sections
from aae_dist.config.sections.method import AnyAdversarial
from aae_dist.errors import ConfigError
from aae_dist.models.autoencoder import (
    Autoencoder,
    CategoricalPosterior,
    DeterministicPosterior,
    Encoding,
    GaussianPosterior,
    Networks,
    Posterior,
    ProductPosterior,
    UniversalPosterior,
    run_encoder,
)
from aae_dist.models.conv import ConvDecoder, ConvEncoder
from aae_dist.models.mlp import (
    ClusterHeadDecoder,
    LabelledDiscriminator,
    MlpDecoder,
    MlpDiscriminator,
    MlpEncoder,
    PartwiseDiscriminator,
    SampleShape,
    cluster_heads,
)
from aae_dist.models.own import (
    FrozenBatchNorm,
    check_network,
    check_unit_range,
    import_network,
    load_weights_file,
    replace_batch_norm,
)
from aae_dist.models.tables import (
    NUM_OUTPUTS,
    CountDecoder,
    CountEncoder,
    ExpectedCounts,
    StandardizedDecoder,
    StandardizedEncoder,
    TableDecoder,
    TableEncoder,
)
from aae_dist.utils.tensors import derived_seed

__all__ = [
    "Autoencoder",
    "CategoricalPosterior",
    "ClusterHeadDecoder",
    "ConvDecoder",
    "ConvEncoder",
    "CountDecoder",
    "CountEncoder",
    "DeterministicPosterior",
    "Encoding",
    "ExpectedCounts",
    "FrozenBatchNorm",
    "GaussianPosterior",
    "MlpDecoder",
    "MlpDiscriminator",
    "MlpEncoder",
    "Networks",
    "PartwiseDiscriminator",
    "Posterior",
    "ProductPosterior",
    "SampleShape",
    "TableDecoder",
    "TableEncoder",
    "UniversalPosterior",
    "build_networks",
    "build_posterior",
    "check_network",
    "cluster_heads",
    "import_network",
    "replace_batch_norm",
    "run_encoder",
]

DTYPES = dict.fromkeys(("fp32", "tf32", "bf16"), torch.float32) | {"fp64": torch.float64}
"""dtype of weights, codes and losses, by `train.precision`."""

STANDARDIZED = {"encoder": StandardizedEncoder, "decoder": StandardizedDecoder}
SAMPLES = 4
"""Rows that a user's network is tried on."""


def build_posterior(config: sections.Posterior, prior: sections.Prior | None = None) -> Posterior:
    """Return the posterior of a run, with a softmax under each categorical part of its prior.

    Both `config` and `prior` are sections of its configuration.
    """
    own = _own_posterior(config)
    if not isinstance(prior, sections.ProductPrior):
        return own
    if not any(part.prior.kind == "categorical" for part in prior.parts):
        return own
    given = [number for number, part in enumerate(prior.parts) if part.given]
    parts = [(part.dims, _posterior_of_part(part, own)) for part in prior.parts]
    return ProductPosterior(parts, given)


def _posterior_of_part(part: sections.Part, own: Posterior) -> Posterior:
    if part.given:
        return DeterministicPosterior()
    if part.prior.kind != "categorical":
        return own
    of_run = isinstance(own, CategoricalPosterior) and own.straight_through
    return CategoricalPosterior(part.straight_through or of_run)


def _own_posterior(config: sections.Posterior) -> Posterior:
    match config:
        case sections.DeterministicPosterior():
            return DeterministicPosterior()
        case sections.GaussianPosterior():
            return GaussianPosterior()
        case sections.UniversalPosterior():
            return UniversalPosterior(config.noise_dim)
        case sections.CategoricalPosterior():
            return CategoricalPosterior(config.straight_through)


def build_networks(
    config: RunConfig, shape: SampleShape, device: torch.device, trains: bool = True
) -> Networks:
    """Return networks with weights that depend on `run.seed` and each network's name alone.

    Weights are drawn on the CPU, the same for every device.

    Args:
        config: the run's configuration.
        shape: of a sample: (C, H, W), or (D,) for vectors.
        device: of the networks.
        trains: False for networks that are only used, such as those of a finished run.

    Raises:
        ConfigError: the kind of network does not fit the samples, or a user's does not work.
    """
    model, roles, built = config.model, _roles(config, shape), _built_in(config.model)
    loss = config.method.reconstruction_loss

    def make_one(name: str, role: Mapping[str, Any]) -> nn.Module:
        own: sections.OwnNetwork | None = getattr(model, name)
        if own is None:
            network = _with_heads(name, built[name](**role), config)
            return _in_units(name, network, config, shape)
        network = import_network(f"model.{name}", own, role)
        if own.weights is not None and trains:
            load_weights_file(f"model.{name}.weights", network, own.weights)
        _check(name, network, role, trains)
        if name == "decoder" and config.data.columns is not None:
            return TableDecoder(_with_heads(name, network, config), config.data.columns.sizes)
        if name == "decoder" and loss in NUM_OUTPUTS:
            return CountDecoder(_with_heads(name, network, config), shape, loss)
        if name == "decoder" and loss == "bce":
            check_unit_range(f"model.{name}", network, torch.randn(SAMPLES, role["latent_dim"]))
        return _with_heads(name, network, config)

    # Draw weights from a generator of the network's own, without moving torch's global one.
    def make(name: str) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(config.run.seed, f"weights of {name}"))
            if name == "discriminator":
                network = _discriminator(config, lambda role: make_one(name, role))
            else:
                network = make_one(name, roles[name])
            return network.to(device=device, dtype=DTYPES[config.train.precision])

    _check_kind(model, shape)
    made = {name: make(name) for name in roles}
    return Networks(made["encoder"], made["decoder"], made.get("discriminator"))


def _check_kind(model: sections.Model, shape: SampleShape) -> None:
    is_vector = len(shape) == 3 and min(shape[1:]) == 1
    if model.kind != "mlp" and is_vector and not (model.encoder and model.decoder):
        raise ConfigError(
            f"model.kind={model.kind} needs signals, images or volumes; these samples have shape "
            f"{shape}; use model.kind=mlp, or data.layout=NL (or NCL) if they are signals"
        )


def _discriminator(
    config: RunConfig, make_one: Callable[[Mapping[str, Any]], nn.Module]
) -> nn.Module:
    """Return the discriminator of whole codes, of their parts, or of codes and labels."""
    latent_dim = config.model.latent_dim
    if isinstance(config.prior, sections.ProductPrior):
        columns, given = columns_of(config.prior)
        labels = sum(c.stop - c.start for c in given)
        each = [make_one({"latent_dim": c.stop - c.start + labels}) for c in columns]
        return PartwiseDiscriminator(each, columns, given)
    if config.method.kind == "label_guided":
        num_classes = num_classes_of(config.prior)
        assert num_classes is not None
        return LabelledDiscriminator(
            make_one({"latent_dim": latent_dim + num_classes + 1}), num_classes
        )
    return make_one({"latent_dim": latent_dim})


def _with_heads(name: str, network: nn.Module, config: RunConfig) -> nn.Module:
    """Return a decoder that reads cluster heads, if the configuration has some."""
    heads = config.model.cluster_heads
    if name != "decoder" or heads is None:
        return network
    classes, style = _columns_of_heads(config)
    return ClusterHeadDecoder(network, classes, style, heads.distance, heads.weight)


def _columns_of_heads(config: RunConfig) -> tuple[slice, slice]:
    """Return the columns of the class and of the style."""
    assert isinstance(config.prior, sections.ProductPrior)
    first, second = config.prior.parts
    columns = slice(0, first.dims), slice(first.dims, first.dims + second.dims)
    return columns if first.prior.kind == "categorical" else (columns[1], columns[0])


def _in_units(name: str, network: nn.Module, config: RunConfig, shape: SampleShape) -> nn.Module:
    """Return a built-in network as one that reads or writes the data's units."""
    loss, columns = config.method.reconstruction_loss, config.data.columns
    if columns is not None:
        if name == "encoder":
            return TableEncoder(network, columns.sizes)
        return TableDecoder(network, columns.sizes) if name == "decoder" else network
    if loss in NUM_OUTPUTS:
        if name == "encoder":
            return CountEncoder(network, shape)
        return CountDecoder(network, shape, loss) if name == "decoder" else network
    if config.data.standardize and name in STANDARDIZED:
        return STANDARDIZED[name](network, shape)
    return network


def _roles(config: RunConfig, shape: SampleShape) -> dict[str, dict[str, Any]]:
    """Return the arguments of each network, by its name."""
    posterior = build_posterior(config.posterior, config.prior)
    latent_dim = config.model.latent_dim
    noise = {"noise_dim": posterior.encoder_noise_dim} if posterior.encoder_noise_dim else {}
    num_outputs = posterior.num_outputs(latent_dim)
    decoded_dim = latent_dim
    if config.model.cluster_heads is not None:
        _, style = _columns_of_heads(config)
        decoded_dim = style.stop - style.start
    roles: dict[str, dict[str, Any]] = {
        "encoder": {"sample_shape": shape, "num_outputs": num_outputs, **noise},
        "decoder": {"latent_dim": decoded_dim, "sample_shape": shape},
    }
    if outputs := NUM_OUTPUTS.get(config.method.reconstruction_loss):
        roles["decoder"]["sample_shape"] = (outputs * shape[0], *shape[1:])
    if isinstance(config.method, AnyAdversarial):
        roles["discriminator"] = {"latent_dim": latent_dim}
    return roles


def columns_of(prior: sections.ProductPrior) -> tuple[list[slice], list[slice]]:
    """Return the columns of each part of the code that is inferred, and of each that is given."""
    ends = itertools.accumulate(part.dims for part in prior.parts)
    each = [
        (slice(end - part.dims, end), part.given is not None)
        for end, part in zip(ends, prior.parts, strict=True)
    ]
    return [own for own, is_given in each if not is_given], [
        own for own, is_given in each if is_given
    ]


def _built_in(model: sections.Model) -> Mapping[str, Callable[..., nn.Module]]:
    """Return a function per network name that builds it from its role's arguments."""
    sigmoid, residual = model.decoder_output == "sigmoid", model.kind == "resnet"
    widths, spectral = model.discriminator_widths, model.discriminator_spectral_norm

    def discriminator(latent_dim: int) -> nn.Module:
        return MlpDiscriminator(latent_dim, widths, spectral)

    def encoder(**role: Any) -> nn.Module:
        if isinstance(model, sections.MlpModel):
            return MlpEncoder(widths=model.encoder_widths, **role)
        width, depth = model.encoder_width, model.encoder_depth
        return ConvEncoder(width=width, depth=depth, residual=residual, **role)

    def decoder(**role: Any) -> nn.Module:
        if isinstance(model, sections.MlpModel):
            return MlpDecoder(widths=model.decoder_widths, sigmoid=sigmoid, **role)
        width, depth = model.decoder_width, model.decoder_depth
        return ConvDecoder(width=width, depth=depth, residual=residual, sigmoid=sigmoid, **role)

    return {"encoder": encoder, "decoder": decoder, "discriminator": discriminator}


def _check(name: str, network: nn.Module, role: Mapping[str, Any], trains: bool) -> None:
    """Try a user's network on a few random samples, the same on every rank."""
    inputs: tuple[tuple[int, ...], ...]
    if name == "encoder":
        inputs = (role["sample_shape"],)
        inputs += ((role["noise_dim"],),) if "noise_dim" in role else ()
        output: tuple[int, ...] = (role["num_outputs"],)
    else:
        inputs = ((role["latent_dim"],),)
        output = role.get("sample_shape", ())
    draw = torch.Generator().manual_seed(0)
    samples = tuple(torch.rand(SAMPLES, *shape, generator=draw) for shape in inputs)
    check_network(f"model.{name}", network, samples, (SAMPLES, *output), trains)
