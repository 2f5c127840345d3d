"""Two ranks against two independent runs, and against bare DDP, on the same two cores.

    python benchmarks/ranks.py [--ranks 2] [--rounds 8] [--batches 64 256 1024]

Each rank is a process with one thread and gloo. In turns, all ranks together take some steps of
each side, at the same number of samples per rank:

- ours: one run over all ranks, gradients averaged;
- apart: as many runs of one rank each, which share nothing but the machine;
- bare: the same phases written with DistributedDataParallel around each network and torch's fused
  Adam, and nothing of ours: no weights, no masks, no guard against gradients that are not finite.

Printed is samples/s of ours over each other side, medians over the rounds.
"""

import argparse
import multiprocessing
import os
import socket
import time
from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.nn.functional as F
from engine import NUM_BATCHES, Engine, build_engine
from timing import median_ratio, print_header
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from aae_dist.distributed.world import World
from aae_dist.utils.tensors import keyed_generator

CPU = torch.device("cpu")


class Bare:
    """The minimal step over data parallel networks, as an expert would write it by hand."""

    def __init__(self, engine: Engine, rows: slice) -> None:
        """Wrap the engine's networks; `rows` are this rank's of the global batch."""
        self.engine, self.rows, self.steps = engine, rows, 0
        self.e, self.d, self.c = (_parallel(n) for n in engine.networks.named().values())
        self.critic = engine.networks.named()["discriminator"]
        both = [*self.e.parameters(), *self.d.parameters()]
        self.o1 = torch.optim.Adam(both, lr=1e-3, fused=True)
        self.o2 = torch.optim.Adam(self.c.parameters(), lr=1e-3, fused=True)
        self.o3 = torch.optim.Adam(self.e.parameters(), lr=1e-3, fused=True)

    def step(self) -> None:
        """Reconstruct, teach the discriminator, fool it."""
        x = self.engine.images[self.steps % NUM_BATCHES].float() / 255
        size = len(x) * dist.get_world_size()
        z_prior = self.engine.prior.sample(size, keyed_generator(0, "prior", self.steps))
        loss = (self.d(self.e(x)) - x).square().sum() / 2 / len(x)
        self._update(self.o1, loss)
        z = self.e(x)
        logits = self.c(torch.cat([z_prior[self.rows], z.detach()]))
        prior, codes = logits.chunk(2)
        self._update(self.o2, F.softplus(-prior).mean() + F.softplus(codes).mean())
        self._update(self.o3, F.softplus(-self.critic(z)).mean())
        self.steps += 1

    def _update(self, optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
        loss.backward(inputs=optimizer.param_groups[0]["params"])
        optimizer.step()
        optimizer.zero_grad()


def _parallel(network: nn.Module) -> nn.Module:
    return DistributedDataParallel(network, gradient_as_bucket_view=True)


def run_rank(rank: int, ranks: int, port: int, batches: list[int], rounds: int) -> None:
    """Measure on this rank; rank 0 prints."""
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=ranks)
    if rank == 0:
        print_header(f"{ranks} ranks on this machine, 784-1000-1000-16, one thread a rank")
        print("| samples per rank | ours, samples/s | ours / apart | ours / bare DDP |")
        print("|---|---|---|---|")
    for batch in batches:
        measure(World(rank, ranks, rank, CPU), batch, rounds)
    dist.destroy_process_group()


def measure(world: World, batch: int, rounds: int) -> None:
    """Time all sides at `batch` samples per rank."""
    ours = build_engine(world, batch * world.size)
    apart = build_engine(World(0, 1, 0, CPU), batch)
    bare = Bare(build_engine(World(0, 1, 0, CPU), batch), ours.inputs.rows)
    sides: dict[str, Callable[[], None]] = {
        "ours": ours.step,
        "apart": apart.step,
        "bare": bare.step,
    }
    steps = max(3, 1024 // batch)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(-1, rounds):
        for name in sides if number % 2 else reversed(sides):
            seconds[name].append(timed(sides[name], steps))
    if world.is_main:
        kept = {name: values[1:] for name, values in seconds.items()}
        (to_apart, *_), (to_bare, *_) = (
            median_ratio(kept[n], kept["ours"]) for n in list(kept)[1:]
        )
        speed = steps * batch * world.size / sorted(kept["ours"])[rounds // 2]
        print(f"| {batch} | {speed:.0f} | {to_apart:.2f} | {to_bare:.2f} |", flush=True)


def timed(step: Callable[[], None], steps: int) -> float:
    """Return seconds until the last rank has taken its steps."""
    dist.barrier()
    started = time.perf_counter()
    for _ in range(steps):
        step()
    dist.barrier()
    return time.perf_counter() - started


def free_port() -> int:
    """Return a port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> None:
    """Start the ranks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 256, 1024])
    arguments = parser.parse_args()
    options = (arguments.ranks, free_port(), arguments.batches, arguments.rounds)
    start = multiprocessing.get_context("spawn").Process
    ranks = [start(target=run_rank, args=(rank, *options)) for rank in range(arguments.ranks)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()


if __name__ == "__main__":
    main()
