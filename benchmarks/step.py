"""One training step against the textbook loop and against the floor of its matrix products.

    python benchmarks/step.py [--batch 128] [--latent-dim 16] [--threads 1] [--rounds 30]
        [--device cuda] [--compile] [--kind conv --channels 3 --size 64]

Textbook loop: three encoder passes, torch's default Adam, requires_grad toggled, never compiled.
Floor (fully connected networks only): the matrix products of the minimal step at the model's own
shapes and in its order, with one fused Adam update a phase. Both sides train the same networks,
784-1000-1000-Z or convolutions, on the same images; the run ends by checking that their parameters
agree.
"""

import argparse
import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from engine import NUM_BATCHES, build_engine
from timing import median_ratio, paired_seconds, print_header
from torch import Tensor, nn

from aae_dist.distributed.world import World
from aae_dist.utils.tensors import keyed_generator

MOST_APART = 1e-4
"""Between the two sides' encoders after 3 steps that compute the same in float32."""


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
    """The products of the minimal step in its order, three fused Adam updates, nothing else."""

    def __init__(self, networks: dict[str, nn.Module], batch: int) -> None:
        """Prepare operands of every product, and optimizers with gradients in place."""
        encoder, decoder, critic = (
            [m for m in networks[n].modules() if isinstance(m, nn.Linear)]
            for n in ("encoder", "decoder", "discriminator")
        )
        update_both, update_critic, update_encoder = (
            _update([p for n in names for p in networks[n].parameters()])
            for names in (("encoder", "decoder"), ("discriminator",), ("encoder",))
        )
        self.work = [
            *_forward(encoder, batch),
            *_forward(decoder, batch),
            *_backward(decoder, batch, to_input=True),
            *_backward(encoder, batch),
            update_both,
            *_forward(encoder, batch),
            *_forward(critic, 2 * batch),
            *_backward(critic, 2 * batch),
            update_critic,
            *_forward(critic, batch),
            *_backward(critic, batch, to_weights=False, to_input=True),
            *_backward(encoder, batch),
            update_encoder,
        ]

    def step(self) -> None:
        """Multiply and update."""
        for piece in self.work:
            piece()


def _update(parameters: list[Tensor]) -> Callable[[], object]:
    copies = [torch.zeros_like(p) for p in parameters]
    for p in copies:
        p.grad = torch.full_like(p, 1e-3)
    return torch.optim.Adam(copies, fused=True).step


def _product(a: Tensor, b: Tensor) -> Callable[[], Tensor]:
    return lambda: torch.mm(a, b)


def _forward(layers: list[nn.Linear], rows: int) -> list[Callable[[], object]]:
    weights = [layer.weight.detach() for layer in layers]
    return [_product(w.new_ones(rows, w.shape[1]), w.t()) for w in weights]


def _backward(
    layers: list[nn.Linear], rows: int, *, to_weights: bool = True, to_input: bool = False
) -> list[Callable[[], object]]:
    work: list[Callable[[], object]] = []
    for number, layer in reversed(list(enumerate(layers))):
        w = layer.weight.detach()
        g = w.new_ones(rows, w.shape[0])
        if number or to_input:
            work.append(_product(g, w))
        if to_weights:
            work.append(_product(g.t(), w.new_ones(rows, w.shape[1])))
    return work


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--latent-dim", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true", help="our side in torch.compile's code")
    parser.add_argument("--balance", choices=("none", "auto"), default="none", help="of our side")
    parser.add_argument("--kind", choices=("mlp", "conv", "resnet"), default="mlp")
    parser.add_argument("--channels", type=int, default=1)
    parser.add_argument("--size", type=int, default=28, help="pixels of a side")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    batch, device = arguments.batch, torch.device(arguments.device)
    world = World(rank=0, size=1, local_rank=0, device=device)
    kind, shape = arguments.kind, (arguments.channels, arguments.size, arguments.size)
    engine = build_engine(
        world, batch, arguments.latent_dim, kind, shape, arguments.compile, arguments.balance
    )
    networks = engine.networks
    textbook = TextbookLoop(*(copy.deepcopy(n) for n in networks.named().values()))
    floor = Floor(networks.named(), batch) if kind == "mlp" else None
    textbook_steps = 0

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    def ours() -> None:
        engine.step()
        wait()

    def theirs() -> None:
        nonlocal textbook_steps
        z_prior = engine.prior.sample(batch, keyed_generator(0, "prior", textbook_steps)).to(device)
        textbook.step(engine.images[textbook_steps % NUM_BATCHES].to(device), z_prior)
        textbook_steps += 1
        wait()

    def least() -> None:
        assert floor is not None
        floor.step()
        wait()

    for _ in range(3):
        ours()
        theirs()
    pairs = zip(networks.encoder.parameters(), textbook.e.parameters(), strict=True)
    apart = max(float((a - b).detach().abs().max()) for a, b in pairs)
    if arguments.balance == "none" and apart > MOST_APART:
        raise SystemExit(f"the two sides differ by {apart:.1e} after 3 steps: not the same step")
    sides: dict[str, Callable[[], object]] = {"ours": ours, "textbook": theirs}
    if floor:
        sides["floor"] = least
    seconds = paired_seconds(sides, arguments.rounds, warmup=2)
    pixels = " x ".join(map(str, shape))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    code = "compiled" if arguments.compile else "eager"
    print_header(
        f"One step, {code}, {kind}, {pixels}, batch {batch}, latent {arguments.latent_dim}, {name}"
    )
    print("| side | median ms | ours / side (median, quartiles) |\n|---|---|---|")
    for name, values in seconds.items():
        ratio, low, high = median_ratio(seconds["ours"], values)
        middle = sorted(values)[len(values) // 2] * 1000
        print(f"| {name} | {middle:.1f} | {ratio:.3f} ({low:.3f} to {high:.3f}) |")
    faster, _, _ = median_ratio(seconds["textbook"], seconds["ours"])
    print(f"\ntextbook / ours: {faster:.2f} x; encoders after 3 steps differ by {apart:.1e}")


if __name__ == "__main__":
    main()
