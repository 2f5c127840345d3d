"""Decoded samples: shared by processes, removed by the last of them, never torn."""

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.shards import write_shards

from aae_dist.config.sections.run import Data
from aae_dist.data import open_dataset
from aae_dist.data.cache.decoded import DeviceStore, SharedStore, content_id
from aae_dist.errors import DataError

SHAPE = (1, 2, 3)


def opened(folder: Path, content: str = "x", dtype: torch.dtype = torch.uint8) -> SharedStore:
    return SharedStore(content, 7, SHAPE, dtype, folder)


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_what_one_stores_another_takes(tmp_path: Path, dtype: torch.dtype) -> None:
    one, other = opened(tmp_path, dtype=dtype), opened(tmp_path, dtype=dtype)
    assert one.is_shared
    images = torch.arange(12).reshape(2, *SHAPE).to(dtype)
    one.store(np.array([5, 2]), images, torch.tensor([8, -1]))
    assert other.filled.tolist() == [n in (2, 5) for n in range(7)]
    taken, labels = other.take(np.array([2, 5, 2]))
    assert torch.equal(taken, images[[1, 0, 1]])
    assert labels.tolist() == [-1, 8, -1]
    assert not opened(tmp_path, "y", dtype).filled.any()


def test_the_last_one_removes_the_file(tmp_path: Path) -> None:
    one, other = opened(tmp_path), opened(tmp_path)
    assert len(files(tmp_path)) == 1
    del one
    assert len(files(tmp_path)) == 1
    assert not other.filled.any()
    del other
    assert files(tmp_path) == []


HOLD = """
import sys, time, torch
from pathlib import Path
from aae_dist.data.cache.decoded import SharedStore
store = SharedStore("x", 7, (1, 2, 3), torch.uint8, Path(sys.argv[1]))
store.filled[3] = True
print("ready", flush=True)
time.sleep(60)
"""


@pytest.mark.run
def test_what_a_killed_process_left_is_not_used(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    with holder.stdout:
        assert holder.stdout.readline() == "ready\n"
    assert opened(tmp_path).filled[3], "a living process is joined"
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert len(files(tmp_path)) == 1
    assert not opened(tmp_path).filled.any()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_without_room_each_process_keeps_its_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no permission to mount")
    try:
        with caplog.at_level(logging.WARNING):
            store = SharedStore("x", 100_000, SHAPE, torch.uint8, tmp_path)
        assert "not shared between the ranks" in caplog.text
        assert not store.is_shared
        store.store(np.array([1]), torch.ones(1, *SHAPE, dtype=torch.uint8), torch.tensor([3]))
        assert store.take(np.array([1]))[0].sum() == 6
        assert files(tmp_path) == []
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)


@pytest.mark.parametrize("num_samples", [1 << 46, 1 << 61])
def test_more_than_the_memory_of_the_machine_is_refused(tmp_path: Path, num_samples: int) -> None:
    with pytest.raises(
        DataError, match=r"data\.decoded=memory: the \d+ bytes .* Use data\.decoded=none"
    ):
        SharedStore("x", num_samples, (1, 1, 1), torch.uint8, tmp_path)
    assert files(tmp_path) == []


def test_shards_that_were_written_again_are_other_content(tmp_path: Path) -> None:
    settings = Data(train=str(tmp_path))
    ids = []
    for _ in range(2):
        write_shards(tmp_path, [3])
        ids.append(content_id(open_dataset(settings.train, settings).manifest, settings))
    assert ids[0] != ids[1]
    assert ids[1] == content_id(open_dataset(settings.train, settings).manifest, settings)


def test_a_device_takes_from_the_shared_memory(tmp_path: Path) -> None:
    # On the CPU as the device: the same code gathers on a GPU, which this test cannot see.
    shared = opened(tmp_path)
    store = DeviceStore(shared, torch.device("cpu"))
    images = torch.arange(12, dtype=torch.uint8).reshape(2, *SHAPE)
    store.store(np.array([5, 2]), images, torch.tensor([8, 9]))
    shared.store(np.array([0]), images[:1] + 100, torch.tensor([7]))
    for _ in range(2):
        taken, labels = store.take(np.array([0, 2, 5, 5]))
        assert torch.equal(taken, torch.stack([images[0] + 100, images[1], images[0], images[0]]))
        assert labels.tolist() == [7, 9, 8, 8]
        shared.store(np.array([0, 2, 5]), torch.zeros(3, *SHAPE).byte(), torch.zeros(3).long())


def test_a_device_takes_again_what_could_not_be_decoded_at_first(tmp_path: Path) -> None:
    shared = opened(tmp_path)
    store = DeviceStore(shared, torch.device("cpu"))
    store.take(np.array([3]))  # bad: nobody has filled it
    image = torch.full((1, *SHAPE), 9, dtype=torch.uint8)
    shared.store(np.array([3]), image, torch.tensor([4]))
    taken, labels = store.take(np.array([3]))
    assert torch.equal(taken, image)
    assert labels.tolist() == [4]


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("device", DEVICES)
def test_a_data_set_on_the_device_reads_the_same(
    tmp_path: Path, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    write_shards(tmp_path, [5, 3])
    results = []
    for kind in ("none", "memory", "device"):
        settings = Data.model_validate({"train": str(tmp_path), "decoded": kind})
        dataset = open_dataset(settings.train, settings, device=device)
        if kind == "device" and device == "cpu":
            # A CPU's data set takes the node's memory instead; here the device's path is tried.
            assert isinstance(dataset._memory, SharedStore)
            store = DeviceStore(dataset._memory, torch.device("cpu"))
            monkeypatch.setattr(dataset, "_memory", store)
        assert isinstance(dataset._memory, DeviceStore) == (kind == "device")
        results.append([dataset.read([7, 0, 7, 2])[0].cpu() for _ in range(2)])
    for first, second in results:
        assert torch.equal(first, results[0][0])
        assert torch.equal(second, results[0][0])


def test_each_stream_waits_for_the_copies_of_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    class Stream:
        def __init__(self, name: str) -> None:
            self.name = name

        def wait_event(self, event: str) -> None:
            asked.append(f"{self.name} waits for {event}")

        def record_event(self) -> str:
            return f"copies of {self.name}"

    store = DeviceStore(opened(tmp_path), torch.device("cpu"))
    for name in ("old", "new", "newest"):
        monkeypatch.setattr(store, "_stream", lambda name=name: Stream(name))
        store.take(np.array([2]))
    assert asked == ["new waits for copies of old", "newest waits for copies of new"]
