"""What the operating system refuses is one line with what helps, wherever it appears."""

import errno
import os
from collections import namedtuple
from pathlib import Path

import pytest

from aae_dist.cli.main import report_error
from aae_dist.config.load import absolute_storage
from aae_dist.data.format import patterns
from aae_dist.errors import DataError, LaunchError, StorageError
from aae_dist.launch.ray import cluster
from aae_dist.storage import local, open_storage
from aae_dist.storage.bucket import bucket_errors

Usage = namedtuple("Usage", "free")


def test_a_name_that_is_too_long_is_one_line(tmp_path: Path) -> None:
    folder = open_storage(str(tmp_path))
    name = "a" * 300
    for use in (
        lambda: folder.write(name, b""),
        lambda: folder.create(name, b""),
        lambda: folder.read(name),
        lambda: folder.size(name),
        lambda: folder.stat(name),
        lambda: open_storage(f"{tmp_path}/{name}").check_writable(),
    ):
        with pytest.raises(LaunchError, match=r"^/[^\n]*too long \(255 bytes\)") as caught:
            use()
        assert len(str(caught.value)) < 320


def test_the_longest_name_that_is_possible_is_written(tmp_path: Path) -> None:
    folder = open_storage(str(tmp_path))
    folder.write("é" * 127, b"1")
    assert folder.read("é" * 127) == b"1"


def test_a_full_temporary_folder_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    free = {str(tmp_path): 0}
    monkeypatch.setattr(local.shutil, "disk_usage", lambda p: Usage(free.get(str(p), 1 << 40)))
    assert report_error(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"aae-dist: {tmp_path}: no space left on the device. Free some")
    assert message.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (FileNotFoundError(2, "No usable temporary directory found in ['/tmp']"), "Set TMPDIR"),
        (OSError(errno.EROFS, "Read-only file system", "/x"), "/x: the file system is read-only"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "/y"), "/y: a name in it"),
        (PermissionError(errno.EACCES, "Permission denied", "/z"), "/z: no permission"),
        (OSError(errno.EMFILE, "Too many open files", "/w"), "ulimit -n"),
        (OSError(errno.EFBIG, "File too large", "/v"), "ulimit -f"),
    ],
)
def test_such_an_error_ends_a_command_with_one_line_and_code_2(
    error: OSError, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report_error(error) == 2
    assert words in capsys.readouterr().err


def test_a_place_where_no_folder_can_be_made_is_one_line() -> None:
    with pytest.raises(LaunchError, match="^/proc/aae: the file system is read-only"):
        open_storage("/proc/aae/runs").write("a", b"")


def test_another_error_of_the_system_stays_an_internal_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert report_error(OSError(errno.EBADF, "Bad file descriptor")) == 1
    assert "please report it" in capsys.readouterr().err


def test_a_long_temporary_path_under_ray_is_told_what_helps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", "/tmp/" + "a" * 125)
    text = cluster._why_no_ray(OSError("AF_UNIX path length cannot exceed 107 bytes: /tmp/aaa"))
    assert "RAY_TMPDIR=/tmp" in text
    assert "130 letters in TMPDIR" in text
    assert "RAY_ADDRESS" not in text
    assert "RAY_ADDRESS" not in cluster._why_no_ray(RuntimeError("timed out"))
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert "Check RAY_ADDRESS" in cluster._why_no_ray(RuntimeError("no answer"))


@pytest.mark.parametrize("uri", ["pipe:cat a.tar", "s3:/bucket/a.tar", "gs:bucket/a", "cmd:x.tar"])
def test_a_mistyped_address_is_not_looked_for_as_a_file(uri: str) -> None:
    assert absolute_storage(uri) == uri
    with pytest.raises(DataError, match="is not supported; give a path or s3://"):
        patterns.find(uri)


def test_a_relative_path_with_a_colon_stays_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute_storage("day:1/a.tar") == f"{tmp_path}/day:1/a.tar"


@pytest.mark.parametrize("query", ["X-Amz-Signature=canary", "sig=canary&sv=1", "download=1"])
def test_a_signed_address_is_told_that_it_is_one(query: str) -> None:
    url = f"https://host/shards/000.tar?{query}"
    for look in (lambda: patterns.find(url), lambda: patterns.check_present([url], look_here=True)):
        with pytest.raises(DataError, match="an address with a query is not supported") as caught:
            look()
        assert "canary" not in str(caught.value)


def test_a_profile_that_is_not_read_is_mentioned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "research")
    for uri, is_mentioned in (("s3://b/x", True), ("gs://b/x", False)):
        with pytest.raises(StorageError) as caught, bucket_errors(uri):
            raise ValueError("missing credential")
        assert ("AWS_PROFILE is set, but profiles" in str(caught.value)) == is_mentioned
