"""Addresses and manifests that are no data: refused by one line, nothing run, read or asked."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from helpers.shards import write_shards
from helpers.watch import nothing_but

from aae_dist.config.sections.run import Cache, Data
from aae_dist.data import open_dataset, open_manifest
from aae_dist.errors import DataError

ADDRESSES = [
    "pipe:touch canary",
    " pipe:touch canary",
    "PIPE:touch canary",
    "pipe:touch canary #.tar",
    "file:///etc/passwd",
    "-o/tmp/x",
    "--output=canary.tar",
    "x;touch canary.tar",
    "$(touch canary).tar",
    "`touch canary`.tar",
    "a.tar|touch canary",
    "http://169.254.169.254/latest/meta-data/a.tar",
    "https://169.254.169.254/latest/meta-data/a.tar",
    "https://user:secret@127.0.0.1/a.tar",
    "ftp://127.0.0.1/a.tar",
    "https://127.0.0.1:1/x;touch canary",
    "https://127.0.0.1:1/*",
    "ais://bucket/a.tar",
    "htgs://bucket/a.tar",
    "javascript:alert(1)",
    "{0..99999999999}.tar",
    "{0..99999}{0..99999}.tar",
    "${HOME}/a.tar",
    "a::b.tar",
    "",
    " ",
    "\0.tar",
    "a\n.tar",
]


def test_a_pattern_of_a_bucket_that_cannot_be_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without an account obstore would ask the machine's metadata server for a role.
    key = {"gcs_base_url": "http://127.0.0.1:1", "disable_oauth": True, "client_email": ""}
    (tmp_path / "key.json").write_text(json.dumps({**key, "private_key": "", "private_key_id": ""}))
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", str(tmp_path / "key.json"))
    with pytest.raises(DataError, match=r"^gs://b: .*\.$") as caught:
        open_manifest("gs://b/*")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_address_that_is_no_shard_is_refused(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    started = time.monotonic()
    with nothing_but(tmp_path), pytest.raises(DataError) as caught:
        open_manifest(address)
    assert time.monotonic() - started < 10
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)
    assert not list(tmp_path.rglob("canary*"))


def manifest(folder: Path, *entries: Any, **fields: Any) -> str:
    document = {"version": 1, "shards": list(entries), **fields}
    (folder / "manifest.json").write_text(json.dumps(document))
    return str(folder)


def entry(name: str = "000.tar", samples: Any = 2, size: Any = 10240) -> dict[str, Any]:
    return {"name": name, "samples": samples, "bytes": size}


LIES = {
    "path upwards": entry("../../etc/passwd.tar"),
    "absolute path": entry("/etc/passwd.tar"),
    "pipe": entry("pipe:touch canary #.tar"),
    "another scheme": entry("http://169.254.169.254/a.tar"),
    "negative count": entry(samples=-1),
    "count of 2^63": entry(samples=2**63),
    "count that is true": entry(samples=True),
    "count that is NaN": entry(samples=float("nan")),
    "count that is a text": entry(samples="2"),
    "size of 2^64": entry(size=2**64),
    "no name": {"samples": 1, "bytes": 1},
    "no object": "000.tar",
}


@pytest.mark.parametrize("name", LIES)
def test_a_manifest_that_lies_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_shards(tmp_path, [2])
    url = manifest(tmp_path, LIES[name])
    settings = Data(train=url, cache=Cache(dir=str(tmp_path / "cache")))
    with nothing_but(tmp_path), pytest.raises(DataError):
        open_dataset(settings.train, settings)
    assert not list(tmp_path.rglob("canary*"))


@pytest.mark.parametrize(
    "text", ["", "[]", "{", "[" * 100_000, '{"version": 1}', '{"version": 2, "shards": []}', "\0"]
)
def test_a_file_that_is_no_manifest_is_refused(text: str, tmp_path: Path) -> None:
    write_shards(tmp_path, [2])
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(DataError, match=r"manifest\.json"):
        open_manifest(str(tmp_path))


def test_a_shard_listed_twice_is_refused(tmp_path: Path) -> None:
    write_shards(tmp_path, [2])
    with pytest.raises(DataError, match="twice"):
        open_manifest(manifest(tmp_path, entry(), entry()))


def test_the_index_of_another_shard_or_size_is_no_data(tmp_path: Path) -> None:
    write_shards(tmp_path, [2, 3])
    size = (tmp_path / "000.tar").stat().st_size
    settings = Data(
        train=manifest(tmp_path, entry("000.tar", 3, size), entry("001.tar", 3, size + 1))
    )
    with pytest.raises(DataError, match="the manifest says"):
        open_dataset(settings.train, settings)
