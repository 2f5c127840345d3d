"""Run a function on N real gloo ranks, in processes forked from one that has imported torch."""

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from aae_dist.distributed.world import World

CONTEXT = multiprocessing.get_context("forkserver")
"""Starts processes that have imported what ranks need: 0.02 s of CPU time each rather than 3 s."""
CONTEXT.set_forkserver_preload(
    [
        *("helpers.measures", "helpers.fleet", "helpers.python_runs"),
        *("torch._dynamo", "aae_dist.cli.train"),
        *("aae_dist.launch.local", "aae_dist.evaluation.pictures", "aae_dist.tracking"),
    ]
)


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def run_ranks(function: Callable[..., Any], size: int, *arguments: Any) -> list[Any]:
    """Return `function(world, *arguments)` of every rank, in rank order."""
    port, queue, done = free_port(), CONTEXT.Queue(), CONTEXT.Event()
    processes = [
        CONTEXT.Process(target=_rank, args=(queue, done, port, rank, size, function, arguments))
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    results: dict[int, Any] = {}
    for _ in processes:
        rank, ok, value = queue.get(timeout=120)
        if not ok:
            for process in processes:
                process.kill()
            raise AssertionError(f"rank {rank} failed:\n{value}")
        results[rank] = value
    done.set()
    for process in processes:
        process.join(30)
    return [results[rank] for rank in range(size)]


def _rank(
    queue: Any, done: Any, port: int, rank: int, size: int, function: Any, arguments: Any
) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    try:
        dist.init_process_group(
            "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=size
        )
        world = World(rank=rank, size=size, local_rank=rank, device=torch.device("cpu"))
        value = function(world, *arguments)
        queue.put((rank, True, value))
        done.wait(120)  # tensors are handed over through this process
        dist.destroy_process_group()
    except BaseException:
        queue.put((rank, False, traceback.format_exc()))


def single_world() -> World:
    return World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))
