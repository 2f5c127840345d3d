"""Checkpoints of a run: saved in the background, complete or ignored, verified to the last bit."""

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

from aae_dist.checkpoints.folder import CheckpointFolder, finished, key_of
from aae_dist.checkpoints.format import (
    Documents,
    Saved,
    Tensors,
    encode_documents,
    encode_tensors,
    snapshot,
)
from aae_dist.checkpoints.manifest import MANIFEST, FileRecord, Manifest
from aae_dist.errors import CheckpointError
from aae_dist.storage import Storage

__all__ = ["CheckpointStore", "Saved"]


class CheckpointStore:
    """Saves and loads the checkpoints of one run.

    Attributes:
        seconds_blocked: seconds that callers of `save` and `wait` have spent in them so far.
        last_bytes: bytes of the newest finished save.
        last_seconds: seconds it took in the background.
    """

    def __init__(
        self,
        run: Storage,
        keep: int,
        fence: Callable[[], None] = lambda: None,
        attempt: int = 0,
        report: Callable[[str], None] | None = None,
    ) -> None:
        """Name the run's folder; nothing is read or written yet.

        Args:
            run: the run's folder.
            keep: newest checkpoints to keep; the best one is kept beside them.
            fence: raises when another writer took the run over; asked before anything is changed.
            attempt: fencing number of this writer, noted in every manifest.
            report: shows a line about a damaged checkpoint; by default it is logged.
        """
        self._folder = CheckpointFolder(run, report) if report else CheckpointFolder(run)
        self._keep, self._fence, self._attempt = keep, fence, attempt
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._current: Manifest | None = None
        self._copies: Tensors | None = None
        self._began = 0.0
        self.seconds_blocked = 0.0
        self.last_bytes = 0
        self.last_seconds = 0.0

    def save(self, step: int, tensors: Tensors, documents: Documents, best: bool = False) -> None:
        """Save in the background; return once the tensors are copied, so training may go on.

        At most one save is under way: a call waits for the one before. The step that this store
        loaded or saved last is the same state, so it is not written again.

        Args:
            step: steps done since the start of the run.
            tensors: by file name without ending, then by tensor name; of any device.
            documents: what JSON holds, by file name without ending; NaN is refused.
            best: whether this is the best checkpoint so far; it outlives `keep`.

        Raises:
            AaeDistError, OSError: why the save before this one failed; this one is not begun.
        """
        with self._blocked():
            self._finish_pending()
            self._began = time.monotonic()
            files = encode_documents(documents)
            self._copies = snapshot(tensors, into=self._copies)  # no save reads it any more
            self._pending = self._worker.submit(self._save, step, self._copies, files, best)

    def wait(self) -> None:
        """Return when no save is under way; raise what made it fail."""
        with self._blocked():
            self._finish_pending()

    @property
    def is_saving(self) -> bool:
        """Whether a save is under way, so that the next one would have to wait."""
        return self._pending is not None and not self._pending.done()

    @property
    def seconds_saving(self) -> float:
        """Seconds since the newest save began."""
        return time.monotonic() - self._began

    def last_good(self, is_good: Callable[[Saved], bool]) -> int | None:
        """Return the newest step whose checkpoint verifies and is good, None when none is.

        The checkpoints after it are removed: a later start must not take one of them.
        """
        steps = self._folder.steps()
        for step in reversed(steps):
            try:
                saved = self.load(step)
            except CheckpointError:
                continue
            if is_good(saved):
                self._fence()
                for newer in (s for s in steps if s > step):
                    self._folder.remove(newer)
                return step
        return None

    def newest(self) -> Saved | None:
        """Return the newest checkpoint that verifies, None when there is none.

        A damaged one is reported and marked with DAMAGED.json; an unfinished one is ignored.
        """
        found = self._folder.newest()
        if found is None:
            return None
        saved, self._current = found
        return saved

    def load(self, step: int) -> Saved:
        """Return the checkpoint of `step`; raise CheckpointError when it is absent or damaged."""
        saved, self._current = self._folder.load(step)
        return saved

    def steps(self) -> list[int]:
        """Return the steps of all finished checkpoints not known to be damaged, ascending."""
        return self._folder.steps()

    @contextmanager
    def _blocked(self) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds_blocked += time.monotonic() - started

    def _finish_pending(self) -> None:
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    # What follows runs in the background thread.

    def _save(self, step: int, tensors: Tensors, files: dict[str, bytes], best: bool) -> None:
        started = time.monotonic()
        current = self._current
        if current is None or current.step != step:
            files = {**encode_tensors(tensors), **files}
            self._current = self._write(step, files, best)
            self.last_bytes = sum(map(len, files.values()))
        elif best and not current.best:
            self._current = self._praise(current)
        self._delete_old(step)
        self.last_seconds = time.monotonic() - started

    def _write(self, step: int, files: Mapping[str, bytes], best: bool) -> Manifest:
        records = {name: FileRecord.of(data) for name, data in files.items()}
        manifest = Manifest(attempt=self._attempt, best=best, files=records, step=step)
        self._fence()
        self._folder.remove(step)
        for name, data in files.items():
            # Asked each time: a writer that slept through its replacement must not spoil files.
            self._fence()
            self._folder.storage.write(key_of(step, name), data)
        self._fence()
        if not self._folder.storage.create(key_of(step, MANIFEST), manifest.sealed()):
            self._check_manifest(manifest)  # a repeated request finds what the first one stored
        return self._read_back(manifest)

    def _praise(self, manifest: Manifest) -> Manifest:
        best = manifest.model_copy(update={"best": True})
        self._fence()
        self._folder.storage.write(key_of(best.step, MANIFEST), best.sealed())
        return self._read_back(best)

    def _read_back(self, manifest: Manifest) -> Manifest:
        self._check_manifest(manifest)
        self._folder.verified_files(manifest)
        return manifest

    def _check_manifest(self, manifest: Manifest) -> None:
        key = key_of(manifest.step, MANIFEST)
        if self._folder.storage.read(key) != manifest.sealed():
            raise CheckpointError(
                f"{self._folder.storage.uri}/{key} does not read back as it was written. "
                "Check the storage, and that no other run uses this folder."
            )

    def _delete_old(self, step: int) -> None:
        listing = self._folder.listing()
        good = finished(listing)
        newest = good[-self._keep :]
        best = next((s for s in reversed(good) if self._folder.is_best(s)), step)
        for old, names in listing.items():
            unfinished = MANIFEST not in names
            if old < step and old != best and (unfinished or old < newest[0]):
                self._folder.remove(old)
