"""Listings of a bucket in which other programs have left keys that are no legal names."""

import urllib.parse
import urllib.request
from collections.abc import Callable

import pytest

from aae_dist.errors import LaunchError
from aae_dist.storage import open_storage


@pytest.fixture
def bucket(s3: Callable[[], str], s3_server: str) -> tuple[str, Callable[[str], None]]:
    """Return a bucket's address and a function that stores an object under any key."""
    uri = s3()

    def put(key: str) -> None:
        path = urllib.parse.quote(f"/{uri.removeprefix('s3://')}/{key}")
        request = urllib.request.Request(s3_server + path, method="PUT", data=b"x")
        urllib.request.urlopen(request, timeout=30).close()

    return uri, put


@pytest.mark.parametrize("odd", ["runs//stray", "runs/../x", "runs/./y", "runs//a/b//c"])
def test_one_odd_key_never_hides_a_listing(
    bucket: tuple[str, Callable[[str], None]], odd: str, caplog: pytest.LogCaptureFixture
) -> None:
    uri, put = bucket
    for key in ("runs/0/a", "runs/first/config.yaml", "runs/second/deep/b", odd):
        put(key)
    runs = open_storage(f"{uri}/runs")
    assert runs.folders() == ["0", "first", "second"]
    assert [e.key for e in runs.list()] == ["0/a", "first/config.yaml", "second/deep/b"]
    assert sum("no legal name" in line for line in caplog.messages) == 1


def test_an_odd_key_deep_in_a_folder_hides_nothing_beside_it(
    bucket: tuple[str, Callable[[str], None]],
) -> None:
    uri, put = bucket
    for key in ("d/-a.tar", "d/b.tar", "d/x//y", "d/x/z", "d/y/1"):
        put(key)
    found = open_storage(f"{uri}/d").list()
    assert [e.key for e in found] == ["-a.tar", "b.tar", "x/z", "y/1"]


def test_what_cannot_be_listed_past_is_named_in_one_line(
    bucket: tuple[str, Callable[[str], None]],
) -> None:
    uri, put = bucket
    for key in ("d/a", "d/b\x1b[31m", "d/c"):
        put(key)
    with pytest.raises(LaunchError, match=r"d/b.x1b.*Rename or delete") as raised:
        open_storage(f"{uri}/d").list()
    assert "\n" not in str(raised.value)
    assert "\x1b" not in str(raised.value)
