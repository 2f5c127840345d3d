import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.shards import write_shards

from aae_dist.data.format.manifest import Shard
from aae_dist.data.index import build as building
from aae_dist.data.index.build import Journal, build_index, open_manifest
from aae_dist.errors import DataError
from aae_dist.storage import open_storage


def test_a_manifest_next_to_the_shards_is_used(tmp_path: Path) -> None:
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


def test_all_damaged_shards_are_named_and_the_others_counted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    paths = write_shards(tmp_path / "a", [3, 2, 4, 1])
    whole = paths[1].read_bytes()
    paths[1].write_bytes(whole[:1000])
    paths[3].write_bytes(b"")
    with pytest.raises(DataError) as caught:
        build_index(str(tmp_path / "a"))
    lines = str(caught.value).splitlines()
    assert lines[0] == "2 of 4 shards cannot be counted:"
    assert lines[1].startswith(f"  {paths[1]}: cut off")
    assert lines[2].startswith(f"  {paths[3]}: the file is empty")
    assert "the same command then counts no other shard again" in lines[3]
    assert not (tmp_path / "a" / "manifest.json").exists()
    read: list[str] = []
    plain = building._num_samples

    def noted(shard: Shard, *rest: Any) -> Any:
        read.append(shard.name)
        return plain(shard, *rest)

    monkeypatch.setattr(building, "_num_samples", noted)
    paths[1].write_bytes(whole)
    paths[3].unlink()
    assert build_index(str(tmp_path / "a"))[1].num_samples == 9
    assert read == ["001.tar"]


def test_of_many_damaged_shards_the_first_are_named(tmp_path: Path) -> None:
    for path in write_shards(tmp_path, [1] * 30):
        path.write_bytes(b"no tar")
    with pytest.raises(DataError) as caught:
        open_manifest(str(tmp_path))
    lines = str(caught.value).splitlines()
    assert lines[0] == "30 of 30 shards cannot be counted:"
    assert [line.split(": ")[0][-7:] for line in lines[1:21]] == [
        f"{number:03d}.tar" for number in range(20)
    ]
    assert lines[21] == "  and 10 more"
    assert "aae-dist data index" in lines[22]


def test_lists_of_one_folder_keep_their_own_notes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    one, other = Shard("/data", "a.tar", 3, 10), Shard("/data", "b.tar", 4, 11)
    for shard in (one, other):
        with Journal([shard.url]) as journal:
            assert journal.entries == {}
            journal.add(shard, "v1")
    Journal([one.url]).remove()
    assert Journal([one.url, other.url]).entries == {other.url: (other, "v1")}
    Journal([other.url]).remove()
    assert not list((tmp_path / "home" / "aae_dist-index").iterdir())


def test_without_a_home_the_notes_lie_in_the_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shards(tmp_path / "a", [3])
    (tmp_path / "file").write_text("no folder can be made below it")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    assert build_index(str(tmp_path / "a"))[1].num_samples == 3
    assert [path.name for path in (tmp_path / "temporary").iterdir()] == [
        f"aae_dist-index-{os.getuid()}"
    ]
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "file"))
    with pytest.raises(DataError, match=r"cannot be used \(File exists\)\. Set XDG_CACHE_HOME"):
        build_index(str(tmp_path / "a"))
