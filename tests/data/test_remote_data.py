"""Training data over HTTP that goes wrong: the batches of local files, in bounded time."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from itertools import islice
from pathlib import Path

import pytest
import torch
from helpers.object_server import Fault, ObjectServer, serving
from helpers.shards import write_shards

from aae_dist.config.sections.run import Data
from aae_dist.data import BatchLoader, Dataset, SampleOrder, build_index, open_dataset
from aae_dist.data.cache import prefetch
from aae_dist.data.cache.prefetch import Schedule, ShardPrefetcher
from aae_dist.data.cache.shard_cache import ShardCache
from aae_dist.errors import ConfigError

pytestmark = pytest.mark.run  # waits for time-outs, servers or pictures

COUNTS = [6, 0, 9, 1, 7, 5, 8, 6, 4, 9, 3, 7]


@pytest.fixture
def local(tmp_path: Path) -> Path:
    write_shards(tmp_path / "shards", COUNTS)
    build_index(str(tmp_path / "shards"))
    return tmp_path / "shards"


@pytest.fixture
def server(local: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectServer]:
    with serving() as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.address)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        monkeypatch.setenv("AWS_REGION", "us-east-1")
        for path in local.iterdir():
            server.files[f"/train/{path.name}"] = path.read_bytes()
        yield server


def opened(server: ObjectServer, folder: Path, scheme: str = "http", **cache: object) -> Dataset:
    # A bucket's folder is listed; of a web server the manifest must be named.
    address = "s3://train" if scheme == "s3" else f"{server.address}/train/manifest.json"
    settings = Data.model_validate(
        {
            "train": address,
            "decoded": "none",
            "cache": {"dir": str(folder / "cache"), "shard_seconds": 3, **cache},
        }
    )
    return open_dataset(settings.train, settings)


def order_of(dataset: Dataset, window: int | str = 5) -> SampleOrder:
    return SampleOrder(dataset.manifest.counts, seed=1, global_batch_size=4, lanes=2, window=window)


def batches(dataset: Dataset, num_steps: int, window: int | str = 5) -> list[torch.Tensor]:
    order, rows = order_of(dataset, window), slice(0, 4)
    shards = ShardPrefetcher.start(dataset, order, rows, rows)
    with BatchLoader(dataset, order, rows, num_steps=num_steps, shards=shards) as loader:
        return [batch.images for batch in loader]


def check_equal(dataset: Dataset, local: Path, epochs: int = 2, window: int | str = 5) -> None:
    settings = Data(train=str(local), decoded="none")
    reference = open_dataset(settings.train, settings)
    num_steps = epochs * order_of(dataset, window).steps_per_epoch
    got, expected = batches(dataset, num_steps, window), batches(reference, num_steps, window)
    assert len(got) == num_steps
    for one, other in zip(got, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("window", [5, 20, "full"])
def test_the_batches_are_those_of_local_files(
    server: ObjectServer, local: Path, tmp_path: Path, window: int | str
) -> None:
    check_equal(opened(server, tmp_path), local, window=window)
    fetched = {path: n for path, n in server.requests.items() if path.endswith(".tar")}
    assert set(fetched.values()) == {1}, "two epochs, one download"


FAULTS: list[Fault] = [
    Fault("status", 503),
    Fault("reset", 0),
    Fault("reset", 3000),
    Fault("short", 2000),
    Fault("stall", 2000),
    Fault("etag"),
    Fault("whole"),
    Fault("long"),
]


@pytest.mark.parametrize("scheme", ["http", "s3"])
@pytest.mark.parametrize("fault", FAULTS)
def test_faults_change_neither_order_nor_counts(
    server: ObjectServer, local: Path, tmp_path: Path, fault: Fault, scheme: str, row
) -> None:
    what = f"{fault.kind} {fault.value}" if fault.value else fault.kind
    row(
        f"22{('abcdefgh' if scheme == 'http' else 'ijklmnop')[FAULTS.index(fault)]}",
        f"reading shards over {scheme.upper()}, every third: {what}",
        "the batches of local files, in the same order, in bounded time",
    )
    dataset = opened(server, tmp_path, scheme)
    for number in range(0, len(COUNTS), 3):
        server.faults[f"/train/{number:03d}.tar"] = [fault]
        if fault.kind in ("status", "reset"):
            server.faults[f"HEAD /train/{number:03d}.tar"] = [fault]
    started = time.monotonic()
    check_equal(dataset, local, epochs=1)
    assert time.monotonic() - started < 15


READ_AS_A_RANK = """
import json, sys
from hashlib import sha256
from aae_dist.config.sections.run import Data
from aae_dist.data import BatchLoader, SampleOrder, open_dataset, rank_rows
from aae_dist.data.cache.prefetch import ShardPrefetcher
rank, settings = int(sys.argv[1]), Data.model_validate_json(sys.argv[2])
dataset = open_dataset(settings.train, settings)
order = SampleOrder(dataset.manifest.counts, seed=1, global_batch_size=4, lanes=2, window=5)
rows = rank_rows(rank, 2, 2, 4)
shards = ShardPrefetcher.start(dataset, order, rows, slice(0, 4))
steps = order.steps_per_epoch
with BatchLoader(dataset, order, rows, num_steps=steps, shards=shards) as loader:
    print(json.dumps([sha256(batch.images.numpy().tobytes()).hexdigest() for batch in loader]))
"""


def test_two_ranks_of_a_node_share_one_download_through_faults(
    server: ObjectServer, local: Path, tmp_path: Path
) -> None:
    reference = open_dataset(str(local), Data(train=str(local), decoded="none"))
    steps = order_of(reference).steps_per_epoch
    expected = batches(reference, steps)
    stalled, answered = Fault("stall", 2000), ("/train/002.tar", "/train/009.tar")
    for path in answered:
        server.faults[path] = [Fault("status", 503), Fault("reset", 1000), stalled]
    settings = {
        "train": "s3://train",
        "decoded": "none",
        "cache": {"dir": str(tmp_path / "cache"), "shard_seconds": 6},
    }
    command = [sys.executable, "-c", READ_AS_A_RANK]
    ranks = [
        subprocess.Popen([*command, str(rank), json.dumps(settings)], stdout=subprocess.PIPE)
        for rank in range(2)
    ]
    got = [json.loads(rank.communicate(timeout=200)[0]) for rank in ranks]
    for rank, digests in enumerate(got):
        rows = [batch[2 * rank : 2 * rank + 2].numpy().tobytes() for batch in expected]
        assert digests == [sha256(each).hexdigest() for each in rows]
    fetched = {path: n for path, n in server.requests.items() if path.endswith(".tar")}
    assert len(fetched) == len(COUNTS) - 1
    assert all(n == 1 for path, n in fetched.items() if path not in answered), "one download a node"
    assert not any(server.faults.values()), "each fault has struck"


def test_a_small_cache_is_enough_for_what_is_open(
    server: ObjectServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = tmp_path / "large"
    write_shards(large, [20 * count for count in COUNTS])
    build_index(str(large))
    for path in large.iterdir():
        server.files[f"/train/{path.name}"] = path.read_bytes()
    with pytest.raises(ConfigError, match=r"use data\.cache\.max_bytes=(\d+)") as caught:
        batches(opened(server, tmp_path, max_bytes=700_000), 1, window=60)
    enough = int(str(caught.value).split("max_bytes=")[1].split()[0])
    assert enough < 0.7 * sum(path.stat().st_size for path in large.glob("*.tar"))
    most = 0

    def reserve(cache: ShardCache, *arguments: object, **options: object) -> object:
        nonlocal most
        result = plain(cache, *arguments, **options)
        with cache._locked():
            most = max(most, cache._contents()[1])
        return result

    plain: Callable[..., object] = ShardCache._reserve
    monkeypatch.setattr(ShardCache, "_reserve", reserve)
    server.requests.clear()
    check_equal(opened(server, tmp_path, max_bytes=enough), large, epochs=2, window=60)
    assert 0.8 * enough < most <= enough
    again = sum(server.requests.values()) - 1
    # What the next epoch needs first stays, so not everything is fetched twice.
    assert len(COUNTS) - 1 < again < 2 * (len(COUNTS) - 1)


def wait_for(happened: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 20
    while not happened():
        assert time.monotonic() < give_up
        time.sleep(0.01)


def test_shards_are_prefetched_in_the_order_of_need(
    server: ObjectServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefetch, "_THREADS", 1)  # several overtake one another on their way
    dataset = opened(server, tmp_path)
    order, rows = order_of(dataset), slice(0, 4)
    schedule = Schedule(order, dataset.manifest, range(2))
    needed = list(islice(schedule.ahead(range(2)), 100))
    paths = [f"/train/{dataset.manifest.shards[number].name}" for number, _, _ in needed]
    probed = [path for path in server.requests if path.endswith(".tar")]  # for the images' size
    expected = probed + [path for path in dict.fromkeys(paths) if path not in probed]
    assert len(probed) == 1
    assert len(expected) == len(COUNTS) - 1
    shards = ShardPrefetcher.start(dataset, order, rows, rows)
    assert shards is not None
    try:
        wait_for(lambda: len(server.requests) == len(expected) + 1)
        wait_for(lambda: not list(tmp_path.rglob("*.part")))
    finally:
        shards.close()
    assert [path for path in server.requests if path.endswith(".tar")] == expected
    assert order.shard_permutation(0)[0].tolist() != sorted(order.shard_permutation(0)[0].tolist())
    before = sum(server.requests.values())
    with BatchLoader(dataset, order, rows, num_steps=order.steps_per_epoch) as loader:
        assert sum(int(batch.valid.sum()) for batch in loader) == sum(COUNTS)
    assert sum(server.requests.values()) == before, "the loader finds all that it asks for"


def test_an_error_of_the_prefetcher_ends_the_run(
    server: ObjectServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = opened(server, tmp_path)
    order, rows = order_of(dataset), slice(0, 4)
    error = ConfigError("a shard that no cache takes")

    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr(ShardCache, "reserve", refuse)
    shards = ShardPrefetcher.start(dataset, order, rows, rows)
    assert shards is not None
    wait_for(lambda: shards._error is not None)
    with (
        BatchLoader(dataset, order, rows, num_steps=3, shards=shards) as loader,
        pytest.raises(ConfigError, match="a shard that no cache takes"),
    ):
        next(loader)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (Fault("status", 404), "shard missing"),
        (Fault("status", 403), "shard forbidden"),
        (Fault("status", 503), "shard unreachable"),
        (Fault("stall", 1000), "shard unreachable"),
    ],
)
def test_a_shard_that_stays_away_leaves_holes(
    server: ObjectServer, tmp_path: Path, fault: Fault, reason: str
) -> None:
    server.faults["/train/004.tar"] = [fault] * 9999
    dataset = opened(server, tmp_path, shard_seconds=0.5)
    order, rows = order_of(dataset), slice(0, 4)
    started = time.monotonic()
    shards = ShardPrefetcher.start(dataset, order, rows, rows)
    steps = order.steps_per_epoch
    with BatchLoader(dataset, order, rows, num_steps=steps, shards=shards) as loader:
        batches = list(loader)
    assert time.monotonic() - started < 20
    bad = [each for batch in batches for each in batch.bad]
    assert {each.shard for each in bad} == {"004.tar"}
    assert {each.reason for each in bad} == {reason}
    assert sorted(each.sample for each in bad) == list(range(COUNTS[4]))
    assert sum(int(batch.valid.sum()) for batch in batches) == sum(COUNTS) - COUNTS[4]


def test_evaluation_needs_no_schedule(server: ObjectServer, tmp_path: Path) -> None:
    dataset = opened(server, tmp_path, max_bytes=100_000)
    for _ in range(2):
        for first in range(0, len(dataset), 5):
            dataset.read(range(first, min(first + 5, len(dataset))))
