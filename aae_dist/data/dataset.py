"""Images and labels of a data set by sample number, with an optional memory of decoded images."""

import contextlib
import logging
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch

from aae_dist.config.sections.run import Data
from aae_dist.data.bad_samples import UNUSED_TEXTS, BadSample, Unused, UnusedKind, printable
from aae_dist.data.cache.decoded import DeviceStore, SharedStore, content_id
from aae_dist.data.cache.shard_cache import cache_for, copy_bytes
from aae_dist.data.decode.images import Bad, Shape, map_collecting_errors
from aae_dist.data.decode.sample import NO_LABEL, Sample, SampleDecoder, is_array
from aae_dist.data.format.manifest import Manifest
from aae_dist.data.format.reader import MAX_OPEN_UNPLANNED, OpenShards
from aae_dist.data.index.build import open_manifest
from aae_dist.data.order import Indices
from aae_dist.errors import ConfigError, DataError, SampleError, ShardError
from aae_dist.utils.arrays import stratified
from aae_dist.utils.text import Show, progress

_log = logging.getLogger(__name__)
SLOW_SECONDS = 1.0  # decoding so long is worth a name when a rank makes no progress
_AUTO_MEMORY_BYTES = 2 << 30
_NUM_PROBED = 16  # samples probed at the start, until one tells the shape of all
_ANY_SHAPE = (1, 1, 1)
_ROWS_PER_TASK = 32  # rows per task of a thread: 1 to 2 ms of work, far above its hand-over


@dataclass(frozen=True)
class Samples:
    """What was read for a list of sample numbers."""

    images: torch.Tensor  # uint8 or float32 [n, C, H, W]; zeros where the sample is bad
    labels: torch.Tensor  # int64 [n], -1 where a sample has none or is bad
    bad: Mapping[int, ShardError | SampleError]
    """Row -> why its sample, or its whole shard, cannot be used; ascending."""


class Dataset:
    """A data set, open for reading; sample numbers follow the manifest.

    Safe to read from several threads.

    Args:
        image_shape: Wanted (C, H, W), for example that of the training images; None takes what
            `settings` says and else the first image's.
        device: Where data.decoded=device keeps decoded images.
        try_all: Probe every sample, if need be, for the shape of all images, and accept that none
            is readable.

    Raises:
        DataError: None of the probed samples can be read.
    """

    def __init__(
        self,
        manifest: Manifest,
        settings: Data,
        image_shape: Shape | None = None,
        device: torch.device | str = "cpu",
        *,
        try_all: bool = False,
    ) -> None:
        self.manifest = manifest
        self._settings = settings
        self._ends = np.cumsum(manifest.counts)
        self.cache = cache_for(manifest, settings)
        """Copies of remote shards; None when all shards are local."""
        self.shards = OpenShards(manifest, self.cache)
        self._decoder = SampleDecoder(settings)
        # By thread: when it began to decode some samples, and these.
        self._decoding: dict[int, tuple[float, list[Sample]]] = {}
        self.unused = Unused()
        """What of the samples decoded so far is not used as given."""
        self.image_shape, self.dtype = self._layout(image_shape, try_all)
        """Channels, height, width of every image, (C, L) of signals, (C, D, H, W) of volumes, (1,
        1, D) of vectors; uint8 or float32."""
        self.shards.release_unplanned()
        self._memory = self._new_memory(torch.device(device))

    label_rule: tuple[int, bool] | None = None
    """Number of labels that training reads, and whether every sample needs one; None: it reads
    none. `with_label_holes` makes the others bad."""

    def with_label_holes(self, samples: "Samples") -> "Samples":
        """Return loaded samples of which those without a label that training needs are bad."""
        if self.label_rule is None:
            return samples
        num, needed = self.label_rule
        bad = dict(samples.bad)
        for row, label in enumerate(samples.labels.tolist()):
            is_absent = label == NO_LABEL
            if row in bad or (is_absent and not needed) or 0 <= label < num:
                continue
            got = "no label" if is_absent else f"label {label}"
            problem = f"{got}; this run reads labels from 0 to {num - 1}"
            bad[row] = SampleError(problem, reason="label")
        return Samples(samples.images, samples.labels, dict(sorted(bad.items())))

    def __len__(self) -> int:
        return self.manifest.num_samples

    def load(self, indices: Indices | Sequence[int], workers: Executor | None = None) -> Samples:
        """Return images and labels, and which samples are bad.

        Args:
            indices: Sample numbers, int64 [n]; repeats are allowed.
            workers: Threads that share the decoding; by default this thread does all of it.

        Raises:
            DataError: The cache has no room for copies of remote shards.
        """
        wanted = np.asarray(indices, np.int64)
        if self._memory is None:
            return self.decode_rows(wanted, workers)
        # Decode what the memory lacks. Repeats are decoded twice: np.unique would take 40 ms at its
        # first call, for imports.
        missing = wanted[~self._memory.filled[wanted]]
        bad: dict[int, ShardError | SampleError] = {}
        if missing.size:
            is_first_pass = missing.size == wanted.size
            new = self.decode_rows(missing, workers)
            bad = {int(missing[row]): error for row, error in new.bad.items()}
            # Store the good rows. To pick them costs half as much as to decode them.
            images, labels = new.images, new.labels
            if bad:
                good = np.delete(np.arange(missing.size), list(new.bad))
                missing, images, labels = missing[good], images[good], labels[good]
            self._memory.store(missing, images, labels)
            # A first pass returns what was decoded: taking it from the memory is one copy more.
            if is_first_pass and isinstance(self._memory, SharedStore):
                return new
        # Take all rows from the memory and mask the bad ones.
        images, labels = self._memory.take(wanted)
        if not bad:
            return Samples(images, labels, {})
        rows = {row: bad[number] for row, number in enumerate(wanted.tolist()) if number in bad}
        images[list(rows)], labels[list(rows)] = 0, NO_LABEL
        return Samples(images, labels, rows)

    def decode_rows(self, indices: Indices, workers: Executor | None = None) -> Samples:
        """Read and decode samples, whether or not they are in memory; arguments as for `load`.

        `indices` are sample numbers, int64 (n); `workers` share the work.
        """
        images = torch.empty((len(indices), *self.image_shape), dtype=self.dtype)
        labels = np.full(len(indices), NO_LABEL, np.int64)
        rows, places = images.numpy(), list(self.places(indices))
        bad: Bad = {}

        def note(n: int, kind: UnusedKind, detail: str) -> None:
            if kind != "colour" or self._settings.channels is None:  # else it is asked for
                self.unused.add(kind, int(indices[n]), detail)

        def decode(first: int) -> None:
            part = range(first, min(first + _ROWS_PER_TASK, len(places)))
            # Open the shards: a few hold all rows of a part.
            get = cache(self.shards.get)
            opened = map_collecting_errors(lambda n: get(places[n][0]), part, bad)
            # Decode the samples into the rows.
            samples = {n: (reader, places[n][1]) for n, reader in opened.items()}
            thread = threading.get_ident()

            def started(group: Sequence[int]) -> None:
                self._decoding[thread] = time.monotonic(), [samples[n] for n in group]

            try:
                for n, label in self._decoder.decode(samples, rows, bad, note, started).items():
                    labels[n] = label
            finally:
                self._decoding.pop(thread, None)

        parts = range(0, len(places), _ROWS_PER_TASK)
        for _ in workers.map(decode, parts) if workers else map(decode, parts):
            pass
        images[list(bad)] = 0
        self.shards.release_unplanned()
        return Samples(images, torch.from_numpy(labels), dict(sorted(bad.items())))

    def read(self, indices: Indices | Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return images, uint8 or float32 (n, C, H, W), and labels, int64 (n), -1 for none.

        Args:
            indices: n sample numbers; repeats are allowed.

        Raises:
            DataError: A sample is bad; the first of them is named.
        """
        wanted = np.asarray(indices, np.int64)
        samples = self.load(wanted)
        for row, error in samples.bad.items():
            raise self._located(int(wanted[row]), error)
        return samples.images, samples.labels

    def keys(self, indices: Indices | Sequence[int]) -> list[str]:
        """Return the WebDataset keys of samples; `indices` are n sample numbers."""
        places = self.places(np.asarray(indices, np.int64))
        return [self.shards.get(shard).index.keys[number] for shard, number in places]

    def places(self, indices: Indices) -> Iterator[tuple[int, int]]:
        """Yield for each of n sample numbers, `indices`, the shard's number and that inside it."""
        shards = np.searchsorted(self._ends, indices, side="right")
        inside = indices - (self._ends[shards] - self.manifest.counts[shards])
        return zip(shards.tolist(), inside.tolist(), strict=True)

    def bad_sample(self, number: int, slot: int, error: ShardError | SampleError) -> BadSample:
        """Return the record of sample `number`, met at `slot` of a batch, for its `error`."""
        [(shard, inside)] = self.places(np.array([number]))
        entry, whole = self.manifest.shards[shard], isinstance(error, ShardError)
        return BadSample(
            slot=slot,
            shard=entry.name,
            sample=inside,
            key=None if whole else printable(self.keys([number])[0]),
            reason=f"shard {error.reason}" if whole else error.reason,
            detail=printable(str(error).rstrip(".")),
            shard_samples=entry.samples if whole else 0,
        )

    def unused_lines(self, counts: Mapping[str, int], total: int) -> list[str]:
        """Return a line per kind of `counts`, of `total` samples, and note that it was reported.

        Of labels that cannot be read the first one is named, if this process met one.
        """
        lines = []
        for kind, count in counts.items():
            if kind in self.unused.reported:
                continue
            self.unused.reported.add(kind)
            number, detail = self.unused.first.get(kind, (-1, ""))
            example = ""
            if detail:
                with contextlib.suppress(DataError):
                    example = f" (first: {printable(self.keys([number])[0])}: {printable(detail)})"
            lines.append(f"{count} of {total} {UNUSED_TEXTS[kind]}{example}")
        return lines

    def unused_members(self) -> list[str]:
        """Return a line about members of shards that no sample uses, unless it was reported."""
        seen = self.shards.unused
        kinds: Counter[str] = Counter()
        for number, shard in enumerate(self.manifest.shards):
            if number in seen:
                kinds.update(seen[number].counts)
            elif shard.unused:
                kinds["members that aae-dist data verify names"] += shard.unused
        if not kinds or "members" in self.unused.reported:
            return []
        self.unused.reported.add("members")
        first = next((name for each in seen.values() for name in each.first.values()), "")
        example = f" (first: {printable(first)})" if first else ""
        parts = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        return [f"{kinds.total()} members of shards are in no sample: {parts}{example}"]

    def slow_sample(self) -> str:
        """Return which sample a thread decodes for more than a second, or an empty text.

        For the watchdog: takes no lock, which a thread that downloads may hold.
        """
        now, found = time.monotonic(), list(self._decoding.values())
        since, samples = min(found, default=(now, []), key=lambda each: each[0])
        if now - since < SLOW_SECONDS or not samples:
            return ""
        reader, number = samples[0]
        more = f" (or the {len(samples) - 1} smaller ones read with it)" if samples[1:] else ""
        key = printable(reader.index.keys[number])
        return f"decoding {key} of {reader.shard.name} for {now - since:.0f} s{more}"

    def log_unused(self) -> None:
        """Warn of what of the samples read so far is not used as given."""
        for line in [*self.unused_lines(self.unused.counts, len(self)), *self.unused_members()]:
            _log.warning("warning: %s", line)

    @property
    def copy_bytes(self) -> int:
        """Bytes of the cache that reading takes without a prefetcher; 0 without a cache."""
        sizes = [shard.bytes for shard in self.manifest.shards] if self.cache else []
        return MAX_OPEN_UNPLANNED * max(map(copy_bytes, sizes), default=0)

    def _located(self, sample: int, error: DataError) -> DataError:
        if isinstance(error, ShardError):
            return error
        [(shard, _)] = self.places(np.array([sample]))
        # A key comes from the archive: repr keeps control characters out of terminals and logs.
        [key] = self.keys([sample])
        return DataError(f"{self.manifest.shards[shard].url}, sample {key!r:.200}: {error}.")

    def _layout(self, image_shape: Shape | None, try_all: bool) -> tuple[Shape, torch.dtype]:
        settings = self._settings
        if image_shape is not None and not any(map(is_array, settings.image_keys)):
            return image_shape, torch.uint8
        shape, dtype = self._probed_layout(try_all)
        if dtype != torch.uint8 and settings.channels not in (None, shape[0]):
            raise ConfigError(
                f"data.channels={settings.channels}: the arrays have {shape[0]} channels, of shape "
                f"{shape}; leave it out, or say their data.layout"
            )
        if image_shape is not None or dtype != torch.uint8:
            return image_shape or shape, dtype
        channels, *sides = shape
        size = settings.image_size
        return (settings.channels or channels, *(size or side for side in sides)), dtype

    def _probed_layout(self, try_all: bool) -> tuple[Shape, torch.dtype]:
        """Return shape and dtype of the first readable sample; else raise the first one's error."""
        first: DataError | None = None
        probed = range(len(self)) if try_all else stratified(_NUM_PROBED, len(self)).tolist()
        for number in probed:
            [(shard, inside)] = self.places(np.array([number]))
            try:
                return self._decoder.layout(self.shards.get(shard), inside)
            except (ShardError, SampleError) as error:
                first = first or self._located(number, error)
        assert first is not None
        if try_all:
            return _ANY_SHAPE, torch.uint8
        raise first

    def _new_memory(self, device: torch.device) -> SharedStore | DeviceStore | None:
        num_bytes = len(self) * int(np.prod(self.image_shape)) * self.dtype.itemsize
        kind = self._settings.decoded
        if kind == "none" or (kind == "auto" and num_bytes > _AUTO_MEMORY_BYTES):
            return None
        shared = SharedStore(
            content_id(self.manifest, self._settings), len(self), self.image_shape, self.dtype
        )
        # On a CPU the device's memory is the host's.
        return DeviceStore(shared, device) if kind == "device" and device.type != "cpu" else shared


def read_arrays(
    urls: str | Sequence[str], **settings: Any
) -> tuple[np.typing.NDArray[Any], np.typing.NDArray[Any]]:
    """Return all samples of shards in memory, as `aae_dist.train` takes them.

    Args:
        urls: a pattern, folder or manifest, or several; local, s3://, https:// or builtin://.
        settings: keys of the `data` section, such as `image_size` or `image_keys`.

    Returns:
        uint8 or float32 (N, C, H, W), and labels, int64 (N), -1 for none.

    Raises:
        DataError: nothing is found, or a sample is bad.
    """
    dataset = open_dataset(urls, Data(train="shards", **settings))
    images, labels = dataset.read(range(len(dataset)))
    return images.numpy(), labels.numpy()


def open_dataset(
    urls: str | Sequence[str],
    settings: Data,
    image_shape: Shape | None = None,
    device: torch.device | str = "cpu",
    show: Show = progress,
) -> Dataset:
    """Open the shards that `urls` name.

    Args:
        urls: `settings.train` or `settings.validation`; memory:// stands for samples in memory.
        settings: The run's `data` section.
        image_shape: (C, H, W) that the images must have; by default as `settings` says, or as the
            first image is. Give the training images' shape for the validation images.
        device: Where data.decoded=device keeps decoded images.
        show: Shows how many shards are counted, if no manifest lists them.

    Raises:
        DataError: Nothing is found or it cannot be read; one line says what and what to do.
    """
    from aae_dist.data import arrays

    if (held := arrays.find(urls)) is not None:
        return arrays.ArrayDataset(held, settings, image_shape)
    return Dataset(open_manifest(urls, settings.cache, show), settings, image_shape, device)
