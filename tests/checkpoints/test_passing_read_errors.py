"""A wrong answer of a storage condemns no checkpoint, and no run starts at step 0 because of it."""

import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from helpers.faulty_proxy import FaultyProxy, Rule, proxying

from aae_dist.checkpoints.store import CheckpointStore
from aae_dist.config import load_config
from aae_dist.distributed.world import World
from aae_dist.errors import CheckpointError
from aae_dist.storage import LocalStorage, Storage, base, open_storage
from aae_dist.training.checkpointer import newest_checkpoint
from aae_dist.training.folder import RunFolder
from aae_dist.training.lock import KEY, RunLock

STEPS = (200, 400)
STEP_400 = "checkpoints/step-000000400"


def fill(run: Storage) -> Storage:
    """Save the checkpoints of steps 200 and 400."""
    store = CheckpointStore(run, keep=2)
    for step in STEPS:
        store.save(step, {"model": {"x": torch.tensor([float(step)])}}, {"state": {"step": step}})
    store.wait()
    return run


def marks(run: Storage) -> list[str]:
    return [entry.key for entry in run.list() if entry.key.endswith("DAMAGED.json")]


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "_REREAD_SECONDS", (0.0, 0.0, 0.0))


@pytest.fixture
def proxy(s3_server: str) -> Iterator[FaultyProxy]:
    with proxying(s3_server) as proxy:
        yield proxy


@pytest.fixture
def remote(s3: Callable[[], str], proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> Storage:
    uri = s3() + "/run"
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.address)
    return fill(open_storage(uri))


@pytest.mark.parametrize(
    "pattern",
    [
        r"GET .*400/model.safetensors",
        r"GET .*400/MANIFEST.json",
        r"GET .*400/state.json",
        r"HEAD .*400/state.json",
        r"GET .*list-type",
    ],
)
@pytest.mark.parametrize("kind", ["other", "status"])
def test_one_wrong_answer_condemns_no_checkpoint(
    remote: Storage, proxy: FaultyProxy, pattern: str, kind: str
) -> None:
    proxy.rules.append(Rule(kind, pattern, count=1, status=404))
    found = CheckpointStore(remote, keep=2).newest()
    assert proxy.rules[0].struck == 1
    assert found is not None
    assert found.step == 400
    assert marks(remote) == []


@pytest.mark.run
def test_with_8_percent_wrong_answers_every_start_finds_the_newest(
    remote: Storage, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = random.Random(0)
    rule = Rule("other", "GET|HEAD")
    monkeypatch.setattr(rule, "takes", lambda request: draw.random() < 0.08, raising=False)
    proxy.rules.append(rule)
    for _ in range(40):
        found = CheckpointStore(remote, keep=2).newest()
        assert found is not None
        assert found.step == 400
    proxy.rules.clear()
    assert marks(remote) == []


def test_a_save_is_not_lost_to_one_wrong_answer(remote: Storage, proxy: FaultyProxy) -> None:
    proxy.rules += [Rule("other", r"GET .*600/MANIFEST", 1), Rule("other", r"GET .*600/model", 1)]
    store = CheckpointStore(remote, keep=2)
    store.save(600, {"model": {"x": torch.tensor([6.0])}}, {"state": {"step": 600}})
    store.wait()
    assert [rule.struck for rule in proxy.rules] == [1, 1]


class BadConnection(LocalStorage):
    """A folder whose first connection gives wrong bytes for as long as it lasts."""

    @property
    def uri(self) -> str:
        return f"s3://bucket{super().uri}"

    def child(self, name: str) -> "BadConnection":
        return BadConnection(self._path(name))

    def read(self, key: str) -> bytes:
        return super().read(key)[:-1] + b"?"

    def reconnected(self) -> Storage:
        return LocalStorage(self._folder)


def test_wrong_bytes_are_read_again_over_a_new_connection(tmp_path: Path) -> None:
    run = fill(open_storage(str(tmp_path)))
    found = CheckpointStore(BadConnection(tmp_path), keep=2).newest()
    assert found is not None
    assert found.step == 400
    assert marks(run) == []


def test_a_disk_that_fails_once_condemns_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = fill(open_storage(str(tmp_path)))
    read, failures = LocalStorage.read, [OSError(5, "Input/output error")]

    def failing(storage: LocalStorage, key: str) -> bytes:
        if key.endswith("model.safetensors") and failures:
            raise failures.pop()
        return read(storage, key)

    monkeypatch.setattr(LocalStorage, "read", failing)
    found = CheckpointStore(run, keep=2).newest()
    assert found is not None
    assert found.step == 400
    assert not failures
    assert marks(run) == []


def test_marked_checkpoints_are_read_again_before_a_run_falls_back_to_nothing(
    tmp_path: Path,
) -> None:
    run = fill(open_storage(str(tmp_path)))
    for step in STEPS:
        run.write(f"checkpoints/step-{step:09d}/DAMAGED.json", b"{}")
    lines: list[str] = []
    store = CheckpointStore(run, keep=2, report=lines.append)
    found = store.newest()
    assert found is not None
    assert found.step == 400
    assert "was marked as damaged, but verifies now" in lines[0]
    assert store.steps() == [400]


def damaged_run(tmp_path: Path) -> Storage:
    run = fill(open_storage(str(tmp_path / "a")))
    for step in STEPS:
        run.write(f"checkpoints/step-{step:09d}/model.safetensors", b"no tensors")
    return run


def start(tmp_path: Path, resume: str) -> object:
    items = [f"run={{name: a, storage: {tmp_path}, resume: {resume}}}", "train.steps=5"]
    config = load_config([], [*items, "data.train=x.tar"]).config
    folder = RunFolder(config)
    store = CheckpointStore(folder.storage, keep=2)
    world = World(rank=0, size=1, local_rank=0, local_size=1, device=torch.device("cpu"))
    return newest_checkpoint(store, config, folder, world)


@pytest.mark.parametrize("resume", ["auto", "must"])
def test_no_run_starts_at_step_0_beside_checkpoints_unless_asked(
    tmp_path: Path, resume: str
) -> None:
    damaged_run(tmp_path)
    for _ in range(2):  # the second start finds the marks of the first
        with pytest.raises(CheckpointError) as caught:
            start(tmp_path, resume)
        assert re.search(r"step 200: .*model\.safetensors does not match", str(caught.value))
        assert re.search(r"step 400: .*model\.safetensors does not match", str(caught.value))
        assert "run.resume=never" in str(caught.value)
        assert caught.value.exit_code == 2
    assert start(tmp_path, "never") is None


def test_a_folder_with_an_unfinished_first_save_starts_at_step_0(tmp_path: Path) -> None:
    run = open_storage(str(tmp_path / "a"))
    run.write(f"{STEP_400}/model.safetensors", b"half")
    assert start(tmp_path, "auto") is None


def test_one_wrong_answer_does_not_take_the_lock_away(remote: Storage, proxy: FaultyProxy) -> None:
    with RunLock.acquire(remote, "launch", heartbeat_seconds=60.0) as lock:
        proxy.rules.append(Rule("other", f"GET .*{KEY}", 1))
        lock.check()
        assert proxy.rules[0].struck == 1
