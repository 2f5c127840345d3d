"""Batches for one rank, prepared ahead by a thread."""

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from aae_dist.data.dataset import Dataset
from aae_dist.data.order import BatchPlan, Order

_POLL_SECONDS = 0.1
_CLOSE_SECONDS = 5.0


@dataclass(frozen=True)
class Batch:
    """A rank's rows of one global batch."""

    images: Tensor
    """uint8 or float32 [B, C, H, W], on the rank's device."""
    labels: Tensor
    """int64 [B], -1 where a sample has none."""
    valid: Tensor
    """bool [B]; False in rows that only fill up the last batch of an epoch."""
    plan: BatchPlan
    """The global batch: which samples, how many count over all ranks, position before and after."""


class BatchLoader:
    """Iterator over a rank's batches from a position on; use it in a `with`, or call `close`.

    A thread reads and decodes up to `prefetch` batches ahead. What it prepared but nobody took does
    not count: the position to store is `plan.next_position` of the last batch that was used.

    Args:
        dataset: Where samples come from.
        order: Which sample comes when.
        rows: This rank's rows of each global batch, from `rank_rows`.
        position: Where to start, 0 or a stored `next_position`.
        num_steps: Batches to give; None for no end.
        prefetch: Batches prepared ahead, at least 1.
        device: Where the images, labels and validity go.

    Raises:
        DataError: From the iterator: a sample could not be read.
    """

    def __init__(
        self,
        dataset: Dataset,
        order: Order,
        rows: slice,
        position: int = 0,
        num_steps: int | None = None,
        *,
        prefetch: int = 2,
        device: torch.device | str = "cpu",
    ) -> None:
        self._dataset, self._order, self._rows = dataset, order, rows
        self._position, self._num_steps = position, num_steps
        self._device = torch.device(device)
        self._ready: queue.Queue[Batch | BaseException | None] = queue.Queue(prefetch)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._produce, name="batches", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Batch]:
        """Return itself."""
        return self

    def __next__(self) -> Batch:
        """Return the next batch."""
        if self._closed.is_set():
            raise StopIteration
        got = self._ready.get()
        if isinstance(got, Batch):
            return self._moved(got)
        self.close()
        if got is None:
            raise StopIteration
        raise got

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()

    def close(self) -> None:
        """Stop the thread; calling again does nothing."""
        self._closed.set()
        # A download under way is not waited for: the thread ends by itself after it.
        self._thread.join(_CLOSE_SECONDS)

    def _moved(self, batch: Batch) -> Batch:
        if self._device.type == "cpu":
            return batch
        # From pinned memory and without waiting: the copy runs while the host goes on.
        images, labels, valid = (
            part.to(self._device, non_blocking=True)
            for part in (batch.images, batch.labels, batch.valid)
        )
        return replace(batch, images=images, labels=labels, valid=valid)

    def _produce(self) -> None:
        last: BaseException | None = None
        try:
            for batch in self._batches():
                if not self._put(batch):
                    return
        except BaseException as error:  # noqa: BLE001 - it is raised again in the consumer
            last = error
        self._put(last)

    def _put(self, item: Batch | BaseException | None) -> bool:
        """Queue `item`; return False when the loader was closed meanwhile."""
        while not self._closed.is_set():
            try:
                self._ready.put(item, timeout=_POLL_SECONDS)
            except queue.Full:
                continue
            return True
        return False

    def _batches(self) -> Iterator[Batch]:
        position, step = self._position, 0
        while self._num_steps is None or step < self._num_steps:
            plan = self._order.batch(position)
            yield self._read(plan)
            position, step = plan.next_position, step + 1

    def _read(self, plan: BatchPlan) -> Batch:
        images, labels = self._dataset.read(plan.indices[self._rows])
        valid = torch.from_numpy(plan.valid[self._rows])
        if self._device.type == "cuda":
            images, labels, valid = images.pin_memory(), labels.pin_memory(), valid.pin_memory()
        return Batch(images, labels, valid, plan)
