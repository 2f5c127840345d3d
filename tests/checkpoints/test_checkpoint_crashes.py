"""A writer may die at any moment, and a reader may look at any moment."""

import contextlib
import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from aae_dist.checkpoints.store import CheckpointStore
from aae_dist.errors import LaunchError
from aae_dist.storage import LocalStorage, Storage, open_storage


def save(store: CheckpointStore, step: int) -> None:
    store.save(step, {"model": {"x": torch.tensor([float(step)])}}, {"state": {"step": step}})
    store.wait()


def newest_step(run: Storage) -> int:
    saved = CheckpointStore(run, keep=1).newest()
    assert saved is not None
    assert saved.tensors["model"]["x"].item() == saved.step == saved.metadata["state"]["step"]
    return saved.step


class DyingStorage(LocalStorage):
    """A folder whose writer dies before one of its changes."""

    def __init__(self, folder: str | Path, alive: Iterator[bool]) -> None:
        """Take whether the writer lives from `alive`, once a change."""
        super().__init__(folder)
        self._alive = alive

    def child(self, name: str) -> "DyingStorage":
        """Return a folder of the same writer."""
        return DyingStorage(Path(self.uri, name), self._alive)

    def write(self, key: str, data: bytes) -> None:
        """Count a change."""
        self._live()
        super().write(key, data)

    def create(self, key: str, data: bytes) -> bool:
        """Count a change."""
        self._live()
        return super().create(key, data)

    def delete(self, key: str) -> None:
        """Count a change."""
        self._live()
        super().delete(key)

    def clear(self, prefix: str) -> None:
        """Count a change."""
        self._live()
        super().clear(prefix)

    def _live(self) -> None:
        if not next(self._alive, False):
            raise LaunchError("killed")


def test_a_writer_may_die_between_any_two_changes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = []
    for num_changes in range(8):
        run = open_storage(str(tmp_path / str(num_changes)))
        save(CheckpointStore(run, keep=1), 200)
        dying = DyingStorage(run.uri, iter([True] * num_changes))
        with contextlib.suppress(LaunchError):
            save(CheckpointStore(dying, keep=1), 400)
        found.append(newest_step(run))
        save(CheckpointStore(run, keep=1), 600)
        assert run.folders("checkpoints") == ["step-000000600"]
    # Two changes clear the folder, two write the files, one the manifest, two delete step 200.
    assert found == [200] * 5 + [400] * 3
    assert not caplog.records


def test_a_reader_never_takes_a_deleted_checkpoint_for_a_damaged_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = open_storage(str(tmp_path))
    writer = CheckpointStore(run, keep=2)
    save(writer, 1)
    stop = threading.Event()

    def go_on_writing() -> None:
        step = 1
        while not stop.is_set():
            save(writer, step := step + 1)

    thread = threading.Thread(target=go_on_writing)
    thread.start()
    try:
        with caplog.at_level(logging.WARNING):
            steps = [newest_step(run) for _ in range(50)]
    finally:
        stop.set()
        thread.join()
    assert steps == sorted(steps)
    assert not caplog.records
