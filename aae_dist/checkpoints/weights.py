"""Weights in a checkpoint: those in training, and their exponential moving average."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor

from aae_dist.errors import CheckpointError
from aae_dist.models import Networks

AVERAGED = ("encoder", "decoder")


class WeightAverage:
    """An exponential moving average of encoder and decoder.

    Its decay starts lower, at (1 + step) / (10 + step), so that the first weights are soon
    forgotten.

    Attributes:
        networks: averaged encoder and decoder, with the discriminator in training.
        is_inherited: whether it started as the average of another run, which is worth keeping from
            the first step on.
    """

    def __init__(self, networks: Networks, decay: float) -> None:
        """Start at the weights of `networks`, those in training."""
        self._live, self._decay = networks, decay
        encoder, decoder = copy.deepcopy(networks.encoder), copy.deepcopy(networks.decoder)
        self.networks = Networks(encoder, decoder, networks.discriminator)
        self.is_inherited = False
        for name in AVERAGED:
            self.networks.named()[name].requires_grad_(False)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update the average with the weights after `step` steps."""
        early = 1.0 if self.is_inherited else (1 + step) / (10 + step)
        share = 1 - min(self._decay, early)
        torch._foreach_lerp_(_tensors(self.networks), _tensors(self._live), share)

    @torch.no_grad()
    def restart(self) -> None:
        """Set the average to the weights in training; also buffers, of a user's networks."""
        torch._foreach_copy_(_tensors(self.networks), _tensors(self._live))
        for name in AVERAGED:
            pairs = (networks.named()[name].buffers() for networks in (self.networks, self._live))
            for mine, live in zip(*pairs, strict=True):
                mine.copy_(live)

    def tensors(self) -> dict[str, Tensor]:
        """Return the averages by the names of the weights in a checkpoint."""
        networks = self.networks.named()
        return {
            f"{name}.{key}": tensor
            for name in AVERAGED
            for key, tensor in networks[name].state_dict().items()
        }


def weights_to_use(tensors: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the weights to evaluate in a checkpoint: averages where there are any."""
    return {**tensors["model"], **tensors.get("ema", {})}


@torch.no_grad()
def load_weights(networks: Networks, model: Mapping[str, Tensor]) -> None:
    """Copy the tensors of a checkpoint's `model` file into networks of the same shape."""
    for name, network in networks.named().items():
        for key, tensor in network.state_dict().items():
            saved = model.get(f"{name}.{key}")
            if saved is None or saved.shape != tensor.shape:
                got = "none" if saved is None else tuple(saved.shape)
                raise CheckpointError(
                    f"the checkpoint's weights do not fit: {name}.{key} should have shape "
                    f"{tuple(tensor.shape)} (got {got}); keep model, posterior and method as saved"
                )
            tensor.copy_(saved)


def _tensors(networks: Networks) -> list[Tensor]:
    return [p.detach() for name in AVERAGED for p in networks.named()[name].parameters()]
