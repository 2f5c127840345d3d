"""Files made by somebody who means harm: refused in one line, and the canary is untouched."""

import contextlib
import hashlib
import io
import json
import pickle
import struct
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.equality import seal

import aae_dist
from aae_dist.checkpoints.store import CheckpointStore
from aae_dist.config import load_config
from aae_dist.config.yaml import YamlProblem, parse
from aae_dist.data.format.manifest import parse as parse_manifest
from aae_dist.data.index.build import index_folder
from aae_dist.errors import AaeDistError, CheckpointError, ConfigError
from aae_dist.models.own import import_network
from aae_dist.storage import open_storage


class Payload:
    """An object whose pickle makes a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return Path.touch, (self.canary,)


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return a run folder with one checkpoint, of step 200."""
    storage = open_storage(str(tmp_path / "run"))
    store = CheckpointStore(storage, keep=2)
    store.save(200, {"model": {"x": torch.ones(2)}}, {"state": {"step": 200}})
    store.wait()
    return tmp_path / "run" / "checkpoints" / "step-000000200"


def put(folder: Path, name: str, data: bytes) -> None:
    """Place a file and a manifest that vouches for it, as only somebody who may write here can."""
    (folder / name).write_bytes(data)
    files = {
        p.name: {"sha256": hashlib.sha256(p.read_bytes()).hexdigest(), "size": p.stat().st_size}
        for p in folder.iterdir()
        if p.name != "MANIFEST.json"
    }
    manifest = {"attempt": 1, "best": False, "files": files, "schema_version": 1, "step": 200}
    (folder / "MANIFEST.json").write_bytes(seal(manifest))


def load(folder: Path) -> Any:
    return CheckpointStore(open_storage(str(folder.parents[1])), keep=2).load(200)


def test_pickles_beside_a_checkpoint_are_never_opened(run: Path, canary: Path) -> None:
    for name in ("model.pt", "model.pkl", ".metadata", "data.pkl", "model.safetensors.pt"):
        (run / name).write_bytes(pickle.dumps(Payload(canary)))
    assert load(run).step == 200
    assert not canary.exists()


@pytest.mark.parametrize("name", ["model.safetensors", "state.json"])
def test_a_pickle_in_the_place_of_a_file_is_not_parsed(name: str, run: Path, canary: Path) -> None:
    put(run, name, pickle.dumps(Payload(canary)))
    with pytest.raises(CheckpointError, match=f"{name} cannot be parsed"):
        load(run)
    assert not canary.exists()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("model.safetensors", struct.pack("<Q", 2**63)),  # a header of 8 EiB
        ("model.safetensors", struct.pack("<Q", 2) + b"{}" + b"x" * 10),
        (
            "model.safetensors",
            struct.pack("<Q", 66)
            + b'{"x":{"dtype":"F32","shape":[9999999999],"data_offsets":[0,8]}}   '[:66]
            + b"\0" * 8,
        ),
        ("state.json", b"[" * 200_000),
        ("state.json", b"\xff\xfe"),
    ],
)
def test_a_file_that_lies_about_itself_is_refused(name: str, data: bytes, run: Path) -> None:
    put(run, name, data)
    with pytest.raises(CheckpointError, match="cannot be parsed"):
        load(run)


def test_a_document_too_large_to_be_one_is_never_read(run: Path, monkeypatch) -> None:
    monkeypatch.setattr("aae_dist.checkpoints.format.MAX_METADATA_BYTES", 1000)
    put(run, "state.json", b" " * 2000)
    with pytest.raises(CheckpointError, match="larger than 1000 bytes"):
        load(run)


@pytest.mark.parametrize(
    "name", ["../../canary.json", "/etc/passwd.json", "a/b.json", "..\\x.json", "x.pkl", ""]
)
def test_a_manifest_cannot_name_files_elsewhere(name: str, run: Path, tmp_path: Path) -> None:
    (tmp_path / "canary.json").write_text("{}")
    record = {"sha256": hashlib.sha256(b"{}").hexdigest(), "size": 2}
    manifest = {
        "attempt": 1,
        "best": False,
        "files": {name: record},
        "schema_version": 1,
        "step": 200,
    }
    (run / "MANIFEST.json").write_bytes(seal(manifest))
    with pytest.raises(CheckpointError):
        load(run)


@pytest.mark.parametrize("path", ["os:system", "builtins:exec", "subprocess:Popen", "pathlib:Path"])
def test_a_saved_configuration_cannot_call_what_it_names(path: str, tmp_path: Path) -> None:
    from aae_dist.config.sections.model import CustomPrior, OwnNetwork
    from aae_dist.priors import build_prior

    arguments = {"args": ["touch", str(tmp_path / "canary")]}
    custom = CustomPrior(path=path, arguments=arguments)
    with pytest.raises(ConfigError, match="does not derive from"):
        build_prior(custom, 2)
    with pytest.raises(ConfigError, match=r"must be a torch\.nn\.Module"):
        import_network("encoder", OwnNetwork(path=path, arguments=arguments), {})
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("name", ["../canary.tar", "/canary.tar", "a\\..\\b.tar", "x.pkl"])
def test_a_data_manifest_cannot_name_shards_elsewhere(name: str) -> None:
    document = {"version": 1, "shards": [{"name": name, "samples": 1, "bytes": 1}]}
    with pytest.raises(AaeDistError):
        parse_manifest(
            json.dumps(document).encode(), "here", "s3://bucket/data", may_point_elsewhere=False
        )


def test_a_shard_with_paths_and_links_writes_nothing(tmp_path: Path, canary: Path) -> None:
    shard = tmp_path / "shards" / "000.tar"
    shard.parent.mkdir()
    with tarfile.open(shard, "w") as tar:
        for name in ("../canary", str(canary), "a/../../canary.png"):
            entry = tarfile.TarInfo(name)
            entry.size = 3
            tar.addfile(entry, io.BytesIO(b"bad"))
        link = tarfile.TarInfo("x.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with contextlib.suppress(AaeDistError):
        index_folder(shard.parent)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["shards"]


@pytest.mark.parametrize(
    "text",
    [
        "x: !!python/object/apply:os.system ['touch canary']",
        "x: !!python/name:os.system",
        "x: !python/module:os",
        "a: &a [1,1,1,1,1,1,1,1,1]\n"
        + "\n".join(
            f"{b}: &{b} [{', '.join(['*' + a] * 9)}]"
            for a, b in zip("abcdefgh", "bcdefghi", strict=True)
        ),
        "x: " + "[" * 5000 + "]" * 5000,
        "a: &a [*a]",
    ],
)
def test_a_configuration_is_data_only(text: str, tmp_path: Path) -> None:
    with pytest.raises(YamlProblem):
        parse(text, "x.yaml")


@pytest.mark.parametrize("name", ["../x", "/x", "a/b", "", ".hidden", "x" * 200, "a\nb"])
def test_the_name_of_a_run_is_no_path(name: str) -> None:
    items = ["data.train=builtin://digits/train", "train.steps=1", f"run.name={json.dumps(name)}"]
    with pytest.raises(ConfigError, match=r"run\.name"):
        load_config([], items)


def test_load_run_refuses_a_run_whose_checkpoint_was_made_up(run: Path, canary: Path) -> None:
    put(run, "config.json", json.dumps({"run": {"name": "x"}, "data": 3}).encode())
    with pytest.raises(AaeDistError):
        aae_dist.load_run(str(run.parents[1]))
    assert not canary.exists()
