"""Names of members: webdataset's rule, in time that grows with their length alone."""

import itertools
import re
import time

import pytest

from aae_dist.data.format.tar import _key_and_suffix

META = re.compile(r"__[^/]*__($|/)")
WEBDATASET = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")


def slow(name: str) -> tuple[str | None, str]:
    """Return what webdataset's own expressions make of a name."""
    match = None if META.match(name) else WEBDATASET.match(name)
    return (None, "") if match is None else (match[1], match[2])


@pytest.mark.parametrize("length", range(1, 7))
def test_every_short_name_is_split_as_webdataset_splits_it(length: int) -> None:
    for letters in itertools.product("a./\n_", repeat=length):
        name = "".join(letters)
        assert _key_and_suffix(name) == slow(name), name


@pytest.mark.parametrize("end", ["x", ".x", "\n.x", "./.x"])
def test_the_longest_names_take_no_time(end: str) -> None:
    # The expression took hours for these: 500,000 slashes, each tried as the last one.
    started = time.process_time()
    assert _key_and_suffix("a/" * 500_000 + end)[1] in ("", "x")
    assert time.process_time() - started < 5
