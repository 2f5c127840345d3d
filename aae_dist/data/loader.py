"""Batches for one rank, prepared ahead by threads, with the bad samples that all ranks met."""

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Generic, NoReturn, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from aae_dist.data.bad_samples import BadSample, from_json, to_json
from aae_dist.data.dataset import Dataset, Samples
from aae_dist.data.decode.sample import NO_LABEL
from aae_dist.data.order.order import BatchPlan, Mask, SampleOrder
from aae_dist.distributed.exchange import Exchange
from aae_dist.distributed.world import single
from aae_dist.errors import AaeDistError, packed, unpacked

Item = TypeVar("Item")

_POLL_SECONDS = 0.1
_CLOSE_SECONDS = 5.0


@dataclass(frozen=True)
class Batch:
    """A rank's rows of one global batch."""

    images: Tensor
    """uint8 or float32 [B, C, H, W], on the rank's device; zeros in rows that are not valid."""
    labels: Tensor
    """int64 [B], -1 where a sample has none."""
    valid: Tensor
    """bool [B]; False in rows of bad samples and in those that fill up an epoch's last batch."""
    plan: BatchPlan
    """The global batch: which samples, and the position before and after."""
    bad: tuple[BadSample, ...] = ()
    """The bad samples of the global batch, of all ranks, in the order of slots."""
    arrived: "torch.cuda.Event | None" = None
    """Tells when the tensors are on a GPU; streams that use them wait for it."""

    @property
    def num_valid(self) -> int:
        """Samples that count in this global batch, over all ranks; 0 when all are bad."""
        return self.plan.num_valid - len(self.bad)


@dataclass(frozen=True)
class _Taken:
    """A batch, or why this rank has none, while the ranks add up what they met."""

    batch: Batch | None
    problem: BaseException | None
    totals: Callable[[], list[int]]
    """Waits for the sums over ranks: bad samples, and ranks without a batch."""


class BatchLoader:
    """Iterator over a rank's batches from a position on; use it in a `with`, or call `close`.

    A thread reads and decodes up to `prefetch` batches ahead. What it prepared but nobody took does
    not count: the position to store is `plan.next_position` of the last batch that was used.

    With several ranks, `next` is a collective. Each rank tells the others of its bad samples one
    batch ahead, so the sum is there before it is needed.

    Args:
        dataset: Where samples come from.
        order: Which sample comes when.
        rows: This rank's rows of each global batch, from `rank_rows`.
        position: Where to start, 0 or a stored `next_position`.
        num_steps: Batches to give, alike on every rank; None for no end.
        prefetch: Batches prepared ahead, at least 1.
        threads: Threads that decode; 0 to do it all in the caller's, when a batch is wanted.
        device: Where the images, labels and validity go.
        exchange: To the other ranks; by default there are none.

    Raises:
        AaeDistError: From the iterator, on all ranks at the same batch: one of them cannot go on.
    """

    def __init__(
        self,
        dataset: Dataset,
        order: SampleOrder,
        rows: slice,
        position: int = 0,
        num_steps: int | None = None,
        *,
        prefetch: int = 2,
        threads: int = 1,
        device: torch.device | str = "cpu",
        exchange: Exchange | None = None,
    ) -> None:
        self._dataset, self._order, self._rows = dataset, order, rows
        self._position, self._num_steps = position, num_steps
        self._transfer = Transfer(torch.device(device))
        self._exchange = exchange or Exchange(single())
        self._workers = ThreadPoolExecutor(threads, "decode") if threads > 1 else None
        self._ready = BatchPrefetcher(self._batches, prefetch if threads else 0, "batches")
        self._ahead: list[_Taken | None] = []
        self._closed = False

    def __iter__(self) -> Iterator[Batch]:
        """Return itself."""
        return self

    def __next__(self) -> Batch:
        """Return the next batch."""
        if self._closed:
            raise StopIteration
        taken = self._ahead.pop() if self._ahead else self._take()
        if taken is None:
            self.close()
            raise StopIteration
        num_bad, num_failed = taken.totals()
        if num_failed:
            self.close()
            self._raise_on_all_ranks(taken.problem)
        assert taken.batch is not None
        # Alone there is nobody to tell: the next batch is taken when it is wanted.
        if self._exchange.size > 1:
            self._ahead.append(self._take())
        if not num_bad:
            return self._arrived(taken.batch)
        bad = from_json(self._exchange.gather(to_json(taken.batch.bad)))
        return self._arrived(replace(taken.batch, bad=bad))

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close."""
        self.close()

    def close(self) -> None:
        """Stop the threads; calling again does nothing."""
        self._closed = True
        self._dataset.unfollow()
        self._ready.close()
        if self._workers is not None:
            self._workers.shutdown(wait=False, cancel_futures=True)

    def _take(self) -> _Taken | None:
        """Take this rank's next batch and begin to add up over ranks; None after the last one."""
        batch, problem = None, None
        try:
            batch = self._ready.get()
        except Exception as error:  # noqa: BLE001 - told to all ranks, then raised
            problem = error
        if batch is None and problem is None:
            return None
        counts = [len(batch.bad) if batch else 0, int(batch is None)]
        return _Taken(batch, problem, self._exchange.start_sum(counts))

    def _raise_on_all_ranks(self, problem: BaseException | None) -> NoReturn:
        mine = None if problem is None else packed(problem)
        told = [each for each in self._exchange.gather(mine) if each is not None]
        if problem is not None and not isinstance(problem, AaeDistError):
            raise problem
        error = unpacked(told[0])
        if packed(error) != told[0]:  # a crash, not a mistake of the user: to be started again
            raise RuntimeError(f"the loader of a peer failed: {': '.join(told[0])}")
        raise error

    def _arrived(self, batch: Batch) -> Batch:
        self._transfer.receive((batch.images, batch.labels, batch.valid), batch.arrived)
        return batch

    def _batches(self) -> Iterator[Batch]:
        position, step = self._position, 0
        while self._num_steps is None or step < self._num_steps:
            self._dataset.advance(position)
            plan = self._order.batch(position)
            yield self._read(plan)
            position, step = plan.next_position, step + 1

    def _read(self, plan: BatchPlan) -> Batch:
        indices, valid = plan.indices[self._rows], plan.valid[self._rows].copy()
        with self._transfer.sending():
            # Masked slots are not read: they name a sample of another rank's shard, perhaps.
            samples = self._dataset.load(indices[valid], self._workers)
            if not valid.all():
                samples = _spread(samples, valid)
        bad = tuple(
            self._dataset.bad_sample(int(indices[row]), self._rows.start + row, error)
            for row, error in samples.bad.items()
        )
        valid[list(samples.bad)] = False
        here = samples.images, samples.labels, torch.from_numpy(valid)
        (images, labels, mask), arrived = self._transfer.send(here)
        return Batch(images, labels, mask, plan, bad, arrived)


def _spread(samples: Samples, valid: Mask) -> Samples:
    """Return the samples in the rows that are valid, bool [B]; the others are zeros."""
    rows = np.flatnonzero(valid)
    where = torch.from_numpy(rows).to(samples.images.device)
    images = samples.images.new_zeros((len(valid), *samples.images.shape[1:]))
    labels = samples.labels.new_full((len(valid),), NO_LABEL)
    bad = {int(rows[row]): error for row, error in samples.bad.items()}
    return Samples(
        images.index_copy_(0, where, samples.images),
        labels.index_copy_(0, where, samples.labels),
        bad,
    )


class BatchPrefetcher(Generic[Item]):
    """Gives the items of an iterator, of which a thread prepares some ahead.

    Args:
        items: Makes the iterator; its errors are raised by `get`.
        depth: Items prepared ahead; 0 for no thread, each item is made when it is wanted.
        name: The thread's.
    """

    def __init__(self, items: Callable[[], Iterator[Item]], depth: int, name: str) -> None:
        self._items, self._depth = items, depth
        self._closed = threading.Event()
        self._made = iter(()) if depth else items()
        self._ready: queue.Queue[Item | BaseException | None] = queue.Queue(max(1, depth))
        self._thread: threading.Thread | None = None
        if depth:
            self._thread = threading.Thread(target=self._produce, name=name, daemon=True)
            self._thread.start()

    def get(self) -> Item | None:
        """Return the next item, or None when there are no more."""
        if self._closed.is_set():
            return None
        if self._thread is None:
            return next(self._made, None)
        got = self._ready.get()
        if isinstance(got, BaseException):
            raise got
        return got

    def close(self) -> None:
        """Stop the thread; calling again does nothing."""
        self._closed.set()
        if self._thread is not None:
            # A download under way is not waited for: the thread ends by itself after it.
            self._thread.join(_CLOSE_SECONDS)

    def _produce(self) -> None:
        last: BaseException | None = None
        try:
            for item in self._items():
                if not self._put(item):
                    return
        except BaseException as error:  # noqa: BLE001 - it is raised again in the consumer
            last = error
        self._put(last)

    def _put(self, item: Item | BaseException | None) -> bool:
        """Queue `item`; return False when this was closed meanwhile."""
        while not self._closed.is_set():
            try:
                self._ready.put(item, timeout=_POLL_SECONDS)
            except queue.Full:
                continue
            return True
        return False


class Transfer:
    """Sends tensors to one device from the thread that prepares batches.

    On CUDA the copies run in a side stream while the last batch is trained on; pinned memory is
    taken from torch's pool, which gives a block out again when its copy is done, so that as many
    blocks are in use as batches are prepared ahead. On a CPU nothing is done.

    Args:
        device: Where tensors go.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def sending(self) -> contextlib.AbstractContextManager[object]:
        """Return the context in which the sender works on the device."""
        return torch.cuda.stream(self._stream) if self._stream else contextlib.nullcontext()

    def send(self, parts: Sequence[Tensor]) -> tuple[list[Tensor], "torch.cuda.Event | None"]:
        """Begin to copy tensors; return them, and what tells when they are there."""
        if self._stream is None:
            return list(parts), None
        with self.sending():
            pinned = [part.pin_memory() if part.device.type == "cpu" else part for part in parts]
            sent = [part.to(self._device, non_blocking=True) for part in pinned]
            return sent, self._stream.record_event()

    def receive(self, parts: Sequence[Tensor], arrived: "torch.cuda.Event | None") -> None:
        """Let the caller's stream wait for the tensors; the host does not wait."""
        if arrived is None:
            return
        stream = torch.cuda.current_stream(self._device)
        stream.wait_event(arrived)
        for part in parts:
            # Their memory belongs to the side stream: it may not take it back too early.
            part.record_stream(stream)
