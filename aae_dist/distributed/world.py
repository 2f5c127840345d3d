"""The ranks of a run: which one this process is, collectives, and a check for equal networks.

Only this file reads RANK, WORLD_SIZE and the like. Decisions travel over a gloo process group with
a long timeout, so they never synchronize with the GPU; tensors of training use the default group.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor, nn

from aae_dist.errors import AaeDistError, ConfigError, LaunchError, packed, unpacked


@dataclass(frozen=True)
class World:
    """This process's rank among the data-parallel ranks of a run."""

    rank: int
    size: int
    local_rank: int
    device: torch.device
    local_size: int = 1
    """Ranks on this node; they have consecutive numbers."""

    def __str__(self) -> str:
        return f"{self.size} rank{'s' * (self.size != 1)}"

    @property
    def is_main(self) -> bool:
        """True on the one rank that writes files, pictures and metrics."""
        return self.rank == 0


def single() -> World:
    """Return the world of one process on the CPU."""
    return World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))


def from_environment(device: str) -> World:
    """Return the world that torchrun or Ray Train described in this process's environment.

    The device auto takes the GPU of this process's local rank, if there is one; cuda raises
    ConfigError where torch sees no GPU. LaunchError names variables that fit no world.
    """
    rank, size = _number("RANK", 0), _number("WORLD_SIZE", 1)
    local_rank = _number("LOCAL_RANK", 0)
    local_size = max(local_rank + 1, _number("LOCAL_WORLD_SIZE", 1))
    if size > 1 and not os.environ.get("RANK"):
        raise LaunchError(f"WORLD_SIZE={size}, but RANK is not set. {_TORCHRUN}")
    if rank >= size:
        raise LaunchError(f"RANK={rank} is no rank of WORLD_SIZE={size}. {_TORCHRUN}")
    if device == "cuda":
        check_cuda("train.device=cuda")
    use_cuda = device != "cpu" and torch.cuda.is_available()
    chosen = torch.device("cuda", local_rank) if use_cuda else torch.device("cpu")
    return World(rank, size, local_rank, chosen, local_size)


_TORCHRUN = "torchrun sets it for its ranks: start them with it, or unset what is left over."


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "").strip() or str(default)
    if not (text.isascii() and text.isdigit() and len(text) < 7):
        raise LaunchError(f"{name}={text[:40]!r} is not a number of ranks. {_TORCHRUN}")
    return int(text)


def check_cuda(wanted: str) -> None:
    """Raise ConfigError, which names what was wanted, unless torch sees a GPU."""
    if not torch.cuda.is_available():
        raise ConfigError(
            f"{wanted}, but torch sees no GPU on this machine; use cpu, or look at what "
            "`aae-dist doctor` says of GPUs"
        )


COLLECTIVE_SECONDS = 600
"""Timeout of collectives that exchange gradients; torch's default is 1800 s."""
CONTROL_SECONDS = 7200
"""Timeout of control messages, while one rank may work alone: twice the watchdog's limit for an
evaluation, so that the watchdog, not torch's timeout, ends ranks that hang."""

_groups: "WeakKeyDictionary[dist.ProcessGroup, dist.ProcessGroup]" = WeakKeyDictionary()


def control_group() -> dist.ProcessGroup:
    """Return a gloo group of all ranks, which lives as long as the process group.

    The first call creates it, which is a collective: call it when the process group is set up.
    """
    default = dist.group.WORLD
    assert default is not None
    if default not in _groups:
        group = dist.new_group(backend="gloo", timeout=timedelta(seconds=CONTROL_SECONDS))
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


T = TypeVar("T")


def mean_over_ranks(values: Tensor, world: World) -> Tensor:
    """Return the mean of `values` over all ranks."""
    if world.size == 1:
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total / world.size


def rows_of_all_ranks(rows: Tensor, numbers: Tensor, num_rows: int, world: World) -> Tensor:
    """Return the table of all ranks' rows, in the order of their numbers, on every rank.

    Rows are (B, ...), where ranks may have different B; `numbers`, int64 (B), are their places.
    """
    table = rows.new_zeros(num_rows, *rows.shape[1:])
    table[numbers] = rows
    if world.size > 1:
        # A sum of one row and zeros is exact, and needs no padding to equal shares.
        dist.all_reduce(table)
    return table


def run_on_all_ranks(world: World, work: Callable[[], T]) -> T:
    """Run `work` on every rank; if it raises an AaeDistError anywhere, raise it everywhere."""
    # Without this, a rank that cannot read its data would leave the others waiting in a collective.
    result, problem = _attempt(work)
    first = torch.tensor([world.size if problem is None else world.rank])
    if world.size > 1:
        dist.all_reduce(first, dist.ReduceOp.MIN, group=control_group())
    if int(first) < world.size:
        raise unpacked(broadcast_json(problem, world, source=int(first)))
    assert result is not None
    return result[0]


def run_on_rank_zero(world: World, work: Callable[[], T]) -> T:
    """Run `work` on rank 0 alone; its JSON result, or its AaeDistError, is every rank's."""
    result, problem = _attempt(work) if world.is_main else (None, None)
    sent = broadcast_json([problem, result[0] if result else None], world)
    if sent[0] is not None:
        raise unpacked(sent[0])
    value: T = sent[1]
    return value


def _attempt(work: Callable[[], T]) -> tuple[tuple[T] | None, list[str] | None]:
    try:
        return (work(),), None
    except AaeDistError as error:
        return None, packed(error)


def start_sum(counts: Sequence[int], world: World) -> Callable[[], list[int]]:
    """Start to sum `counts` over ranks; the returned function waits for the sums."""
    totals = torch.tensor(counts, dtype=torch.int64)
    if world.size == 1:
        return totals.tolist
    work = dist.all_reduce(totals, group=control_group(), async_op=True)
    assert work is not None

    def wait() -> list[int]:
        work.wait()
        return [int(total) for total in totals]

    return wait


_ODD = 0x5851F42D4C957F2D  # of Knuth's MMIX generator; any odd number with many bits would do


@torch.no_grad()
def fingerprint(network: nn.Module) -> Tensor:
    """Return 64 bits of all parameters, an int64 scalar on their device, without a wait.

    Of each parameter the exclusive or of its 64-bit words, then a sum weighted by odd numbers, so
    any single flipped bit changes the result; two ranks whose networks differ in many numbers
    agree with a chance of 2**-64. 4.6 M numbers take 3 to 10 ms on one core.
    """
    words = torch.stack([_exclusive_or(p.detach()) for p in network.parameters()])
    weights = torch.arange(1, 2 * len(words), 2, device=words.device) * _ODD
    return (words * weights).sum()


def _exclusive_or(parameter: Tensor) -> Tensor:
    flat = parameter.reshape(-1)
    per_word = 8 // flat.element_size()
    even = len(flat) - len(flat) % per_word
    body = flat[:even]
    if body.storage_offset() % per_word:
        body = body.clone()  # a word must begin where memory is aligned
    found = _hash(body.view(torch.int64)) if even else flat.new_zeros((), dtype=torch.int64)
    if even < len(flat):
        tail = flat.new_zeros(per_word)
        tail[: len(flat) - even] = flat[even:]
        found = found ^ _hash(tail.view(torch.int64))
    return found


def _hash(words: Tensor) -> Tensor:
    return torch.hash_tensor(words).view(torch.int64)


class RankComparison:
    """Compares the networks of all ranks asynchronously: `ask` now, read the `answer` later."""

    def __init__(self, networks: Mapping[str, nn.Module], world: World) -> None:
        self._networks, self._world = dict(networks), world
        self._pending: tuple[int, list[Tensor]] | None = None

    def ask(self, step: int) -> None:
        """Exchange fingerprints after `step`; a collective that leaves its result on the device."""
        if self._world.size == 1:
            return
        mine = torch.stack([fingerprint(network) for network in self._networks.values()])
        found = [torch.empty_like(mine) for _ in range(self._world.size)]
        dist.all_gather(found, mine)
        self._pending = (step, found)

    def answer(self) -> str:
        """Return a message about the difference, the same on every rank; empty without one."""
        if self._pending is None:
            return ""
        (step, found), self._pending = self._pending, None
        rows = [row.tolist() for row in found]
        parts = [differing(name, [row[i] for row in rows]) for i, name in enumerate(self._networks)]
        text = "; ".join(filter(None, parts))
        return text and f"after step {step} the ranks no longer hold the same numbers: {text}"


def differing(name: str, values: list[int]) -> str:
    """Return which ranks' `name` differs from that of most ranks; empty when all are equal."""
    if len(set(values)) == 1:
        return ""
    usual = max(values, key=values.count)
    if 2 * values.count(usual) > len(values):
        odd = [str(rank) for rank, value in enumerate(values) if value != usual]
        return f"the {name} of rank {', '.join(odd)} differs from that of all others"
    groups = {v: [str(r) for r, value in enumerate(values) if value == v] for v in values}
    sides = " and ".join(f"rank {', '.join(ranks)}" for ranks in groups.values())
    return f"the {name} differs between {sides} (no majority says which one is right)"
