"""What every storage promises, on the local disk and on an S3 server over HTTP alike."""

from collections.abc import Callable
from pathlib import Path

import pytest

from aae_dist.errors import LaunchError
from aae_dist.storage import Storage, open_storage


@pytest.fixture(params=["local", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "local":
        return open_storage(str(tmp_path / "runs" / "one"))
    make_bucket: Callable[[], str] = request.getfixturevalue("s3")
    return open_storage(make_bucket() + "/runs/one/")


def test_what_was_written_is_read_back(storage: Storage) -> None:
    storage.write("a/b.bin", b"\0\xff" * 1000)
    assert storage.read("a/b.bin") == b"\0\xff" * 1000
    assert storage.size("a/b.bin") == 2000


def test_writing_again_replaces(storage: Storage) -> None:
    storage.write("x", b"long old bytes")
    storage.write("x", b"new")
    assert storage.read("x") == b"new"


def test_an_empty_file_is_a_file(storage: Storage) -> None:
    storage.write("empty", b"")
    assert storage.read("empty") == b""
    assert storage.size("empty") == 0


def test_an_absent_file_is_file_not_found_and_has_no_size(storage: Storage) -> None:
    with pytest.raises(FileNotFoundError):
        storage.read("absent/file")
    with pytest.raises(FileNotFoundError):
        storage.read_range("absent/file", 0, 4)
    assert storage.size("absent/file") is None


@pytest.mark.parametrize(
    ("start", "length", "expected"),
    [(0, 3, b"012"), (4, 2, b"45"), (8, 99, b"89"), (10, 5, b""), (50, 5, b"")],
)
def test_a_range_is_cut_at_the_end_of_the_file(
    storage: Storage, start: int, length: int, expected: bytes
) -> None:
    storage.write("digits", b"0123456789")
    assert storage.read_range("digits", start, length) == expected


def test_create_refuses_what_exists(storage: Storage) -> None:
    assert storage.create("lock", b"first")
    assert not storage.create("lock", b"second")
    assert storage.read("lock") == b"first"


def test_replace_needs_the_bytes_it_expects(storage: Storage) -> None:
    storage.write("lock", b"one")
    assert not storage.replace("lock", b"three", expected=b"two")
    assert storage.read("lock") == b"one"
    assert storage.replace("lock", b"two", expected=b"one")
    assert storage.read("lock") == b"two"


def test_replace_of_an_absent_file_is_refused(storage: Storage) -> None:
    assert not storage.replace("folder/lock", b"new", expected=b"")
    assert storage.size("folder/lock") is None


def test_listing_is_recursive_sorted_and_has_sizes(storage: Storage) -> None:
    for key in ("b/2", "a", "b/1/x", "bb"):
        storage.write(key, key.encode())
    storage.create("lock", b"1")
    found = [(entry.key, entry.size) for entry in storage.list()]
    assert found == [("a", 1), ("b/1/x", 5), ("b/2", 3), ("bb", 2), ("lock", 1)]
    assert [entry.key for entry in storage.list("b")] == ["b/1/x", "b/2"]
    assert storage.list("absent") == []


def test_folders_are_the_names_one_level_below(storage: Storage) -> None:
    assert storage.folders() == []
    for key in ("b/2", "a", "b/1/x", "c/y"):
        storage.write(key, b"")
    assert storage.folders() == ["b", "c"]
    assert storage.folders("b") == ["1"]
    assert storage.folders("absent") == []


def test_delete_removes_and_does_not_mind_absence(storage: Storage) -> None:
    storage.write("x/y", b"1")
    storage.delete("x/y")
    storage.delete("x/y")
    assert storage.size("x/y") is None


def test_clear_removes_one_folder_only(storage: Storage) -> None:
    for key in ("step-1/a", "step-1/b/c", "step-10/a"):
        storage.write(key, b"")
    storage.clear("step-1")
    storage.clear("absent")
    assert [entry.key for entry in storage.list()] == ["step-10/a"]
    assert storage.folders() == ["step-10"]


def test_a_child_is_the_folder_below(storage: Storage) -> None:
    child = storage.child("checkpoints").child("step-1")
    child.write("x", b"1")
    assert storage.read("checkpoints/step-1/x") == b"1"
    assert child.uri == storage.uri + "/checkpoints/step-1"
    assert [entry.key for entry in child.list()] == ["x"]
    assert open_storage(child.uri).read("x") == b"1"


@pytest.mark.parametrize("name", ["with space.png", "é.png", "100%.png", "a#b?c&d.png", "a+b=c"])
def test_odd_names_survive(storage: Storage, name: str) -> None:
    storage.write(f"pictures/{name}", b"png")
    assert storage.read(f"pictures/{name}") == b"png"
    assert [entry.key for entry in storage.list("pictures")] == [f"pictures/{name}"]


@pytest.mark.parametrize("key", ["", "/etc/passwd", "../x", "a/../b", "a//b", "a/", ".", "a\0b"])
def test_a_key_that_leaves_the_folder_is_refused(storage: Storage, key: str) -> None:
    with pytest.raises(LaunchError, match="is no storage key"):
        storage.read(key)
    with pytest.raises(LaunchError, match="is no storage key"):
        storage.write(key, b"")


def test_large_files_travel_whole(storage: Storage, tmp_path: Path) -> None:
    data = bytes(range(256)) * (20 << 12)
    (tmp_path / "source").write_bytes(data)
    storage.upload("large/file", tmp_path / "source")
    assert storage.read("large/file") == data


def test_checking_a_good_place_leaves_nothing(storage: Storage) -> None:
    storage.check_writable()
    assert storage.list() == []


def test_a_folder_with_files_below_is_not_empty(storage: Storage) -> None:
    assert storage.is_empty()
    storage.write("a/b", b"x")
    assert not storage.is_empty()
    assert not storage.child("a").is_empty()
    assert storage.child("other").is_empty()
