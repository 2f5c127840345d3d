"""The plain autoencoder: the reconstruction phase alone."""

from collections.abc import Sequence

from aae_dist.methods.inputs import MicroBatch
from aae_dist.methods.method import Losses, Method


class AutoencoderMethod(Method):
    """No regularizer: codes go wherever reconstruction puts them."""

    phases = {"reconstruction": ("encoder", "decoder")}

    def step(self, parts: Sequence[MicroBatch]) -> Losses:
        """Reconstruct."""
        loss = self.optimizers["reconstruction"].update(self.reconstruction_loss, parts)
        return {"loss/reconstruction": loss}
