"""The folder `checkpoints/` of a run: finding, reading and verifying what it holds."""

import json
import logging
import re
from collections.abc import Callable

from aae_dist.checkpoints.format import Saved, check_size, decode
from aae_dist.checkpoints.manifest import (
    DAMAGED,
    MANIFEST,
    FileRecord,
    Manifest,
    NewerCheckpointError,
    unseal,
)
from aae_dist.errors import CheckpointError, LaunchError
from aae_dist.storage import Storage, read_or_none

logger = logging.getLogger(__name__)
_STEP = re.compile(r"^step-(\d{9,})$")
# A live writer may delete what is being read; a fresh listing then has something newer.
_NUM_LOOKS = 10


class _VanishedError(Exception):
    """The checkpoint was deleted or written anew while it was read."""


class CheckpointFolder:
    """One sub-folder a step, closed by its MANIFEST.json; what has none is an unfinished save."""

    def __init__(self, run: Storage, report: Callable[[str], None] = logger.warning) -> None:
        """Name the run's folder, nothing is read yet; `report` is told of damaged checkpoints."""
        self.storage, self._report = run.child("checkpoints"), report

    def listing(self) -> dict[int, set[str]]:
        """Return the names of the files of every step, finished or not."""
        found: dict[int, set[str]] = {}
        for entry in self.storage.list():
            folder, _, name = entry.key.partition("/")
            if step := _STEP.match(folder):
                found.setdefault(int(step.group(1)), set()).add(name)
        return found

    def steps(self) -> list[int]:
        """Return the steps of all finished checkpoints not known to be damaged, ascending."""
        return finished(self.listing())

    def newest(self) -> tuple[Saved, Manifest] | None:
        """Return the newest checkpoint that verifies, None when there is none.

        A damaged one is reported and marked with DAMAGED.json; an unfinished one is ignored.
        """
        for _ in range(_NUM_LOOKS):
            try:
                return self._newest()
            except _VanishedError:
                continue
        raise CheckpointError(
            f"{self.storage.uri}: the checkpoints change faster than they can be read. "
            "Try again, or raise checkpoint.keep of the run that writes them."
        )

    def load(self, step: int) -> tuple[Saved, Manifest]:
        """Return the checkpoint of `step`; raise CheckpointError when it is absent or damaged."""
        try:
            return self._load(step, self.storage.read(key_of(step, MANIFEST)))
        except (FileNotFoundError, _VanishedError) as error:
            raise CheckpointError(
                f"{self.storage.uri}: no checkpoint of step {step}. There are {self.steps()}."
            ) from error

    def is_best(self, step: int) -> bool:
        """Return whether the finished checkpoint of `step` says that it was the best so far."""
        try:
            return unseal(self.storage.read(key_of(step, MANIFEST))).best
        except CheckpointError:
            return False

    def verified_files(self, manifest: Manifest) -> dict[str, bytes]:
        """Return the files of a checkpoint, each read once; CheckpointError if one differs."""
        files = {}
        for name, record in manifest.files.items():
            key = key_of(manifest.step, name)
            # The size is asked first: a file blown up to fill the memory is never read.
            size = self.storage.size(key)
            check_size(name, record.size)
            data = read_or_none(self.storage, key) if size == record.size else None
            if data is None or FileRecord.of(data) != record:
                state = "is missing" if size is None else "does not match its size and SHA-256"
                raise CheckpointError(f"{name} {state}")
            files[name] = data
        return files

    def remove(self, step: int) -> None:
        """Remove the checkpoint of `step`, finished or not."""
        # Without its manifest a half-deleted checkpoint counts as unfinished, not as damaged.
        self.storage.delete(key_of(step, MANIFEST))
        self.storage.clear(folder_of(step))

    def _newest(self) -> tuple[Saved, Manifest] | None:
        for step in reversed(self.steps()):
            try:
                sealed = self.storage.read(key_of(step, MANIFEST))
                return self._load(step, sealed)
            except FileNotFoundError as error:
                raise _VanishedError from error
            except NewerCheckpointError:
                raise  # good, only not for us: an older one would lose what a newer version did
            except CheckpointError as error:
                self._mark_damaged(step, str(error))
        return None

    def _load(self, step: int, sealed: bytes) -> tuple[Saved, Manifest]:
        try:
            manifest = unseal(sealed)
            if manifest.step != step:
                raise CheckpointError(f"{MANIFEST} is of step {manifest.step}")
            return decode(step, self.verified_files(manifest)), manifest
        except CheckpointError as error:
            if read_or_none(self.storage, key_of(step, MANIFEST)) != sealed:
                raise _VanishedError from error
            raise type(error)(f"{self.storage.uri}/{folder_of(step)}: {error}") from error

    def _mark_damaged(self, step: int, reason: str) -> None:
        self._report(f"damaged checkpoint, an older one is looked for: {reason}")
        try:
            mark = json.dumps({"reason": reason, "step": step}, sort_keys=True)
            self.storage.write(key_of(step, DAMAGED), mark.encode())
        except (LaunchError, OSError) as error:
            # Who may only read, say to draw samples, can still use the older one.
            self._report(f"the damaged checkpoint could not be marked: {error}")


def finished(listing: dict[int, set[str]]) -> list[int]:
    """Return the steps of a listing that are finished and not known to be damaged, ascending."""
    return sorted(s for s, names in listing.items() if MANIFEST in names and DAMAGED not in names)


def folder_of(step: int) -> str:
    """Return the name of the folder of a step."""
    return f"step-{step:09d}"


def key_of(step: int, name: str) -> str:
    """Return the storage key of a file of a step."""
    return f"{folder_of(step)}/{name}"
