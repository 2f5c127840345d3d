"""Pythae's side of `peers.py`: its adversarial autoencoder on MNIST, run in its own environment.

    python -m venv PATH && PATH/bin/pip install -r benchmarks/peers-requirements.txt

`peers.py --pythae-python PATH/bin/python` starts this file; nothing of aae_dist is imported here.
"""

import argparse
import time
from importlib.metadata import version
from itertools import pairwise

import numpy as np
import torch
from pythae.data.datasets import BaseDataset
from pythae.models import Adversarial_AE, Adversarial_AE_Config
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseDiscriminator, BaseEncoder
from pythae.trainers import AdversarialTrainer, AdversarialTrainerConfig
from pythae.trainers.training_callbacks import TrainingCallback
from torch import Tensor, nn
from torchvision.datasets import MNIST

BATCH, LATENT_DIM, NUM_PIXELS = 128, 8, 784
WIDTHS = (1000, 1000)


def mlp(*sizes: int) -> nn.Sequential:
    """Return linear layers with ReLU between them."""
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Encoder(BaseEncoder):
    """Images to codes."""

    def __init__(self) -> None:
        """Build the layers."""
        super().__init__()
        self.latent_dim = LATENT_DIM
        self.layers = mlp(NUM_PIXELS, *WIDTHS, LATENT_DIM)

    def forward(self, x: Tensor) -> ModelOutput:
        """Return codes; pythae ignores the covariance of a deterministic posterior."""
        codes = self.layers(x.flatten(1))
        return ModelOutput(embedding=codes, log_covariance=torch.zeros_like(codes))


class Decoder(BaseDecoder):
    """Codes to images."""

    def __init__(self) -> None:
        """Build the layers."""
        super().__init__()
        self.layers = mlp(LATENT_DIM, *WIDTHS, NUM_PIXELS)

    def forward(self, z: Tensor) -> ModelOutput:
        """Return images in [0, 1]."""
        return ModelOutput(reconstruction=torch.sigmoid(self.layers(z)).reshape(-1, 1, 28, 28))


class Discriminator(BaseDiscriminator):
    """Codes to the probability that they come from the prior."""

    def __init__(self) -> None:
        """Build the layers."""
        super().__init__()
        self.layers = mlp(LATENT_DIM, *WIDTHS, 1)

    def forward(self, z: Tensor) -> ModelOutput:
        """Return probabilities, as pythae's loss wants them."""
        return ModelOutput(embedding=torch.sigmoid(self.layers(z)))


class StepCounter(TrainingCallback):
    """Counts steps in a file of 8 bytes, for `peers.py` to read while this trains."""

    def __init__(self, path: str) -> None:
        """Count in `path`."""
        self.progress = np.memmap(path, np.int64, "r+")

    def on_train_step_end(self, training_config: object, **_: object) -> None:
        """Count one."""
        self.progress[0] += 1


def images(root: str, *, train: bool) -> Tensor:
    """Return one set of MNIST, float [N, 1, 28, 28] in [0, 1]."""
    pixels: Tensor = MNIST(root, train=train).data
    return pixels[:, None].float() / 255


def build_trainer(
    x_train: Tensor, output: str, epochs: int, seed: int, progress: str | None
) -> AdversarialTrainer:
    """Return pythae's trainer with the settings of this comparison."""
    config = Adversarial_AE_Config(
        input_dim=(1, 28, 28), latent_dim=LATENT_DIM, deterministic_posterior=True
    )
    model = Adversarial_AE(
        config, encoder=Encoder(), decoder=Decoder(), discriminator=Discriminator()
    )
    settings = AdversarialTrainerConfig(
        output_dir=output,
        num_epochs=epochs,
        per_device_train_batch_size=BATCH,
        per_device_eval_batch_size=BATCH,
        autoencoder_learning_rate=1e-3,
        discriminator_learning_rate=5e-4,
        no_cuda=True,
        seed=seed,
    )
    data = BaseDataset(x_train, torch.zeros(len(x_train)))
    counters = [StepCounter(progress)] if progress else None
    return AdversarialTrainer(
        model, train_dataset=data, training_config=settings, callbacks=counters
    )


@torch.no_grad()
def score(model: Adversarial_AE, x_test: Tensor) -> tuple[Tensor, float]:
    """Return the codes of the test images and the mean squared error per pixel."""
    model.eval()
    codes = model.encoder(x_test).embedding
    error = model.decoder(codes).reconstruction - x_test
    return codes, error.double().square().mean().item()


def main() -> None:
    """Train, and write codes, error and seconds to a file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mnist", required=True, help="folder that torchvision keeps MNIST in")
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--work", required=True, help="folder for what pythae writes")
    parser.add_argument("--out", required=True, help="the .npz to write")
    parser.add_argument("--progress", help="file of 8 bytes that counts the steps")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    x_train = images(arguments.mnist, train=True)
    trainer = build_trainer(
        x_train, arguments.work, arguments.epochs, arguments.seed, arguments.progress
    )
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    codes, mse = score(trainer.model, images(arguments.mnist, train=False))
    np.savez(
        arguments.out,
        codes=codes.numpy(),
        mse=mse,
        seconds=seconds,
        steps=arguments.epochs * -(-len(x_train) // BATCH),
        versions=f"pythae {version('pythae')}, torch {torch.__version__}, numpy {np.__version__}",
    )


if __name__ == "__main__":
    main()
