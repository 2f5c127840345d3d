"""A listing has the size and the tag of each shard: counting asks for nothing of that again."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.faulty_proxy import FaultyProxy, proxying
from helpers.shards import write_shards

from aae_dist.data.format.manifest import Shard
from aae_dist.data.format.patterns import find
from aae_dist.data.index.build import (
    _num_threads,
    build_index,
    count_shard,
    listed_shards,
    open_manifest,
)
from aae_dist.errors import ShardError
from aae_dist.storage import Storage, open_storage

NUM_SHARDS = 4


@pytest.fixture
def proxy(s3_server: str) -> Iterator[FaultyProxy]:
    with proxying(s3_server) as proxy:
        yield proxy


@pytest.fixture
def folder(
    s3: Callable[[], str], proxy: FaultyProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Storage:
    folder = open_storage(s3() + "/shards")
    paths = write_shards(tmp_path / "shards", [3] * NUM_SHARDS)
    for path in paths:
        folder.upload(path.name, path)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.address)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return open_storage(folder.uri)


@pytest.mark.parametrize("pattern", ["", "/*.tar"])
def test_a_listed_shard_is_counted_by_one_request(
    folder: Storage, proxy: FaultyProxy, tmp_path: Path, pattern: str
) -> None:
    _, manifest = build_index(folder.uri + pattern, tmp_path / "m.json")
    assert [shard.samples for shard in manifest.shards] == [3] * NUM_SHARDS
    assert all(shard.etag and shard.bytes > 0 for shard in manifest.shards)
    asked = [line for line in proxy.requests if line.endswith(".tar")]
    assert len(asked) == NUM_SHARDS
    assert {line.split()[0] for line in asked} == {"GET"}


def test_a_shard_that_changes_after_the_listing_is_not_counted_as_the_listed_one(
    folder: Storage,
) -> None:
    first = listed_shards(folder.uri).shards[0]
    folder.write(first.name, b"another version")
    with pytest.raises(ShardError, match="changed since it was listed"):
        count_shard(first, None, None)


def test_named_shards_have_no_listing_and_are_looked_up(folder: Storage) -> None:
    (source,) = find(f"{folder.uri}/{folder.list()[0].key}")
    assert source.entries == {}


@pytest.mark.parametrize("slashes", ["", "/", "//"])
def test_a_slash_behind_a_folder_does_not_hide_its_manifest(
    folder: Storage, proxy: FaultyProxy, slashes: str
) -> None:
    build_index(folder.uri)
    proxy.requests.clear()
    manifest = open_manifest(folder.uri + slashes)
    assert manifest.num_samples == 3 * NUM_SHARDS
    assert {shard.folder for shard in manifest.shards} == {folder.uri}
    assert not [line for line in proxy.requests if line.endswith(".tar")], "none is counted"


def test_small_shards_are_counted_many_at_once(folder: Storage, proxy: FaultyProxy) -> None:
    small = listed_shards(folder.uri).shards
    assert _num_threads(small) >= 64
    assert _num_threads([*small, replace(small[0], bytes=1 << 30)]) <= 16, "memory"
    assert _num_threads([Shard("/local", "a.tar", -1, -1)]) <= 16
