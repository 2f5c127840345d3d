"""Whatever happens to the bytes of a checkpoint, it is noticed and the one before is used."""

import hashlib
import json
import logging
import random
import shutil
from pathlib import Path

import pytest
import torch

from aae_dist.checkpoints.format import MAX_MANIFEST_BYTES, Manifest
from aae_dist.checkpoints.store import CheckpointStore
from aae_dist.errors import CheckpointError
from aae_dist.storage import Storage, open_storage

NUM_FLIPS, NUM_CUTS = 300, 60


@pytest.fixture
def run(tmp_path: Path) -> Storage:
    """Return a run with the checkpoints of steps 200 and 400."""
    storage = open_storage(str(tmp_path / "run"))
    store = CheckpointStore(storage, keep=2)
    for step in (200, 400):
        store.save(step, {"model": {"x": torch.tensor([float(step)])}}, {"state": {"step": step}})
    store.wait()
    return storage


@pytest.fixture
def newest(run: Storage) -> Path:
    """Return the folder of the newest checkpoint."""
    return Path(run.uri, "checkpoints", "step-000000400")


def falls_back(run: Storage) -> bool:
    saved = CheckpointStore(run, keep=2).newest()
    assert saved is not None
    assert saved.tensors["model"]["x"].item() == saved.step == saved.metadata["state"]["step"]
    noticed = run.size("checkpoints/step-000000400/DAMAGED.json") is not None
    run.delete("checkpoints/step-000000400/DAMAGED.json")
    return saved.step == 200 and noticed


@pytest.mark.run
def test_every_flipped_bit_is_noticed(run: Storage, newest: Path) -> None:
    rng = random.Random(0)
    for _ in range(NUM_FLIPS):
        path = rng.choice(sorted(newest.iterdir()))
        good = path.read_bytes()
        position = rng.randrange(len(good))
        flipped = good[position] ^ (1 << rng.randrange(8))
        path.write_bytes(good[:position] + bytes([flipped]) + good[position + 1 :])
        assert falls_back(run), (path.name, position)
        path.write_bytes(good)
    assert not falls_back(run)


def test_every_cut_or_lengthened_file_is_noticed(run: Storage, newest: Path) -> None:
    rng = random.Random(1)
    for _ in range(NUM_CUTS):
        path = rng.choice(sorted(newest.iterdir()))
        good = path.read_bytes()
        position = rng.randrange(len(good))
        changed = good[:position] + rng.choice(
            [b"", good[position:] + b"\n", b" " + good[position:]]
        )
        path.write_bytes(changed)
        assert falls_back(run), (path.name, position)
        path.write_bytes(good)
    assert not falls_back(run)


def test_every_flipped_bit_of_a_manifest_is_noticed(newest: Path) -> None:
    good = (newest / "MANIFEST.json").read_bytes()
    assert Manifest.verify(good).serialize() == good
    for position in range(len(good)):
        for bit in range(8):
            bad = good[:position] + bytes([good[position] ^ (1 << bit)]) + good[position + 1 :]
            with pytest.raises(CheckpointError):
                Manifest.verify(bad)


def reseal(text: str) -> bytes:
    """Return `text`, a JSON object, closed by a hash that fits."""
    before = text.rstrip()[:-1].encode() + b","
    return before + f'"sha256":"{hashlib.sha256(before).hexdigest()}"}}'.encode()


@pytest.mark.parametrize(
    "change",
    [
        lambda fields: json.dumps(fields, sort_keys=True),  # with spaces
        lambda fields: json.dumps(dict(reversed(fields.items())), separators=(",", ":")),
        lambda fields: json.dumps({**fields, "more": 1}, sort_keys=True, separators=(",", ":")),
        lambda fields: json.dumps({**fields, "step": 400.0}, sort_keys=True, separators=(",", ":")),
        lambda fields: json.dumps({**fields, "schema_version": 2}, separators=(",", ":")),
        lambda fields: json.dumps({**fields, "files": {"../x.json": {}}}, separators=(",", ":")),
        lambda fields: '{"attempt":1,' + json.dumps(fields, separators=(",", ":"))[1:],
        lambda fields: "[" * 100_000,
        lambda fields: "{",
    ],
)
def test_another_spelling_does_not_verify_even_with_a_hash_that_fits(change: object) -> None:
    manifest = Manifest(attempt=0, best=False, files={}, step=400)
    assert (
        Manifest.verify(reseal(json.dumps(manifest.model_dump(), separators=(",", ":"))))
        == manifest
    )
    with pytest.raises(CheckpointError):
        Manifest.verify(reseal(change(manifest.model_dump())))  # type: ignore[operator]


def test_an_oversized_manifest_is_not_parsed() -> None:
    with pytest.raises(CheckpointError, match="more than"):
        Manifest.verify(b" " * (MAX_MANIFEST_BYTES + 1))


def test_a_missing_or_swapped_file_is_noticed(run: Storage, newest: Path) -> None:
    older = newest.with_name("step-000000200")
    for name in ("model.safetensors", "state.json", "MANIFEST.json"):
        good = (newest / name).read_bytes()
        shutil.copy(older / name, newest / name)
        assert falls_back(run), name
        (newest / name).write_bytes(good)
    (newest / "state.json").unlink()
    assert falls_back(run)


def test_damage_is_reported_marked_and_never_moved(
    run: Storage, newest: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (newest / "model.safetensors").write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        assert CheckpointStore(run, keep=2).newest() is not None
    expected = f"{newest}: model.safetensors does not match its size and SHA-256"
    assert expected in caplog.text
    mark = json.loads((newest / "DAMAGED.json").read_bytes())
    assert mark == {"reason": expected, "step": 400}
    assert (newest / "MANIFEST.json").exists()
    with pytest.raises(CheckpointError, match="model.safetensors does not match"):
        CheckpointStore(run, keep=2).load(400)


def test_a_writer_that_reaches_the_step_again_clears_the_damage(run: Storage, newest: Path) -> None:
    (newest / "model.safetensors").write_bytes(b"")
    (newest / "left-over.safetensors").write_bytes(b"")
    store = CheckpointStore(run, keep=2)
    assert store.newest() is not None
    store.save(400, {"model": {"x": torch.tensor([400.0])}}, {"state": {"step": 400}})
    store.wait()
    assert sorted(path.name for path in newest.iterdir()) == [
        "MANIFEST.json",
        "model.safetensors",
        "state.json",
    ]
    assert not falls_back(run)


def test_a_damaged_one_is_not_counted_among_those_to_keep(run: Storage, newest: Path) -> None:
    (newest / "model.safetensors").write_bytes(b"")
    store = CheckpointStore(run, keep=2)
    assert store.newest() is not None
    store.save(600, {"model": {"x": torch.tensor([600.0])}}, {"state": {"step": 600}})
    store.wait()
    assert store.steps() == [200, 600]
    assert newest.exists()


def test_when_all_are_damaged_there_is_none(run: Storage) -> None:
    for entry in run.list("checkpoints"):
        run.write(entry.key, b"")
    assert CheckpointStore(run, keep=2).newest() is None
