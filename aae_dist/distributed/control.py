"""The group over which ranks decide: on the CPU, so that none waits for its device, and patient."""

import json
from datetime import timedelta
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor

from aae_dist.distributed.world import World

COLLECTIVE_SECONDS = 600
"""Longest wait of a rank for the others where gradients are exchanged; torch's own is 1800 s."""
CONTROL_SECONDS = 7200
"""Longest wait where ranks decide, in which one of them may work alone: twice what the watchdog
gives to evaluation, so that it, and no time-out of torch, ends ranks that hang."""

_groups: "WeakKeyDictionary[dist.ProcessGroup, dist.ProcessGroup]" = WeakKeyDictionary()


def control_group() -> dist.ProcessGroup:
    """Return the gloo group of all ranks that goes with the process group, and ends with it.

    The first call makes it, which is a collective: whoever sets up the process group calls this.
    """
    default = dist.group.WORLD
    assert default is not None
    if default not in _groups:
        patience = timedelta(seconds=CONTROL_SECONDS)
        group = dist.new_group(backend="gloo", timeout=patience)
        assert isinstance(group, dist.ProcessGroup)
        _groups[default] = group
    return _groups[default]


def broadcast_json(value: Any, world: World, source: int = 0) -> Any:
    """Return rank `source`'s JSON value on every rank."""
    if world.size == 1:
        return value
    payload = _packed(value)
    length = torch.tensor([len(payload)])
    dist.broadcast(length, source, group=control_group())
    if world.rank != source:
        payload = torch.empty(int(length), dtype=torch.uint8)
    dist.broadcast(payload, source, group=control_group())
    return _unpacked(payload)


def gather_json(value: Any, world: World) -> list[Any]:
    """Return every rank's JSON value, in rank order, on every rank."""
    if world.size == 1:
        return [value]
    payload = _packed(value)
    lengths = [int(length) for length in _gathered(torch.tensor([len(payload)]), world)]
    padded = torch.zeros(max(lengths), dtype=torch.uint8)
    padded[: len(payload)] = payload
    texts = zip(_gathered(padded, world), lengths, strict=True)
    return [_unpacked(text[:length]) for text, length in texts]


# JSON travels as bytes: torch's object collectives unpickle.
def _packed(value: Any) -> Tensor:
    return torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)


def _unpacked(payload: Tensor) -> Any:
    return json.loads(payload.numpy().tobytes())


def _gathered(mine: Tensor, world: World) -> list[Tensor]:
    all_ranks = [torch.empty_like(mine) for _ in range(world.size)]
    dist.all_gather(all_ranks, mine, group=control_group())
    return all_ranks
