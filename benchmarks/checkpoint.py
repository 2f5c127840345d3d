"""What saving a checkpoint every 50 steps costs a training on this machine's disk.

    python benchmarks/checkpoint.py [--batch 128] [--every 50] [--rounds 6] [--threads 1]

Blocks of steps with a save at their start take turns with blocks without one. Blocked: the share of
a block that the training thread spends in `save`. Slow-down: block with against block without, the
wait for the save's end included, as the save takes processor time from the steps beside it.
"""

import argparse
import statistics
import tempfile
import time

import torch
from engine import build_engine
from timing import median_ratio, print_header

from aae_dist.checkpoints.store import CheckpointStore
from aae_dist.distributed.world import single
from aae_dist.storage import open_storage
from aae_dist.training.state import TrainState


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--every", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print_header(f"A save every {args.every} steps, batch {args.batch}")
    with tempfile.TemporaryDirectory() as folder:
        measure(args.batch, args.every, args.rounds, folder)


def measure(batch: int, every: int, rounds: int, folder: str) -> None:
    """Print what the saves of `rounds` blocks cost."""
    engine = build_engine(single(), batch)
    state = TrainState(engine.networks, engine.method.optimizers)
    store = CheckpointStore(open_storage(folder), keep=2)
    blocked: list[float] = []
    plain: list[float] = []
    saving: list[float] = []

    def block(with_save: bool) -> float:
        started = time.perf_counter()
        if with_save:
            state.step = engine.steps_done
            store.save(state.step, state.tensors(), {"state": state.metadata()})
            blocked.append(time.perf_counter() - started)
        for _ in range(every):
            engine.step()
        # As a training does, this keeps the store's thread: starting another takes 1 ms of a save.
        while with_save and state.step not in store.steps():
            time.sleep(1e-3)
        return time.perf_counter() - started

    block(with_save=True)
    blocked.clear()
    for number in range(rounds):
        for with_save in (True, False) if number % 2 == 0 else (False, True):
            (saving if with_save else plain).append(block(with_save))
    store.wait()
    shares = sorted(b / s for b, s in zip(blocked, saving, strict=True))
    ratio, low, high = median_ratio(saving, plain)
    print(f"checkpoint            {store.last_bytes / 1e6:8.1f} MB")
    print(f"in the background     {store.last_seconds:8.2f} s")
    print(f"step without saving   {statistics.median(plain) / every * 1e3:8.2f} ms")
    print(f"blocked, median       {statistics.median(blocked) * 1e3:8.2f} ms per save")
    print(f"blocked share         {statistics.median(shares):8.2%} (worst {shares[-1]:.2%})")
    print(f"slow-down             {ratio:8.3f} (quartiles {low:.3f} to {high:.3f})")


if __name__ == "__main__":
    main()
