"""Memory of decoded samples: shared by the ranks of a node, or on a device as well."""

import contextlib
import fcntl
import json
import logging
import mmap
import os
import threading
import weakref
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from aae_dist.config.sections.run import Data
from aae_dist.data.cache.directory import checked_folder
from aae_dist.data.decode.images import Resize, Shape
from aae_dist.data.format.manifest import Manifest
from aae_dist.data.order import Indices
from aae_dist.errors import DataError
from aae_dist.storage import is_remote

_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - the folder inside is ours alone
_log = logging.getLogger(__name__)


class SharedStore:
    """Memory shared by all processes of this node that read the same data (equal `content_id`).

    It is a file in /dev/shm that each of them maps and holds a shared lock on. The last one removes
    it; files of killed processes are removed by the next process. Where shared memory is too small
    (a container has 64 MiB by default) every process has its own, with a warning.
    """

    def __init__(
        self,
        content: str,
        num_samples: int,
        shape: Shape,
        dtype: torch.dtype,
        folder: Path = _SHARED_MEMORY,
    ) -> None:
        item = num_samples * int(np.prod(shape)) * dtype.itemsize
        # Labels first, so that every part is aligned to its numbers' size.
        sizes = (8 * num_samples, item, num_samples)
        name = sha256(f"{content} {num_samples} {shape} {dtype}".encode()).hexdigest()[:40]
        memory, descriptor, path = _shared_or_private(folder, name, max(1, sum(sizes)))
        self.is_shared = descriptor is not None
        if descriptor is not None:
            weakref.finalize(self, _unlock, descriptor, path)
        ends = np.cumsum(sizes)
        view = memoryview(memory)
        self._labels: NDArray[np.int64] = np.frombuffer(view[: ends[0]], np.int64)
        number_type = torch.empty(0, dtype=dtype).numpy().dtype
        images: NDArray[Any] = np.frombuffer(view[ends[0] : ends[1]], number_type)
        self._images = images.reshape(num_samples, *shape)
        self._filled: NDArray[np.bool_] = np.frombuffer(view[ends[1] : ends[2]], np.bool_)

    @property
    def filled(self) -> NDArray[np.bool_]:
        """Which samples are stored, bool [samples]."""
        return self._filled

    def store(self, indices: Indices, images: torch.Tensor, labels: torch.Tensor) -> None:
        """Store samples: images [n, C, H, W] and labels int64 [n], in host memory."""
        # Two processes that store the same sample write the same bytes.
        self._images[indices] = images.numpy()
        self._labels[indices] = labels.numpy()
        _fence()
        self._filled[indices] = True

    def take(self, indices: Indices) -> tuple[torch.Tensor, torch.Tensor]:
        """Return images [n, C, H, W] and labels int64 [n] of stored samples."""
        _fence()
        # numpy copies rows in this thread alone; torch would start a team of threads for it.
        images = torch.from_numpy(self._images.take(indices, axis=0))
        return images, torch.from_numpy(self._labels.take(indices))


class DeviceStore:
    """Samples on a device, gathered there; those it lacks come from the node's shared memory."""

    def __init__(self, shared: SharedStore, device: torch.device) -> None:
        self._shared, self._device = shared, device
        images, labels = shared._images, shared._labels
        dtype = torch.from_numpy(images[:0]).dtype
        try:
            self._images = torch.empty(images.shape, dtype=dtype, device=device)
            self._labels = torch.empty(labels.shape, dtype=torch.int64, device=device)
        except torch.OutOfMemoryError:
            raise DataError(
                f"data.decoded=device: the {images.nbytes} bytes of decoded samples do not fit on "
                f"{device}. Use data.decoded=memory."
            ) from None
        self._here = np.zeros(len(labels), np.bool_)
        self._lock = threading.Lock()
        self._copied: torch.cuda.Event | None = None

    @property
    def filled(self) -> NDArray[np.bool_]:
        return self._shared.filled

    def store(self, indices: Indices, images: torch.Tensor, labels: torch.Tensor) -> None:
        self._shared.store(indices, images, labels)

    def take(self, indices: Indices) -> tuple[torch.Tensor, torch.Tensor]:
        # A closed loader may still copy, in its own thread and stream.
        with self._lock:
            stream = self._stream()
            if stream is not None and self._copied is not None:
                stream.wait_event(self._copied)
            self._copy_missing(indices)
            if stream is not None:
                self._copied = stream.record_event()
            where = torch.from_numpy(indices).to(self._device)
            return self._images.index_select(0, where), self._labels.index_select(0, where)

    def _stream(self) -> "torch.cuda.Stream | None":
        return torch.cuda.current_stream(self._device) if self._device.type == "cuda" else None

    def _copy_missing(self, indices: Indices) -> None:
        missing = np.unique(indices[~self._here[indices]])
        # Samples that are not decoded yet are zeros there, and may be decodable later.
        missing = missing[self._shared.filled[missing]]
        if missing.size:
            where = torch.from_numpy(missing).to(self._device)
            images, labels = self._shared.take(missing)
            self._images.index_copy_(0, where, images.to(self._device))
            self._labels.index_copy_(0, where, labels.to(self._device))
            self._here[missing] = True


_fence_lock = threading.Lock()


def _fence() -> None:
    """Memory barrier: order reads and writes before it against those after it.

    x86 keeps that order by itself. On ARM another rank could see the mark of a sample before its
    image. A lock that is released and acquired again is a barrier, at 0.1 us per batch. Both the
    writer and the reader of the mark need it.
    """
    for _ in range(2):
        with _fence_lock:
            pass


def content_id(manifest: Manifest, settings: Data) -> str:
    """Return the digest of all facts that decide the decoded samples.

    For local shards it includes inodes and times: names do not change when a file is written
    again.
    """
    resize = Resize.from_settings(settings)
    facts: list[object] = [settings.image_keys, settings.label_key, resize.how, resize.crop_size]
    facts.append(settings.layout)
    for shard in manifest.shards:
        facts.append([shard.url, shard.samples, shard.bytes, shard.etag])
        if not is_remote(shard.folder):
            with contextlib.suppress(OSError):
                found = os.stat(Path(shard.folder, shard.name))
                facts.append([found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns])
    return sha256(json.dumps(facts).encode()).hexdigest()


def _shared_or_private(folder: Path, name: str, size: int) -> tuple[mmap.mmap, int | None, Path]:
    """Return memory, the descriptor that locks it (None: not shared), and its file."""
    path = folder / f"aae_dist-{os.getuid()}" / name
    try:
        for old in checked_folder(folder, path.parent.name, advice="Remove it.").iterdir():
            _remove_if_unused(old)
        descriptor = _locked_file(path, size)
        # Opened again: a mapping keeps its descriptor, and the lock must end before the mapping.
        with open(f"/proc/self/fd/{descriptor}", "r+b") as file:
            return mmap.mmap(file.fileno(), size), descriptor, path
    except (OSError, OverflowError, DataError) as error:
        _log.warning(
            "%d bytes of decoded samples are not shared between the ranks of this node, each "
            "keeps its own (%s)",
            size,
            error,
        )
        return _private(size), None, path


def _private(size: int) -> mmap.mmap:
    try:
        return mmap.mmap(-1, size)
    except (OSError, OverflowError) as error:
        raise DataError(
            f"data.decoded=memory: the {size} bytes of decoded samples do not fit into this "
            f"machine's memory ({error}). Use data.decoded=none."
        ) from None


def _locked_file(path: Path, size: int) -> int:
    """Return the file open, with a shared lock and `size` bytes; made if it is not there."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            if os.fstat(descriptor).st_nlink:
                # Allocated at once: a page without memory kills the process when it is written.
                os.posix_fallocate(descriptor, 0, size)
                return descriptor
        except (OSError, OverflowError):
            os.close(descriptor)
            _remove_if_unused(path)
            raise
        os.close(descriptor)  # its last user has just removed it


def _unlock(descriptor: int, path: Path) -> None:
    os.close(descriptor)
    _remove_if_unused(path)


def _remove_if_unused(path: Path) -> None:
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
        finally:
            os.close(descriptor)
