"""10,000 random changes of a checkpoint's bytes: every one is noticed, the one before is used."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from aae_dist.checkpoints.store import CheckpointStore
from aae_dist.storage import Storage, open_storage

pytestmark = [pytest.mark.slow, pytest.mark.timeout(580)]

NUM_SMALL, NUM_LARGE = 10_000, 100
Change = Callable[[random.Random, list[Path]], dict[Path, bytes]]


def flip(rng: random.Random, files: list[Path]) -> dict[Path, bytes]:
    """Flip one bit of one file."""
    path = rng.choice(files)
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return {path: bytes(data)}


def cut(rng: random.Random, files: list[Path]) -> dict[Path, bytes]:
    """Cut one file anywhere, to nothing included."""
    path = rng.choice(files)
    data = path.read_bytes()
    return {path: data[: rng.randrange(len(data))]}


def swap(rng: random.Random, files: list[Path]) -> dict[Path, bytes]:
    """Swap two files, or take one from the checkpoint before."""
    if rng.random() < 0.5:
        one, other = rng.sample(files, 2)
        return {one: other.read_bytes(), other: one.read_bytes()}
    path = rng.choice(files)
    return {path: (path.parents[1] / "step-000000200" / path.name).read_bytes()}


def two_checkpoints(folder: Path, numbers: int) -> Storage:
    storage = open_storage(str(folder / "run"))
    store = CheckpointStore(storage, keep=2)
    for step in (200, 400):
        tensors = {"model": {"x": torch.full((numbers,), float(step))}, "optimizer": {}}
        tensors["optimizer"] = {"m": torch.randn(numbers) + step}
        store.save(step, tensors, {"state": {"step": step}, "config": {"seed": step}})
    store.wait()
    return storage


def is_noticed(storage: Storage, changed: dict[Path, bytes]) -> bool:
    """Return whether the older checkpoint is used while these bytes stand there; mend them."""
    good = {path: path.read_bytes() for path in changed}
    assert good != changed
    for path, data in changed.items():
        path.write_bytes(data)
    saved = CheckpointStore(storage, keep=2).newest()
    for path, data in good.items():
        path.write_bytes(data)
    mark = next(iter(good)).with_name("DAMAGED.json")
    noticed = mark.exists()
    mark.unlink(missing_ok=True)
    assert saved is not None
    exact = bool((saved.tensors["model"]["x"] == float(saved.step)).all())
    return noticed and exact and saved.step == 200


@pytest.fixture
def memory_folder(tmp_path: Path) -> Path:
    """Return a folder in memory where there is one: 10,000 marks are written and synced."""
    if not Path("/dev/shm").is_dir():
        return tmp_path
    folder = Path("/dev/shm") / f"aae_dist-test-{tmp_path.name}"
    folder.mkdir()
    return folder


@pytest.mark.parametrize(
    ("number", "size", "numbers", "count"),
    [("15a", "small", 20_000, NUM_SMALL), ("15b", "full-size (73 MB)", 9_200_000, NUM_LARGE)],
)
def test_every_change_of_any_byte_is_noticed(
    number: str, size: str, numbers: int, count: int, memory_folder: Path, row
) -> None:
    line = row(
        number,
        f"{count:,} random flips, cuts and swaps over a {size} checkpoint, manifest included",
        "every one noticed and marked, the checkpoint before used",
    )
    try:
        storage = two_checkpoints(memory_folder, numbers)
        folder = Path(storage.uri, "checkpoints", "step-000000400")
        files, rng = sorted(folder.iterdir()), random.Random(0)
        changes: list[Change] = [flip, flip, cut, swap]
        missed = sum(not is_noticed(storage, rng.choice(changes)(rng, files)) for _ in range(count))
        line.seen.append(f"{count - missed:,} of {count:,} noticed")
        assert missed == 0
    finally:
        shutil.rmtree(memory_folder)
