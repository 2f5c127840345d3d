"""Checkpoints of a run: saved in the background, complete or ignored, verified to the last bit.

A checkpoint is a folder `checkpoints/step-000000123/`, completed by its MANIFEST.json; a folder
without one is an unfinished save.
"""

import json
import logging
import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from aae_dist.checkpoints import format as layout
from aae_dist.checkpoints.format import DAMAGED, MANIFEST, Checkpoint, Manifest, Metadata, Tensors
from aae_dist.errors import CheckpointError, LaunchError, StorageError
from aae_dist.storage import Storage, read_or_none, rereads

logger = logging.getLogger(__name__)
_STEP = re.compile(r"^step-(\d{9,})$")
_NUM_LISTINGS = 10
"""A live writer may delete the checkpoint being read; a fresh listing then has a newer one."""


OnCheckpoint = Callable[[dict[str, Any]], None]
"""Takes a checkpoint that is stored: `step`, `uri` of its folder, `best`."""


def _nothing() -> None:
    pass


class CheckpointStore:
    """Saves and loads the checkpoints of one run.

    Attributes:
        check_fencing: called before each change; raises if a newer writer holds the run lock.
        seconds_blocked: seconds that callers of `save` and `wait` have spent in them so far.
        last_bytes, last_seconds: of the newest finished save, in the background.
    """

    def __init__(
        self,
        run: Storage,
        keep: int,
        check_fencing: Callable[[], None] = _nothing,
        attempt: int = 0,
        report: Callable[[str], None] = logger.warning,
    ) -> None:
        """Name the run's folder; nothing is read or written yet.

        `keep` newest checkpoints stay, and the best one. `attempt`, the fencing number of this
        writer, is stored in every manifest. `report` shows a line about a damaged checkpoint.
        """
        self._folder = _CheckpointFolder(run, report)
        self._keep, self._attempt = keep, attempt
        self.check_fencing = check_fencing
        self._worker: ThreadPoolExecutor | None = None
        self._pending: Future[None] | None = None
        self._current: Manifest | None = None
        self._copies: Tensors | None = None
        self._save_started = self.seconds_blocked = self.last_seconds = 0.0
        self.last_bytes = 0
        self._stored: deque[dict[str, Any]] = deque()
        self.on_stored: OnCheckpoint | None = None

    def save(
        self,
        step: int,
        tensors: Tensors,
        metadata: Metadata,
        best: bool = False,
        before_commit: Callable[[], None] = _nothing,
    ) -> None:
        """Save in the background; return once the tensors are copied, so training may continue.

        At most one save is under way: a call waits for the one before. The step that this store
        loaded or saved last is the same state, so it is not written again.

        Args:
            step: steps done since the start of the run.
            tensors: by file name without suffix, then by tensor name; of any device.
            metadata: JSON values, by file name without suffix; NaN is refused.
            best: whether this is the best checkpoint so far; it outlives `keep`.
            before_commit: called in the background before the manifest; an error fails the save.

        Raises:
            AaeDistError, OSError: why the save before this one failed; this one is not started.
        """
        with self._blocked():
            self._finish_pending()
            self._save_started = time.monotonic()
            files = layout.encode_metadata(metadata)
            self._copies = layout.snapshot(tensors, into=self._copies)  # no save reads it any more
            self._worker = self._worker or ThreadPoolExecutor(1, "checkpoint")
            self._pending = self._worker.submit(
                self._save, step, self._copies, files, best, before_commit
            )

    def wait(self) -> None:
        """Return when no save is under way; raise the error of one that failed."""
        with self._blocked():
            if self._worker is not None:
                self._worker.shutdown()  # a run leaves no thread; a later save starts another
                self._worker = None
            self._finish_pending()

    def announce(self) -> None:
        """Call `on_stored`, in this thread, for the checkpoints stored since the last call."""
        while self._stored:
            stored = self._stored.popleft()
            if self.on_stored is not None:
                self.on_stored(stored)

    @property
    def is_saving(self) -> bool:
        """Whether a save is under way, so that the next one would have to wait."""
        return self._pending is not None and not self._pending.done()

    @property
    def seconds_saving(self) -> float:
        """Seconds since the newest save started."""
        return time.monotonic() - self._save_started

    def newest(self) -> Checkpoint | None:
        """Return the newest checkpoint that verifies, None when there is none.

        A damaged one is reported and marked with DAMAGED.json; an unfinished one is ignored. When
        no other one is left, those marked before are read again, and lose the mark if they verify.
        """
        checkpoint, current = self._folder.newest() or (None, None)
        self._current = current or self._current
        return checkpoint

    def best(self) -> int | None:
        """Return the step of the best checkpoint so far, None before the first evaluation."""
        return self._folder.best(self.steps())

    def newest_healthy(self, is_healthy: Callable[[Checkpoint], bool]) -> int | None:
        """Return the newest step whose checkpoint verifies and is healthy, None without any."""
        # The checkpoints after it are removed: a later start must not use one of them.
        steps = self._folder.steps()
        for step in reversed(steps):
            try:
                checkpoint = self.load(step)
            except CheckpointError:
                continue
            if is_healthy(checkpoint):
                self.check_fencing()
                for newer in (s for s in steps if s > step):
                    self._folder.remove(newer)
                return step
        return None

    def load(self, step: int) -> Checkpoint:
        """Load the checkpoint of `step`; raise CheckpointError when it is absent or damaged."""
        checkpoint, self._current = self._folder.load(step)
        return checkpoint

    def steps(self) -> list[int]:
        """Return the steps of all finished checkpoints not known to be damaged, ascending."""
        return self._folder.steps()

    @property
    def rejected(self) -> dict[int, str]:
        """Why each checkpoint was not used that the newest call of `newest` read, by its step."""
        return dict(sorted(self._folder.rejected.items()))

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

    # The methods below run in the background thread.

    def _save(
        self,
        step: int,
        tensors: Tensors,
        files: dict[str, bytes],
        best: bool,
        before_commit: Callable[[], None],
    ) -> None:
        started = time.monotonic()
        current = self._current
        if current is None or current.step != step:
            files = {**layout.encode_tensors(tensors), **files}
            self._current = self._write(step, files, best, before_commit)
            self.last_bytes = sum(map(len, files.values()))
        elif best and not current.best:
            self._current = self._mark_best(current, before_commit)
        self._delete_old(step)
        uri = f"{self._folder.storage.uri}/{_folder_name(step)}"
        self._stored.append({"step": step, "uri": uri, "best": best})
        self.last_seconds = time.monotonic() - started

    def _write(
        self, step: int, files: Mapping[str, bytes], best: bool, before_commit: Callable[[], None]
    ) -> Manifest:
        records = {name: layout.FileRecord.describe(data) for name, data in files.items()}
        manifest = Manifest(attempt=self._attempt, best=best, files=records, step=step)
        # An earlier save of this step may be unfinished or damaged.
        self.check_fencing()
        self._folder.remove(step)
        # The files. Checked for each: a writer that slept through its replacement must not spoil
        # the files of the new one.
        for name, data in files.items():
            self.check_fencing()
            self._folder.storage.write(_key(step, name), data)
        # The commit.
        self.check_fencing()
        before_commit()
        if not self._folder.storage.create(_key(step, MANIFEST), manifest.serialize()):
            self._check_manifest(manifest)  # a repeated request finds what the first one stored
        return self._read_back(manifest)

    def _mark_best(self, manifest: Manifest, before_commit: Callable[[], None]) -> Manifest:
        best = manifest.model_copy(update={"best": True})
        self.check_fencing()
        before_commit()
        self._folder.storage.write(_key(best.step, MANIFEST), best.serialize())
        return self._read_back(best)

    def _read_back(self, manifest: Manifest) -> Manifest:
        self._check_manifest(manifest)
        self._folder.verified_files(manifest)
        return manifest

    def _check_manifest(self, manifest: Manifest) -> None:
        key, wanted = _key(manifest.step, MANIFEST), manifest.serialize()
        if not any(read_or_none(place, key) == wanted for place in rereads(self._folder.storage)):
            raise CheckpointError(
                f"{self._folder.storage.uri}/{key} does not read back as it was written. "
                "Check the storage, and that no other run uses this folder."
            )

    def _delete_old(self, step: int) -> None:
        listing = self._folder.listing()
        finished = _finished(listing)
        newest = finished[-self._keep :]
        best = self._folder.best(finished)
        best = step if best is None else best
        for old, names in listing.items():
            unfinished = MANIFEST not in names
            if old < step and old != best and (unfinished or old < newest[0]):
                self._folder.remove(old)


class _VanishedError(Exception):
    """The checkpoint was deleted or rewritten while it was read."""


class _CheckpointFolder:
    """The folder `checkpoints/` of a run: finds, reads, verifies and removes checkpoints."""

    def __init__(self, run: Storage, report: Callable[[str], None]) -> None:
        self.storage, self._report = run.child("checkpoints"), report
        self.rejected: dict[int, str] = {}

    def listing(self, place: Storage | None = None) -> dict[int, set[str]]:
        """Return the names of the files of every step, finished or not."""
        found: dict[int, set[str]] = {}
        for entry in (place or self.storage).list():
            folder, _, name = entry.key.partition("/")
            if step := _STEP.match(folder):
                found.setdefault(int(step.group(1)), set()).add(name)
        return found

    def steps(self) -> list[int]:
        return _finished(self.listing())

    def newest(self) -> tuple[Checkpoint, Manifest] | None:
        for _ in range(_NUM_LISTINGS):
            try:
                return self._newest()
            except _VanishedError:
                continue
        raise CheckpointError(
            f"{self.storage.uri}: the checkpoints change faster than they can be read. "
            "Try again, or raise checkpoint.keep of the run that writes them."
        )

    def load(self, step: int) -> tuple[Checkpoint, Manifest]:
        try:
            return self._load(step)
        except (FileNotFoundError, _VanishedError) as error:
            raise CheckpointError(
                f"{self.storage.uri}: no checkpoint of step {step}. There are {self.steps()}."
            ) from error

    def best(self, steps: Sequence[int]) -> int | None:
        """Return the last of finished steps that was the best so far when it was written."""
        return next((step for step in reversed(steps) if self._is_best(step)), None)

    def _is_best(self, step: int) -> bool:
        try:
            return self._manifest(step)[0].best
        except (CheckpointError, FileNotFoundError):
            return False

    def verified_files(self, manifest: Manifest) -> dict[str, bytes]:
        """Return the files of a checkpoint; CheckpointError if one differs whenever it is read."""
        return {
            name: self._verified_file(_key(manifest.step, name), name, record)
            for name, record in manifest.files.items()
        }

    def _verified_file(self, key: str, name: str, record: layout.FileRecord) -> bytes:
        state = ""
        for place in rereads(self.storage):
            try:
                # The size comes first: a file blown up to fill the memory is never read.
                size = place.size(key)
                layout.check_size(name, record.size)
                data = read_or_none(place, key) if size == record.size else None
            except OSError as error:  # of a local disk or a mount; a bucket's are LaunchErrors
                state = f"cannot be read ({error.strerror})"
                continue
            if data is not None and layout.FileRecord.describe(data) == record:
                return data
            state = "is missing" if size is None else "does not match its size and SHA-256"
        raise CheckpointError(f"{name} {state}")

    def _manifest(self, step: int) -> tuple[Manifest, bytes]:
        """Return the manifest and its bytes; CheckpointError if it verifies at no reading."""
        key = _key(step, MANIFEST)
        for place in rereads(self.storage):
            try:
                serialized = place.read(key)
                manifest = Manifest.verify(serialized)
                if manifest.step != step:
                    raise CheckpointError(f"{MANIFEST} is of step {manifest.step}")
                return manifest, serialized
            except layout.NewerCheckpointError:
                raise
            except CheckpointError as error:
                problem = error
            except FileNotFoundError:
                raise
            except OSError as error:
                problem = CheckpointError(f"{MANIFEST} cannot be read ({error.strerror})")
        raise problem

    def remove(self, step: int) -> None:
        # Without its manifest a half-deleted checkpoint counts as unfinished, not as damaged.
        self.storage.delete(_key(step, MANIFEST))
        self.storage.clear(_folder_name(step))

    def _newest(self) -> tuple[Checkpoint, Manifest] | None:
        listing = self._listing_to_resume()
        self.rejected = {}
        for step in reversed(_finished(listing)):
            try:
                return self._load(step)
            except FileNotFoundError as error:
                raise _VanishedError from error
            except layout.NewerCheckpointError:
                raise  # not damaged: falling back would lose the progress of a newer version
            except CheckpointError as error:
                self._mark_damaged(step, str(error))
        # A mark is the judgement of one moment; it must not cost the whole run.
        for step in reversed(_marked(listing)):
            try:
                found = self._load(step)
            except FileNotFoundError as error:
                raise _VanishedError from error
            except CheckpointError as error:
                self.rejected[step] = str(error)
            else:
                self._unmark(step)
                return found
        return None

    def _listing_to_resume(self) -> dict[int, set[str]]:
        """Return the listing; one without a checkpoint only if a second request agrees."""
        listing: dict[int, set[str]] = {}
        problem: StorageError | None = None
        for place in rereads(self.storage):
            try:
                listing, problem = self.listing(place), None
                if listing or self.storage.is_empty():
                    break
            except StorageError as error:
                if error.reason != "other":  # an answer that cannot be parsed
                    raise
                problem = error
        if problem is not None:
            raise problem
        return listing

    def _load(self, step: int) -> tuple[Checkpoint, Manifest]:
        serialized = None
        try:
            manifest, serialized = self._manifest(step)
            return layout.decode(step, self.verified_files(manifest)), manifest
        except CheckpointError as error:
            if serialized is not None and not self._is_manifest(step, serialized):
                raise _VanishedError from error
            raise type(error)(f"{self.storage.uri}/{_folder_name(step)}: {error}") from error

    def _is_manifest(self, step: int, serialized: bytes) -> bool:
        return read_or_none(self.storage, _key(step, MANIFEST)) == serialized

    def _mark_damaged(self, step: int, reason: str) -> None:
        self.rejected[step] = reason
        self._report(f"damaged checkpoint, falling back to an older one: {reason}")
        try:
            mark = json.dumps({"reason": reason, "step": step}, sort_keys=True)
            self.storage.write(_key(step, DAMAGED), mark.encode())
        except (LaunchError, OSError) as error:
            # A reader without write access, say to draw samples, can still use the older one.
            self._report(f"the damaged checkpoint could not be marked: {error}")

    def _unmark(self, step: int) -> None:
        where = f"{self.storage.uri}/{_folder_name(step)}"
        self._report(f"{where} was marked as damaged, but verifies now: it is used")
        try:
            self.storage.delete(_key(step, DAMAGED))
        except (LaunchError, OSError) as error:
            self._report(f"the mark could not be removed: {error}")


def _finished(listing: dict[int, set[str]]) -> list[int]:
    return sorted(s for s, names in listing.items() if MANIFEST in names and DAMAGED not in names)


def _marked(listing: dict[int, set[str]]) -> list[int]:
    return sorted(s for s, names in listing.items() if {MANIFEST, DAMAGED} <= names)


def _folder_name(step: int) -> str:
    return f"step-{step:09d}"


def _key(step: int, name: str) -> str:
    return f"{_folder_name(step)}/{name}"
