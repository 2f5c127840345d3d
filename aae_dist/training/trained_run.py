"""A run's newest checkpoint, ready to use: what `aae_dist.load_run` returns."""

import torch
from torch import Tensor

from aae_dist.config import RunConfig, config_from_tree
from aae_dist.data import open_dataset
from aae_dist.distributed.seeds import generator as keyed_generator
from aae_dist.distributed.world import World
from aae_dist.errors import CheckpointError, ConfigError
from aae_dist.evaluation import Evaluation, Evaluator
from aae_dist.models import Autoencoder, build_networks, build_posterior
from aae_dist.priors import Prior, build_prior
from aae_dist.storage import open_storage
from aae_dist.training.checkpoint import CheckpointStore, Saved
from aae_dist.training.state import load_weights


class TrainedRun:
    """Networks of one checkpoint, on one device, without gradients.

    Shapes: B images or codes, C H W image, Z latent_dim.

    Attributes:
        step: steps that the checkpoint had been trained for.
        config: the run's configuration, with everything filled in that the data decided.
        prior: p(z).
    """

    def __init__(self, saved: Saved, uri: str, device: torch.device) -> None:
        """Build the networks and copy the checkpoint's weights; use `load_run` instead."""
        self.uri, self.device = uri, device
        self.step: int = saved.step
        self.config: RunConfig = config_from_tree(saved.documents["config"])
        channels, height, width = saved.documents["data"]["image_shape"]
        self.image_shape: tuple[int, int, int] = (channels, height, width)
        self.prior: Prior = build_prior(self.config.prior, self.config.model.latent_dim)
        networks = build_networks(self.config, self.image_shape, device)
        load_weights(networks, saved.tensors["model"])
        self._autoencoder = Autoencoder(networks, build_posterior(self.config.posterior))

    def encode(self, images: Tensor) -> Tensor:
        """Return the codes of images: the means of q(z|x).

        Args:
            images: (B, C, H, W), uint8 in [0, 255] or floats in [0, 1].

        Returns:
            Floats of shape (B, Z).

        Raises:
            ValueError: the images have another shape than the run was trained on.
        """
        if tuple(images.shape[1:]) != self.image_shape:
            raise ValueError(
                f"images must have shape (B, {', '.join(map(str, self.image_shape))}); "
                f"got {tuple(images.shape)}"
            )
        return self._autoencoder.encode(images)

    def decode(self, codes: Tensor) -> Tensor:
        """Return the images of codes.

        Args:
            codes: floats of shape (B, Z).

        Returns:
            Floats of shape (B, C, H, W), in [0, 1] for a decoder with a sigmoid output.
        """
        return self._autoencoder.decode(codes)

    def reconstruct(self, images: Tensor) -> Tensor:
        """Return decode(encode(images)), floats of shape (B, C, H, W)."""
        return self.decode(self.encode(images))

    def sample(self, num: int, generator: torch.Generator | None = None) -> Tensor:
        """Return `num` decoded samples of the prior, floats of shape (num, C, H, W).

        Args:
            num: number of images.
            generator: on the CPU; by default one seeded by the run's seed.
        """
        source = generator or keyed_generator(self.config.run.seed, "samples of a trained run")
        return self.decode(self.prior.sample(num, source))

    def evaluate(self) -> Evaluation:
        """Score the networks on the run's validation shards.

        Raises:
            ConfigError: the run has none.
        """
        if self.config.data.validation is None:
            raise ConfigError(f"{self.uri} was trained without data.validation")
        dataset = open_dataset(self.config.data.validation, self.config.data, self.image_shape)
        world = World(rank=0, size=1, local_rank=0, device=self.device)
        evaluator = Evaluator(dataset, self.prior, world, self.config.run.seed)
        return evaluator.evaluate(self._autoencoder)


def load_run(uri: str, device: str | torch.device = "cpu") -> TrainedRun:
    """Load a run's newest checkpoint that verifies.

    Args:
        uri: the run's folder: a local path, s3://, gs:// or az://.
        device: where the networks shall live.

    Raises:
        CheckpointError: the folder holds no checkpoint that verifies.
        LaunchError: the storage cannot be read.
    """
    saved = CheckpointStore(open_storage(uri), keep=1).newest()
    if saved is None:
        raise CheckpointError(
            f"{uri} holds no checkpoint that verifies; give the folder of a run, as printed when "
            "training ended"
        )
    return TrainedRun(saved, uri, torch.device(device))
