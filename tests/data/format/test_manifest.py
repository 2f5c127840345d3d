import json

import pytest

from aae_dist.data.format.manifest import Manifest, Shard, dump, parse
from aae_dist.errors import DataError

SHARDS = [Shard("/d", "a.tar", 3, 10240), Shard("/d", "sub/b.tar.gz", 0, 99, etag="x")]


def parsed(document: object, elsewhere: bool = False) -> Manifest:
    data = document if isinstance(document, bytes) else json.dumps(document).encode()
    return parse(data, "manifest.json", "/d", may_point_elsewhere=elsewhere)


def test_what_is_dumped_parses_to_the_same() -> None:
    assert parsed(dump(SHARDS)).shards == tuple(SHARDS)


def test_the_id_depends_on_names_and_counts_alone() -> None:
    moved = [Shard("s3://b", s.name, s.samples, s.bytes + 1) for s in SHARDS]
    assert Manifest(tuple(moved)).id == Manifest(tuple(SHARDS)).id
    assert Manifest(tuple(reversed(SHARDS))).id != Manifest(tuple(SHARDS)).id
    more = (Shard("/d", "a.tar", 4, 10240), SHARDS[1])
    assert Manifest(more).id != Manifest(tuple(SHARDS)).id


def test_the_id_is_fixed_for_ever() -> None:
    # It is stored in checkpoints: another id would refuse to resume them.
    assert Manifest(tuple(SHARDS)).id == GOLDEN_ID


def test_a_local_manifest_may_name_another_folder_and_a_remote_one_may_not() -> None:
    data = dump(SHARDS, "s3://bucket/train")
    assert parsed(data, elsewhere=True).shards[0].url == "s3://bucket/train/a.tar"
    with pytest.raises(DataError, match="local manifest only"):
        parsed(data)


GOOD = {"name": "a.tar", "samples": 1, "bytes": 1}


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ({**GOOD, "samples": -1}, '"samples" must be an integer'),
        ({**GOOD, "samples": 2**63}, '"samples" must be an integer'),
        ({**GOOD, "samples": True}, '"samples" must be an integer'),
        ({**GOOD, "samples": 1.0}, '"samples" must be an integer'),
        ({**GOOD, "bytes": None}, '"bytes" must be an integer'),
        ({**GOOD, "name": "../a.tar"}, "must stay below"),
        ({**GOOD, "name": "/etc/a.tar"}, "must stay below"),
        ({**GOOD, "name": "x/../../a.tar"}, "must stay below"),
        ({**GOOD, "name": "s3://other/a.tar"}, "must stay below"),
        ({**GOOD, "name": "a\n.tar"}, "must stay below"),
        ({**GOOD, "name": "x" * 2000 + ".tar"}, "must be a path"),
        ({**GOOD, "name": "passwd"}, "must be a path"),
        ({**GOOD, "name": 3}, "must be a path"),
        ({**GOOD, "etag": 3}, '"etag" must be a text'),
        ("a.tar", "instead of an object"),
    ],
)
def test_a_wrong_entry_is_refused(entry: object, problem: str) -> None:
    with pytest.raises(DataError, match=problem) as caught:
        parsed({"version": 1, "shards": [entry]})
    assert "data index" in str(caught.value)


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        (b"{", "is not JSON"),
        (b"[" * 200_000, "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        ([], "instead of an object"),
        ({"version": 2, "shards": []}, "version 2 is not 1"),
        ({"version": 1}, '"shards" is not a list'),
        ({"version": 1, "shards": [GOOD, GOOD]}, "listed twice"),
    ],
)
def test_a_wrong_document_is_refused(document: object, problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        parsed(document)


GOLDEN_ID = "d364ddeb6dd3786278cba692c6d84e3337c0bd4e39f48623758262db3a44cc6c"
