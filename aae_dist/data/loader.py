"""Batches for one rank, prepared ahead by threads, with the bad samples that all ranks met.

Augmentation changes training images at random: flip, crop, colour; a whole batch at once, on its
device. The change of a sample is a function of (seed, epoch, sample number) alone: the same for any
number of ranks, threads and batch sizes, and after a resume. Shapes: B rows, C H W image.
"""

import contextlib
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Generic, NoReturn, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from aae_dist.config.sections.run import Augment
from aae_dist.data.bad_samples import BadSample, from_json, to_json
from aae_dist.data.cache.prefetch import ShardPrefetcher
from aae_dist.data.dataset import Dataset, Samples
from aae_dist.data.decode.sample import NO_LABEL
from aae_dist.data.order import BatchPlan, Indices, Mask, SampleOrder, mixed
from aae_dist.distributed.world import World, gather_json, single, start_sum
from aae_dist.errors import AaeDistError, packed, unpacked
from aae_dist.utils.tensors import derived_seed, to_device

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
    """Recorded when the tensors are on a GPU; streams that use them wait for it."""

    @property
    def num_valid(self) -> int:
        """Samples that count in this global batch, over all ranks; 0 when all are bad."""
        return self.plan.num_valid - len(self.bad)


@dataclass(frozen=True)
class _Pending:
    """A batch, or why this rank has none, while the ranks sum their counts."""

    batch: Batch | None
    problem: BaseException | None
    totals: Callable[[], list[int]]  # waits for the sums: bad samples, and ranks without a batch


class BatchLoader:
    """Iterator over a rank's batches from a position on; use it in a `with`, or call `close`.

    A thread reads and decodes up to `prefetch` batches ahead. Prepared batches that were not taken
    do not count: the position to store is `plan.next_position` of the last batch that was used.

    With several ranks, `next` is a collective. Each rank reports its bad samples one batch ahead,
    so the sum is there before it is needed.

    Args:
        dataset: The data set, which stays open.
        order: Which samples each global batch has.
        rows: This rank's rows of each global batch, from `rank_rows`.
        position: Where to start, 0 or a stored `next_position`.
        num_steps: Number of batches, the same on every rank; None for no end.
        prefetch: Batches prepared ahead, at least 1.
        threads: Decoding threads; 0 to decode in the caller's thread when a batch is wanted.
        device: Where the images, labels and validity go.
        world: This process among the ranks; by default it is the only one.
        shards: Downloads remote shards ahead of this loader, which advances and closes it.

    Raises:
        AaeDistError: From the iterator, on all ranks at the same batch: one of them cannot
            continue.
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
        world: World | None = None,
        shards: ShardPrefetcher | None = None,
    ) -> None:
        self._dataset, self._order, self._rows = dataset, order, rows
        self._position, self._num_steps = position, num_steps
        self._transfer = Transfer(torch.device(device))
        self._world = world or single()
        self._shards = shards
        self._workers = ThreadPoolExecutor(threads, "decode") if threads > 1 else None
        self._ready = BatchPrefetcher(self._batches, prefetch if threads else 0, "batches")
        self._ahead: list[_Pending | None] = []
        self._closed = False

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self._closed:
            raise StopIteration
        # Take this rank's batch; its counts have been travelling since the last one.
        pending = self._ahead.pop() if self._ahead else self._take()
        if pending is None:
            self.close()
            raise StopIteration
        # Fail on all ranks if one of them has no batch.
        num_bad, num_failed = pending.totals()
        if num_failed:
            self.close()
            self._raise_on_all_ranks(pending.problem)
        assert pending.batch is not None
        # Send the counts of the next batch. A single rank takes it when it is wanted.
        if self._world.size > 1:
            self._ahead.append(self._take())
        if not num_bad:
            return self._received(pending.batch)
        # Gather the bad samples of all ranks.
        bad = from_json(gather_json(to_json(pending.batch.bad), self._world))
        return self._received(replace(pending.batch, bad=bad))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the threads; a second call has no effect."""
        self._closed = True
        if self._shards is not None:
            self._shards.close()
        self._ready.close()
        if self._workers is not None:
            self._workers.shutdown(wait=False, cancel_futures=True)

    def _take(self) -> _Pending | None:
        """Take this rank's next batch and start to sum over ranks; None after the last one."""
        batch, problem = None, None
        try:
            batch = self._ready.get()
        except Exception as error:  # noqa: BLE001 - sent to all ranks, then raised
            problem = error
        if batch is None and problem is None:
            return None
        counts = [len(batch.bad) if batch else 0, int(batch is None)]
        return _Pending(batch, problem, start_sum(counts, self._world))

    def _raise_on_all_ranks(self, problem: BaseException | None) -> NoReturn:
        mine = None if problem is None else packed(problem)
        errors = [each for each in gather_json(mine, self._world) if each is not None]
        if problem is not None and not isinstance(problem, AaeDistError):
            raise problem
        error = unpacked(errors[0])
        if packed(error) != errors[0]:  # a crash, not a mistake of the user: to be restarted
            raise RuntimeError(f"the loader of a peer failed: {': '.join(errors[0])}")
        raise error

    def _received(self, batch: Batch) -> Batch:
        self._transfer.receive((batch.images, batch.labels, batch.valid), batch.arrived)
        return batch

    def _batches(self) -> Iterator[Batch]:
        position, step = self._position, 0
        while self._num_steps is None or step < self._num_steps:
            if self._shards is not None:
                self._shards.advance(position)
            plan = self._order.batch(position)
            yield self.read_batch(plan)
            position, step = plan.next_position, step + 1

    def read_batch(self, plan: BatchPlan) -> Batch:
        """Return this rank's rows of a global batch, with the bad samples of this rank alone."""
        # Read the samples. Masked slots are not read: they may name a sample of another rank's
        # shard.
        indices, valid = plan.indices[self._rows], plan.valid[self._rows].copy()
        with self._transfer.sending():
            samples = self._dataset.load(indices[valid], self._workers)
            samples = self._dataset.with_label_holes(samples)
            if not valid.all():
                samples = _scatter(samples, valid)
        # Mask the bad ones.
        bad = tuple(
            self._dataset.bad_sample(int(indices[row]), self._rows.start + row, error)
            for row, error in samples.bad.items()
        )
        valid[list(samples.bad)] = False
        # Start the copy to the device.
        parts = samples.images, samples.labels, torch.from_numpy(valid)
        (images, labels, mask), arrived = self._transfer.send(parts)
        return Batch(images, labels, mask, plan, bad, arrived)


def _scatter(samples: Samples, valid: Mask) -> Samples:
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
    """Items of an iterator; a thread prepares `depth` ahead. 0: each is made when it is wanted."""

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
        """Stop the thread; a second call has no effect."""
        self._closed.set()
        if self._thread is not None:
            # Not waited for longer: after a download in progress the thread ends by itself.
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
        """Queue `item`; return False when the prefetcher was closed meanwhile."""
        while not self._closed.is_set():
            try:
                self._ready.put(item, timeout=_POLL_SECONDS)
            except queue.Full:
                continue
            return True
        return False


class Transfer:
    """Copies tensors to one device from the thread that prepares batches.

    On CUDA the copies run in a side stream while the last batch is trained on. Pinned memory comes
    from torch's pool, which reuses a block when its copy is done, so that as many blocks are in use
    as batches are prepared ahead. On a CPU nothing is done.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def sending(self) -> contextlib.AbstractContextManager[object]:
        """Return the context in which the sender works on the device."""
        return torch.cuda.stream(self._stream) if self._stream else contextlib.nullcontext()

    def send(self, parts: Sequence[Tensor]) -> tuple[list[Tensor], "torch.cuda.Event | None"]:
        """Start to copy tensors; return them, and the event that is recorded on arrival."""
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
            # The memory belongs to the side stream, which must not reuse it too early.
            part.record_stream(stream)


NUM_DRAWS = 6
_FLIP, _DOWN, _RIGHT, _BRIGHTNESS, _CONTRAST, _SATURATION = range(NUM_DRAWS)
_GAMMA = np.uint64(0x9E3779B97F4A7C15)  # SplitMix64's increment: 2**64 over the golden ratio
_LUMA = (0.299, 0.587, 0.114)  # weights of red, green and blue in grey (ITU-R BT.601)


def uniforms(seed: int, epoch: int, indices: Indices) -> np.typing.NDArray[np.float32]:
    """Return numbers in [0, 1), float32 (B, NUM_DRAWS), keyed by seed, epoch and sample number.

    The counter-based generator SplitMix64 (Steele et al. 2014, doi 10.1145/2660193.2660195):
    without state, so the numbers of any sample can be computed by themselves.
    """
    key = np.uint64(derived_seed(seed, "augmentation", epoch))
    numbers = indices.astype(np.int64)[:, None] * NUM_DRAWS + np.arange(NUM_DRAWS)
    counters = numbers.astype(np.uint64)
    # Mixed twice: after one mix the counters of neighbouring keys would overlap.
    bits = mixed((mixed(counters + _GAMMA) ^ key) + _GAMMA)
    return ((bits >> np.uint64(40)).astype(np.float64) / 2**24).astype(np.float32)


@dataclass(frozen=True)
class Augmenter:
    """Changes batches as the settings say."""

    settings: Augment
    seed: int
    rows: slice  # this rank's rows of each global batch

    def batches(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the batches with their images changed."""
        for batch in batches:
            draws = uniforms(self.seed, batch.plan.epoch, batch.plan.indices[self.rows])
            u_BK = to_device(torch.from_numpy(draws), batch.images.device)
            yield replace(batch, images=self.images(batch.images, u_BK))

    def images(self, images_BCHW: Tensor, u_BK: Tensor) -> Tensor:
        """Return changed images of the same shape and type, uint8 or float in [0, 1]."""
        images_BCHW = self._placed(images_BCHW, u_BK)
        wanted = self.settings
        if not (wanted.brightness or wanted.contrast or wanted.saturation):
            return images_BCHW
        is_uint8 = images_BCHW.dtype == torch.uint8
        x_BCHW = self._coloured(images_BCHW.float() / 255 if is_uint8 else images_BCHW, u_BK)
        return (x_BCHW * 255).round().to(torch.uint8) if is_uint8 else x_BCHW

    def _placed(self, images_BCHW: Tensor, u_BK: Tensor) -> Tensor:
        """Shift by up to `crop` pixels, the border repeated, and mirror half of the images."""
        batch, channels, height, width = images_BCHW.shape
        crop, device = self.settings.crop, images_BCHW.device
        if not (crop or self.settings.flip):
            return images_BCHW
        # A slice: a list of columns would be copied to the device, and synchronize with it.
        shift_B2 = (u_BK[:, _DOWN : _RIGHT + 1] * (2 * crop + 1)).long() - crop
        rows_BH = torch.arange(height, device=device) + shift_B2[:, :1]
        columns_BW = torch.arange(width, device=device) + shift_B2[:, 1:]
        if self.settings.flip:
            mirrored = u_BK[:, _FLIP, None] < 0.5
            columns_BW = torch.where(mirrored, columns_BW.flip(1), columns_BW)
        numbers = torch.arange(batch, device=device)[:, None, None, None]
        return images_BCHW[
            numbers,
            torch.arange(channels, device=device)[:, None, None],
            rows_BH.clamp(0, height - 1)[:, None, :, None],
            columns_BW.clamp(0, width - 1)[:, None, None, :],
        ]

    def _coloured(self, x_BCHW: Tensor, u_BK: Tensor) -> Tensor:
        """Scale brightness, contrast around the image's mean, and saturation around grey."""

        def factor(draw: int, strength: float) -> Tensor:
            return 1 + strength * (2 * u_BK[:, draw, None, None, None] - 1)

        x_BCHW = (x_BCHW * factor(_BRIGHTNESS, self.settings.brightness)).clamp(0, 1)
        mean = x_BCHW.mean((1, 2, 3), keepdim=True)
        x_BCHW = (mean + (x_BCHW - mean) * factor(_CONTRAST, self.settings.contrast)).clamp(0, 1)
        if x_BCHW.shape[1] != 3:
            return x_BCHW
        luma = to_device(torch.tensor(_LUMA), x_BCHW.device, x_BCHW.dtype)[:, None, None]
        grey = (x_BCHW * luma).sum(1, keepdim=True)
        saturation = factor(_SATURATION, self.settings.saturation)
        return (grey + (x_BCHW - grey) * saturation).clamp(0, 1)
