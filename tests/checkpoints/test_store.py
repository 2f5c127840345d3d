"""Checkpoints come back to the last bit, or not at all."""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from aae_dist.checkpoints.format import Checkpoint
from aae_dist.checkpoints.store import CheckpointStore
from aae_dist.data.bad_samples import BadSample, BadSamples, Limits
from aae_dist.errors import CheckpointError, DataError, LaunchError
from aae_dist.storage import Storage, open_storage


@pytest.fixture(params=["local", "s3"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "local":
        return open_storage(str(tmp_path / "run"))
    make_bucket: Callable[[], str] = request.getfixturevalue("s3")
    return open_storage(make_bucket() + "/run")


@pytest.fixture
def local(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path / "run"))


def state(step: int) -> tuple[dict[str, dict[str, Tensor]], dict[str, dict[str, object]]]:
    tensors = {
        "model": {"weight": torch.full((2, 3), float(step)), "bias": torch.tensor(step / 3)},
        "optimizer-encoder": {"step": torch.tensor(step)},
    }
    return tensors, {"state": {"step": step, "seeds": [1, 2], "name": "é"}}


def save(store: CheckpointStore, step: int, best: bool = False) -> None:
    store.save(step, *state(step), best=best)
    store.wait()


def assert_is_of_step(saved: Checkpoint | None, step: int) -> None:
    assert saved is not None
    tensors, metadata = state(step)
    assert saved.step == step
    assert saved.metadata == metadata
    assert saved.tensors.keys() == tensors.keys()
    for name, group in tensors.items():
        assert saved.tensors[name].keys() == group.keys()
        assert all(torch.equal(saved.tensors[name][key], group[key]) for key in group)


def test_what_was_saved_comes_back(run: Storage) -> None:
    store = CheckpointStore(run, keep=3)
    assert store.newest() is None
    save(store, 200)
    save(store, 400)
    fresh = CheckpointStore(run, keep=3)
    assert_is_of_step(fresh.newest(), 400)
    assert_is_of_step(fresh.load(200), 200)
    assert fresh.steps() == [200, 400]


def test_the_folder_has_the_promised_layout(run: Storage) -> None:
    save(CheckpointStore(run, keep=3, attempt=7), 200)
    files = ["MANIFEST.json", "model.safetensors", "optimizer-encoder.safetensors", "state.json"]
    assert [entry.key for entry in run.list()] == [
        f"checkpoints/step-000000200/{name}" for name in files
    ]
    manifest = json.loads(run.read("checkpoints/step-000000200/MANIFEST.json"))
    assert manifest["step"] == 200
    assert manifest["attempt"] == 7
    assert manifest["schema_version"] == 1
    assert list(manifest)[-1] == "sha256"


def held_up_until(opened: threading.Event) -> Callable[[], None]:
    """Return a check of the fencing that holds the save up, as a slow bucket would."""

    def check() -> None:
        assert opened.wait(30)

    return check


def test_saving_does_not_wait_and_does_not_see_later_changes(local: Storage) -> None:
    opened = threading.Event()
    store = CheckpointStore(local, keep=2, check_fencing=held_up_until(opened))
    tensors, metadata = state(200)
    store.save(200, tensors, metadata)
    tensors["model"]["weight"].fill_(-1.0)
    metadata["state"]["step"] = -1
    assert store.seconds_blocked < 5
    assert store.steps() == []
    opened.set()
    store.wait()
    assert_is_of_step(store.newest(), 200)
    assert store.last_bytes > 0
    assert store.last_seconds > 0


def test_a_second_save_waits_for_the_first_and_the_wait_is_measured(local: Storage) -> None:
    opened = threading.Event()
    store = CheckpointStore(local, keep=2, check_fencing=held_up_until(opened))
    store.save(200, *state(200))
    threading.Timer(0.3, opened.set).start()
    started = time.monotonic()
    store.save(400, *state(400))
    assert time.monotonic() - started > 0.2
    assert store.seconds_blocked > 0.2
    store.wait()
    assert store.steps() == [200, 400]


def test_a_failed_save_surfaces_at_the_next_call_and_only_once(tmp_path: Path) -> None:
    store = CheckpointStore(open_storage(str(tmp_path / "run")), keep=2)
    save(store, 200)
    folder = tmp_path / "run" / "checkpoints"
    folder.rename(tmp_path / "away")
    folder.write_text("a file where the folder was")
    store.save(400, *state(400))
    with pytest.raises(LaunchError, match="a file, not a folder"):
        store.save(600, *state(600))
    folder.unlink()
    (tmp_path / "away").rename(folder)
    save(store, 800)
    assert store.steps() == [200, 800]


# Before clearing the folder, before each of the three files, before the manifest.
@pytest.mark.parametrize("num_passes", range(5))
def test_a_writer_that_was_replaced_commits_nothing(run: Storage, num_passes: int) -> None:
    passes = iter(range(100))

    def check() -> None:
        if next(passes) == num_passes:
            raise LaunchError("taken over")

    save(CheckpointStore(run, keep=2), 200)
    store = CheckpointStore(run, keep=2, check_fencing=check)
    store.save(400, *state(400))
    with pytest.raises(LaunchError, match="taken over"):
        store.wait()
    assert_is_of_step(store.newest(), 200)
    assert store.steps() == [200]


def test_the_newest_and_the_best_are_kept(run: Storage) -> None:
    store = CheckpointStore(run, keep=2)
    for step in range(100, 700, 100):
        save(store, step, best=step in (100, 200))
    assert store.steps() == [200, 500, 600]
    save(CheckpointStore(run, keep=1), 700, best=True)
    assert run.folders("checkpoints") == ["step-000000700"]


def test_an_unfinished_save_is_ignored_quietly_and_swept_later(
    run: Storage, caplog: pytest.LogCaptureFixture
) -> None:
    store = CheckpointStore(run, keep=2)
    save(store, 200)
    run.write("checkpoints/step-000000400/model.safetensors", b"half")
    run.write("checkpoints/notes.txt", b"a user's own")
    assert_is_of_step(CheckpointStore(run, keep=2).newest(), 200)
    assert not caplog.records
    save(store, 600)
    assert run.folders("checkpoints") == ["step-000000200", "step-000000600"]
    assert run.read("checkpoints/notes.txt") == b"a user's own"


def test_the_step_just_loaded_is_not_written_again_but_may_become_the_best(run: Storage) -> None:
    save(CheckpointStore(run, keep=1, attempt=1), 200)
    store = CheckpointStore(run, keep=1, attempt=2)
    store.newest()
    save(store, 200)
    assert b'"attempt":1,"best":false' in run.read("checkpoints/step-000000200/MANIFEST.json")
    save(store, 200, best=True)
    assert b'"attempt":1,"best":true' in run.read("checkpoints/step-000000200/MANIFEST.json")
    save(store, 400)
    assert store.steps() == [200, 400]
    assert_is_of_step(CheckpointStore(run, keep=1).load(200), 200)


def test_loading_a_step_that_is_not_there_says_which_are(local: Storage) -> None:
    store = CheckpointStore(local, keep=2)
    save(store, 200)
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 300. There are \[200\]"):
        store.load(300)


def test_metadata_that_could_not_be_read_is_not_written(
    local: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(local, keep=2)
    save(store, 200)
    monkeypatch.setattr("aae_dist.checkpoints.format.MAX_METADATA_BYTES", 1000)
    tensors, metadata = state(400)
    with pytest.raises(CheckpointError, match="state.json is larger than 1000 bytes"):
        store.save(400, tensors, {"state": {**metadata["state"], "long": " " * 1000}})
    assert {entry.key.split("/")[1] for entry in local.list()} == {"step-000000200"}
    save(store, 600)
    assert store.steps() == [200, 600]


# Ordinary ones up to their greatest number, and the longest ones up to their bytes.
@pytest.mark.parametrize(
    ("name", "text", "a_step", "most"),
    [
        pytest.param("train-000000.tar", "x" * 100, 1000, 100_000, marks=pytest.mark.run),
        ("\U0001f600" * 1020 + ".tar", "\U0001f600" * 200, 100, 1900),
    ],
    ids=["ordinary", "longest"],
)
def test_the_longest_list_of_bad_samples_is_saved_and_read_back(
    local: Storage, name: str, text: str, a_step: int, most: int
) -> None:
    bad, document = BadSamples(), BadSamples().document()

    def list_more(step: int) -> None:
        samples = range(a_step * step, a_step * (step + 1))
        holes = [BadSample(0, name, n, text, "image", text) for n in samples]
        bad.add(holes, np.ones(8, np.bool_), step, 0)
        bad.check(Limits(10**6, None, 1.0, 10**6))
        if a_step * (step + 1) >= most:
            document.update(bad.document())

    with pytest.raises(DataError, match="a run can list, whatever it allows"):
        list(map(list_more, range(101)))
    assert len(document["entries"]) == most
    store = CheckpointStore(local, keep=1)
    store.save(1, {}, {"state": {"bad_samples": document}})
    store.wait()
    saved = store.newest()
    assert saved is not None
    assert saved.metadata["state"]["bad_samples"] == document
