"""Methods with their optimizers, from the configuration."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from aae_dist.config import RunConfig
from aae_dist.config.sections import method as sections
from aae_dist.config.sections.model import MlpModel, Model
from aae_dist.distributed import optimizer, wrappers
from aae_dist.distributed.world import World
from aae_dist.losses import RECONSTRUCTION_LOSSES, mixed_error
from aae_dist.methods import adversarial, distances, without_adversary
from aae_dist.methods.method import Method, Modules
from aae_dist.models import Networks, SampleShape, build_posterior
from aae_dist.priors import Prior

METHODS: dict[str, type[Method]] = {
    "adversarial": adversarial.AdversarialMethod,
    "label_guided": adversarial.LabelGuidedMethod,
    "semi_supervised": adversarial.SemiSupervisedMethod,
    "autoencoder": without_adversary.AutoencoderMethod,
    "characteristic": without_adversary.CharacteristicMethod,
    "mmd": without_adversary.MmdMethod,
    "sliced_wasserstein": without_adversary.SlicedWassersteinMethod,
    "variational": without_adversary.VariationalMethod,
}


def reconstruction_loss(config: RunConfig) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the loss of reconstructions and samples, (B), of a configuration."""
    columns = config.data.columns
    if columns is not None:
        return partial(mixed_error, sizes=columns.sizes)
    return RECONSTRUCTION_LOSSES[config.method.reconstruction_loss]


_COMMON = frozenset({"kind", "reconstruction_loss", "image_noise"})
"""Fields of every method's section, which `Modules` has."""


LR_OF_WIDE, WIDE, LR_EXPONENT = 2e-3, 1000, 0.3
"""Adam's default learning rate for layers of so many units; narrower ones take more."""
SHARING = {"generator", "classification"}
"""Phases that move the encoder in steps of reconstruction's second moments (method.balance)."""


def build_method(
    config: RunConfig,
    networks: Networks,
    prior: Prior,
    shape: SampleShape,
    world: World,
    baseline_loss: float = 1.0,
) -> Method:
    """Return the run's method, its networks wrapped for data parallel training.

    Args:
        config: the run's configuration.
        networks: what `aae_dist.models.build_networks` returns.
        prior: what `aae_dist.priors.build_prior` returns.
        shape: of a sample: (C, H, W), or (D,) for vectors.
        world: this process among the ranks.
        baseline_loss: reconstruction loss of the data's mean, the unit of `method.weight` and
            `method.distance_weight` where `method.balance` is auto.
    """
    # Wrap each network, and let DDP rebuild its buckets before the first step.
    wrapped = {
        name: wrappers.data_parallel(_wrap_compute(name, module, config), world)
        for name, module in networks.named().items()
    }
    posterior = build_posterior(config.posterior, config.prior)
    noise = ((posterior.encoder_noise_dim,),) if posterior.encoder_noise_dim else ()
    examples: dict[str, tuple[tuple[int, ...], ...]] = {
        "encoder": (shape, *noise),
        "decoder": ((config.model.latent_dim,),),
        "discriminator": ((config.model.latent_dim,),),
    }
    like = next(networks.encoder.parameters())
    for name, network in wrapped.items():
        inputs = [like.new_zeros(1, *example) for example in examples[name]]
        wrappers.warm_up_buckets(network, *inputs)

    # Build the method with one optimizer per phase.
    modules = Modules(
        encoder=wrapped["encoder"],
        decoder=wrapped["decoder"],
        discriminator=wrapped.get("discriminator"),
        posterior=posterior,
        prior=prior,
        reconstruction_loss=reconstruction_loss(config),
        world=world,
        image_noise=config.method.image_noise,
    )
    arguments = _arguments(config, prior, baseline_loss)
    return METHODS[config.method.kind](modules, _build_optimizers(config, wrapped), **arguments)


def _build_optimizers(
    config: RunConfig, wrapped: dict[str, nn.Module]
) -> dict[str, optimizer.SynchronizedOptimizer]:
    method = config.method
    shares_moments = isinstance(method, sections.AnyAdversarial) and method.balance == "auto"
    optimizers = {
        phase: build_optimizer(
            getattr(config.phases, phase),
            {name: wrapped[name] for name in names},
            default_lr=default_lr(config.model),
            amsgrad=shares_moments and phase in SHARING,
        )
        for phase, names in METHODS[method.kind].phases.items()
    }
    if shares_moments:
        for phase in optimizers.keys() & SHARING:
            optimizers[phase].moments_of = optimizers["reconstruction"]
    return optimizers


def default_lr(model: Model) -> float:
    """Return Adam's learning rate for networks of this size, where the configuration names none.

    On unlike data networks of 256 end better in error and match with 3e-3 than with 2e-3, and
    those of 1,000 worse (docs/algorithm.md).
    """
    units: list[int] = []
    if isinstance(model, MlpModel):
        units += model.encoder_widths if model.encoder is None else ()
        units += model.decoder_widths if model.decoder is None else ()
    rate: float = LR_OF_WIDE * (WIDE / max(units, default=WIDE)) ** LR_EXPONENT
    return rate


def _arguments(config: RunConfig, prior: Prior, baseline_loss: float) -> dict[str, Any]:
    """Return the section's fields as arguments of the method, weights in units of the loss."""
    method = config.method
    arguments = method.model_dump(exclude={*_COMMON, "balance"})
    if isinstance(method, sections.AnyAdversarial):
        weight, distance, r1 = method.weights(config.model.latent_dim)
        if method.balance == "auto":
            variances = [distances.total_variance(part.prior) for part in prior.parts]
            weight *= baseline_loss
            arguments["smoothness"] *= baseline_loss
            if len(variances) > 1:
                distance *= baseline_loss  # the distance itself is per variance of each part
                arguments["r1_variances"] = variances
            else:
                (variance,) = variances
                distance *= baseline_loss * prior.parts[0].dims / variance if variance else 0.0
                r1 *= variance
        arguments |= {"weight": weight, "distance_weight": distance, "r1_weight": r1}
    if isinstance(method, sections.SemiSupervisedMethod):
        balanced = method.balance == "auto"
        given, by_default = method.classification_weight, 0.2 if balanced else 1.0
        unit = baseline_loss if balanced else 1.0
        arguments["classification_weight"] = unit * (by_default if given is None else given)
    return arguments


def _wrap_compute(name: str, network: nn.Module, config: RunConfig) -> nn.Module:
    method, dims = config.method, config.model.latent_dim
    penalised = isinstance(method, sections.AnyAdversarial) and method.weights(dims)[2] > 0
    return wrappers.wrap_compute(
        network,
        # The discriminator is small, and its logits decide by small differences.
        bfloat16=config.train.precision == "bf16" and name != "discriminator",
        # Compiled code has no second derivatives, which R1 needs.
        compiled=config.train.compile and not (penalised and name == "discriminator"),
    )


def build_optimizer(
    config: sections.Phase,
    networks: dict[str, nn.Module],
    default_lr: float = LR_OF_WIDE,
    amsgrad: bool = False,
) -> optimizer.SynchronizedOptimizer:
    """Return the optimizer of one phase.

    Args:
        config: the phase's section: optimizer, schedule, clipping.
        networks: those that it trains, by name.
        default_lr: learning rate of an Adam whose `lr` is null.
        amsgrad: of Adam (Reddi et al., arXiv 1904.09237).
    """
    parameters = [
        p for network in networks.values() for p in wrappers.trainable_parameters(network).values()
    ]
    return optimizer.SynchronizedOptimizer(
        networks=networks,
        optimizer=_torch_optimizer(config.optimizer, parameters, default_lr, amsgrad),
        schedule=optimizer.build_schedule(config.schedule),
        clip_norm=config.clip_norm,
    )


def _torch_optimizer(
    config: sections.Optimizer, parameters: Iterable[nn.Parameter], default_lr: float, amsgrad: bool
) -> torch.optim.Optimizer:
    # fused: 7 ms instead of 47 for the 6.4 M parameters that a step of the default model updates.
    if isinstance(config, sections.Sgd):
        return torch.optim.SGD(parameters, lr=config.lr, momentum=config.momentum, fused=True)
    decay = config.weight_decay if isinstance(config, sections.AdamW) else 0.0
    kind = torch.optim.AdamW if isinstance(config, sections.AdamW) else torch.optim.Adam
    return kind(
        parameters,
        lr=default_lr if config.lr is None else config.lr,
        betas=config.betas,
        eps=config.eps,
        weight_decay=decay,
        amsgrad=amsgrad,
        fused=True,
    )
