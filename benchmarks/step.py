"""One training step against the textbook loop and against the floor of its matrix products.

    python benchmarks/step.py [--batch 128] [--latent-dim 16] [--threads 1] [--rounds 30]

Textbook loop: three encoder passes, torch's default Adam, requires_grad toggled. Floor: the matrix
products of the minimal step at the model's own shapes, plus one fused Adam update per phase.
Both sides train the same 784-1000-1000-Z networks on the same images; the run ends by checking that
their parameters agree.
"""

import argparse
import copy

import torch
import torch.nn.functional as F
from timing import median_ratio, paired_seconds, print_header
from torch import Tensor, nn

from aae_dist.config import config_from_tree
from aae_dist.distributed.seeds import generator
from aae_dist.distributed.world import World
from aae_dist.methods import StepInputs, build_method
from aae_dist.models import build_networks, build_posterior
from aae_dist.priors import build_prior

SHAPE = (1, 28, 28)
NUM_BATCHES = 8


class TextbookLoop:
    """The paper's algorithm as most people write it."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module, discriminator: nn.Module) -> None:
        """Take networks and give each update torch's default Adam."""
        self.e, self.d, self.c = encoder, decoder, discriminator
        self.o1 = torch.optim.Adam([*self.e.parameters(), *self.d.parameters()], lr=1e-3)
        self.o2 = torch.optim.Adam(self.c.parameters(), lr=1e-3)
        self.o3 = torch.optim.Adam(self.e.parameters(), lr=1e-3)

    def step(self, images: Tensor, z_prior: Tensor) -> None:
        """Reconstruct, teach the discriminator, fool it."""
        x = images.float() / 255
        one, zero = torch.ones(len(x), device=x.device), torch.zeros(len(x), device=x.device)
        bce = F.binary_cross_entropy_with_logits
        self.o1.zero_grad()
        (((self.d(self.e(x)) - x) ** 2).sum() / 2 / len(x)).backward()
        self.o1.step()
        self.o2.zero_grad()
        codes = self.e(x).detach()
        (bce(self.c(z_prior), one) + bce(self.c(codes), zero)).backward()
        self.o2.step()
        self.o3.zero_grad()
        self.c.requires_grad_(False)
        bce(self.c(self.e(x)), one).backward()
        self.c.requires_grad_(True)
        self.o3.step()


class Floor:
    """The products of the minimal step and three fused Adam updates, and nothing else."""

    def __init__(self, networks: dict[str, nn.Module], batch: int) -> None:
        """Prepare operands of every product, and optimizers with gradients in place."""
        encoder, decoder, critic = (
            [m for m in networks[n].modules() if isinstance(m, nn.Linear)]
            for n in ("encoder", "decoder", "discriminator")
        )
        self.products: list[tuple[Tensor, Tensor]] = []
        self._add(encoder, batch, forward=2, weight=2, data=2, first_data=0)
        self._add(decoder, batch, forward=1, weight=1, data=1, first_data=1)
        self._add(critic, 2 * batch, forward=1, weight=1, data=1, first_data=0)
        self._add(critic, batch, forward=1, weight=0, data=1, first_data=1)
        self.optimizers = []
        for names in (("encoder", "decoder"), ("discriminator",), ("encoder",)):
            parameters = [torch.zeros_like(p) for n in names for p in networks[n].parameters()]
            for p in parameters:
                p.grad = torch.full_like(p, 1e-3)
            self.optimizers.append(torch.optim.Adam(parameters, fused=True))

    def _add(
        self,
        layers: list[nn.Linear],
        rows: int,
        *,
        forward: int,
        weight: int,
        data: int,
        first_data: int,
    ) -> None:
        for number, layer in enumerate(layers):
            w = torch.randn_like(layer.weight)
            x, g = (torch.randn(rows, n, device=w.device) for n in (w.shape[1], w.shape[0]))
            self.products += [(x, w.t())] * forward + [(g.t(), x)] * weight
            self.products += [(g, w)] * (data if number else first_data)

    def step(self) -> None:
        """Multiply and update."""
        for a, b in self.products:
            torch.mm(a, b)
        for optimizer in self.optimizers:
            optimizer.step()


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--latent-dim", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    batch, device = arguments.batch, torch.device(arguments.device)
    adam = {
        "optimizer": {"kind": "adam", "lr": 1e-3, "betas": [0.9, 0.999]},
        "schedule": {"kind": "constant"},
    }
    config = config_from_tree(
        {
            "run": {"name": "benchmark"},
            "data": {"train": "builtin://digits/train"},
            "model": {"latent_dim": arguments.latent_dim},
            "phases": {name: adam for name in ("reconstruction", "discriminator", "generator")},
            "train": {"steps": 10**6, "global_batch_size": batch},
        }
    )
    world = World(rank=0, size=1, local_rank=0, device=device)
    prior = build_prior(config.prior, arguments.latent_dim)
    networks = build_networks(config, SHAPE, device)
    textbook = TextbookLoop(*(copy.deepcopy(n) for n in networks.named().values()))
    floor = Floor(networks.named(), batch)
    inputs = StepInputs(
        seed=0,
        prior=prior,
        posterior=build_posterior(config.posterior),
        rows=slice(0, batch),
        global_batch_size=batch,
        micro_batch_size=None,
        world=world,
        dtype=torch.float32,
    )
    method = build_method(config, networks, prior, SHAPE, world)
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (NUM_BATCHES, batch, *SHAPE), generator=draw, dtype=torch.uint8)
    valid, done = torch.ones(batch, dtype=torch.bool), {"ours": 0, "textbook": 0}

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    def ours() -> None:
        step = done["ours"]
        method.set_progress(0.0)
        method.step(inputs.parts(images[step % NUM_BATCHES], valid, batch, step))
        done["ours"] += 1
        wait()

    def theirs() -> None:
        step = done["textbook"]
        z_prior = prior.sample(batch, generator(0, "prior", step)).to(device)
        textbook.step(images[step % NUM_BATCHES].to(device), z_prior)
        done["textbook"] += 1
        wait()

    def least() -> None:
        floor.step()
        wait()

    for _ in range(3):
        ours()
        theirs()
    pairs = zip(networks.encoder.parameters(), textbook.e.parameters(), strict=True)
    apart = max(float((a - b).abs().max()) for a, b in pairs)
    seconds = paired_seconds(
        {"ours": ours, "textbook": theirs, "floor": least}, arguments.rounds, warmup=2
    )
    print_header(f"One step, batch {batch}, 784-1000-1000-{arguments.latent_dim}")
    print("| side | median ms | ours / side (median, quartiles) |\n|---|---|---|")
    for name, values in seconds.items():
        ratio, low, high = median_ratio(seconds["ours"], values)
        middle = sorted(values)[len(values) // 2] * 1000
        print(f"| {name} | {middle:.1f} | {ratio:.3f} ({low:.3f} to {high:.3f}) |")
    faster, _, _ = median_ratio(seconds["textbook"], seconds["ours"])
    print(f"\ntextbook / ours: {faster:.2f} x; encoders after 3 steps differ by {apart:.1e}")


if __name__ == "__main__":
    main()
