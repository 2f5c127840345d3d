import json
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.shards import write_shards

from aae_dist.data.index import build_index, open_manifest
from aae_dist.errors import DataError
from aae_dist.storage import open_storage


def test_a_manifest_beside_the_shards_is_used_by_itself(tmp_path: Path) -> None:
    paths = write_shards(tmp_path, [3, 2])
    counted = open_manifest(str(tmp_path))
    address, manifest = build_index(str(tmp_path))
    assert Path(address) == tmp_path / "manifest.json"
    assert json.loads(Path(address).read_bytes())["shards"][0]["samples"] == 3
    paths[0].write_bytes(b"damaged, but nobody reads it until a sample is wanted")
    for urls in (str(tmp_path), address, [str(path) for path in paths]):
        assert open_manifest(urls).id == manifest.id == counted.id


def test_shards_that_the_manifest_lacks_are_counted(tmp_path: Path) -> None:
    write_shards(tmp_path, [3])
    build_index(str(tmp_path))
    write_shards(tmp_path, [3, 2])
    assert open_manifest(f"{tmp_path}/*.tar").counts.tolist() == [3, 2]


def test_indexing_again_sees_new_shards_and_mends_a_damaged_manifest(tmp_path: Path) -> None:
    write_shards(tmp_path, [3])
    build_index(str(tmp_path))
    write_shards(tmp_path, [3, 2])
    assert build_index(str(tmp_path))[1].num_samples == 5
    (tmp_path / "manifest.json").write_text("{")
    assert build_index(str(tmp_path))[1].num_samples == 5


def test_one_manifest_can_span_folders_and_lie_elsewhere(tmp_path: Path) -> None:
    write_shards(tmp_path / "a", [2])
    write_shards(tmp_path / "b", [1])
    out = tmp_path / "elsewhere" / "all.json"
    build_index([f"{tmp_path}/a", f"{tmp_path}/b"], out)
    shards = open_manifest(str(out)).shards
    assert [(shard.name, shard.samples) for shard in shards] == [("a/000.tar", 2), ("b/000.tar", 1)]
    assert shards[0].folder == str(tmp_path)


def test_a_bucket_is_indexed_in_place(s3: Callable[[], str], tmp_path: Path) -> None:
    bucket = open_storage(s3())
    for path in write_shards(tmp_path, [3, 2]):
        bucket.upload(path.name, path)
    address, manifest = build_index(f"{bucket.uri}/{{000..001}}.tar")
    assert address == f"{bucket.uri}/manifest.json"
    assert open_manifest(bucket.uri).id == manifest.id


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    paths = write_shards(tmp_path, [3, 2])
    paths[1].write_bytes(paths[1].read_bytes()[:1000])
    with pytest.raises(DataError, match=r"001\.tar: cut off"):
        build_index(str(tmp_path))
    assert not (tmp_path / "manifest.json").exists()
