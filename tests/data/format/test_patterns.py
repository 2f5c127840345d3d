import os
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.shards import write_shards

from aae_dist.data.format import patterns
from aae_dist.data.format.patterns import expand_braces
from aae_dist.data.index.build import build_index, open_manifest
from aae_dist.errors import DataError
from aae_dist.storage import open_storage


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("a.tar", ["a.tar"]),
        ("{000..002}.tar", ["000.tar", "001.tar", "002.tar"]),
        ("{8..11}", ["8", "9", "10", "11"]),
        ("{a,b}-{0..1}", ["a-0", "a-1", "b-0", "b-1"]),
    ],
)
def test_braces_expand_left_to_right(text: str, values: list[str]) -> None:
    assert list(expand_braces(text)) == values


@pytest.mark.parametrize("text", ["{0..99999999999}", "{5..1}", "{0..9999}{0..9999}"])
def test_braces_are_bounded(text: str) -> None:
    with pytest.raises(DataError, match="names; use a range that rises"):
        expand_braces(text)


@pytest.mark.parametrize(
    "pattern", ["{000..003}.tar", "*.tar", "", "00[0-3].tar", "{000,001}.tar|00[23].tar"]
)
def test_all_ways_to_name_shards_agree(tmp_path: Path, pattern: str) -> None:
    write_shards(tmp_path, [3, 0, 1, 2])
    (tmp_path / "notes.txt").write_text("not a shard")
    urls = [f"{tmp_path}/{part}" for part in pattern.split("|")]
    shards = open_manifest(urls[0] if len(urls) == 1 else urls).shards
    assert [shard.name for shard in shards] == ["000.tar", "001.tar", "002.tar", "003.tar"]
    assert [shard.samples for shard in shards] == [3, 0, 1, 2]


def test_a_path_with_braces_that_exists_is_taken_literally(tmp_path: Path) -> None:
    write_shards(tmp_path / "a{0..1}[x]", [2])
    assert open_manifest(str(tmp_path / "a{0..1}[x]")).num_samples == 2


def test_the_same_patterns_work_in_a_bucket(s3: Callable[[], str], tmp_path: Path) -> None:
    bucket = open_storage(s3()).child("data")
    for path in write_shards(tmp_path, [3, 2]):
        bucket.upload(path.name, path)
        bucket.upload(f"other/{path.name}", path)
    for pattern in ("", "/*.tar", "/{000..001}.tar"):
        shards = open_manifest(bucket.uri + pattern).shards
        assert [(shard.name, shard.samples) for shard in shards] == [("000.tar", 3), ("001.tar", 2)]
    assert open_manifest(f"{bucket.uri}/*/000.tar").shards[0].name == "other/000.tar"


def test_what_names_nothing_is_one_clear_line(tmp_path: Path) -> None:
    write_shards(tmp_path / "both" / "train", [1])
    write_shards(tmp_path / "deep" / "a" / "b", [1])
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        (tmp_path / "photos" / name / "1.JPG").write_bytes(b"x")
    (tmp_path / "empty" / "notes").mkdir(parents=True)
    (tmp_path / "empty" / "notes" / "a.txt").write_text("x")
    (tmp_path / "file.txt").write_text("x")
    write_shards(tmp_path / "no-samples", [0, 0])
    for url, problem in {
        "absent": "no such file or folder",
        "absent.tar": "no such shard",
        "empty": "no .tar or .tar.gz file in this folder; check the path",
        "both": "in this folder; shards lie in train: name one of them",
        "deep": "in this folder; shards lie in a/b: name one of them",
        "photos": rf"image files\? `aae-dist data pack folder --root {tmp_path}/photos --out",
        "file.txt": "is no shard",
        "*.tar": "matches no .tar",
        "absent.json": "no such manifest",
        "no-samples": "2 shards without a sample",
    }.items():
        with pytest.raises(DataError, match=problem) as caught:
            open_manifest(f"{tmp_path}/{url}")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("builtin://letters/train", "Use one of builtin://digits/train, builtin://digits/valid"),
        ("builtin://../../etc", "not a built-in data set"),
        ("pipe:touch x", "not supported"),
        (" pipe:touch x.tar", "no such shard"),
        ("ftp://host/a.tar", "not supported"),
        ("http://169.254.169.254/a.tar", "not supported"),
    ],
)
def test_other_addresses_are_refused(url: str, problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        open_manifest(url)
    assert not Path("x").exists()


def test_a_missing_bucket_is_named(s3: Callable[[], str]) -> None:
    s3()
    with pytest.raises(DataError, match=r"s3://no-such-bucket.*the bucket does not exist"):
        open_manifest("s3://no-such-bucket/train")


def test_a_hint_looks_at_few_names_and_not_deep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a/b/c/d").mkdir(parents=True)
    (tmp_path / ".git").mkdir()
    for place in ("a/1", "a/b/2", "a/b/c/d/3", ".git/4"):
        (tmp_path / f"{place}.png").write_bytes(b"x")
    assert list(patterns.local_keys(str(tmp_path))) == ["a/1.png", "a/b/2.png"]
    monkeypatch.setattr(patterns, "MOST_NAMES", 2)
    assert list(patterns.local_keys(str(tmp_path))) == ["a/1.png"]


def test_a_hint_for_a_bucket(s3: Callable[[], str]) -> None:
    bucket = open_storage(s3())
    bucket.write("photos/a.png", b"x")
    with pytest.raises(DataError, match=r"image files\? `aae-dist data pack folder` makes"):
        open_manifest(bucket.uri)
    bucket.write("sets/train/000.tar", b"x")
    with pytest.raises(DataError, match="shards lie in sets/train: name one of them"):
        open_manifest(bucket.uri)


def test_the_packages_own_manifests_are_not_overwritten(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is part of aae_dist and has its manifest; give --out"):
        build_index("builtin://digits/train")
    address, manifest = build_index("builtin://digits/train", tmp_path / "train.json")
    assert (address, manifest.num_samples > 0) == (str(tmp_path / "train.json"), True)


def test_an_empty_list_and_a_shard_named_twice_are_refused(tmp_path: Path) -> None:
    [shard] = write_shards(tmp_path, [1])
    with pytest.raises(DataError, match="list of shards is empty"):
        open_manifest([])
    with pytest.raises(DataError, match="twice"):
        open_manifest([str(shard), str(tmp_path)])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_without_permission_is_one_clear_line(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)
    with pytest.raises(DataError, match="no permission"):
        open_manifest(str(closed))


@pytest.mark.parametrize(
    "pattern", ["", "/*.tar", "/{000..001}.tar", "/{008..001}/x.tar", "/manifest.json", "/000.tar"]
)
def test_data_that_is_absent_is_noticed_with_few_requests(
    s3: Callable[[], str], tmp_path: Path, pattern: str
) -> None:
    bucket = s3()
    if pattern == "/{008..001}/x.tar":
        with pytest.raises(DataError, match="range that rises"):
            patterns.check_present([bucket + pattern], look_here=False)
        return
    with pytest.raises(DataError, match="no such file or folder"):
        patterns.check_present([f"{bucket}/data{pattern}"], look_here=False)
    with pytest.raises(DataError, match="no such file or folder"):
        patterns.check_present([f"s3://no-such-bucket/data{pattern}"], look_here=False)
    open_storage(bucket).write("data/manifest.json", b"{}")
    patterns.check_present([f"{bucket}/data{pattern}"], look_here=False)


def test_a_missing_first_shard_is_left_to_the_run(s3: Callable[[], str]) -> None:
    """A manifest, or another shard, exists: the run decides what it tolerates."""
    bucket = open_storage(s3())
    bucket.write("a/001.tar", b"x")
    bucket.write("b/manifest.json", b"{}")
    for pattern in ("a/{000..999}.tar", "b/{000..999}.tar", "a/*.tar", "a"):
        patterns.check_present([f"{bucket.uri}/{pattern}"], look_here=False)


def test_what_cannot_be_read_from_here_is_left_to_other_machines(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "k")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    patterns.check_present(
        ["s3://bucket/{000..999}.tar", "http://127.0.0.1:9/a.tar"], look_here=False
    )


@pytest.mark.parametrize("pattern", ["absent", "absent/*.tar", "absent/{0..9}.tar", "m.json"])
def test_local_paths_count_only_on_the_machine_that_reads_them(
    tmp_path: Path, pattern: str
) -> None:
    patterns.check_present([f"{tmp_path}/{pattern}"], look_here=False)
    with pytest.raises(DataError, match="no such file or folder"):
        patterns.check_present([f"{tmp_path}/{pattern}"], look_here=True)
    write_shards(tmp_path / "a{0..1}[x]", [2])
    patterns.check_present([f"{tmp_path}/a{{0..1}}[x]", str(tmp_path)], look_here=True)


def test_a_builtin_data_set_is_known_by_name() -> None:
    patterns.check_present(["builtin://digits/train"], look_here=False)
    with pytest.raises(DataError, match="not a built-in"):
        patterns.check_present(["builtin://digits/testing"], look_here=False)
