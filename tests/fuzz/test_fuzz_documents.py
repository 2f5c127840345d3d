"""JSON documents: manifests, class maps, and what run and sweep folders and checkpoints hold."""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from helpers.equality import seal
from helpers.fuzzing import MIB, bounded, fuzz, json_values, mutated, mutated_tree
from helpers.runs import TINY
from helpers.shards import write_shards
from helpers.sweep_folders import Trial, write_sweep
from hypothesis import strategies as st

import aae_dist
from aae_dist.checkpoints.format import check_metadata
from aae_dist.checkpoints.store import CheckpointStore
from aae_dist.config import RunConfig, load_config
from aae_dist.data.format.manifest import parse as parse_manifest, parse_classes
from aae_dist.errors import DataError
from aae_dist.launch.local import launch_local
from aae_dist.storage import Storage, open_storage
from aae_dist.sweeps import read_sweep
from aae_dist.sweeps.listing import list_runs
from aae_dist.tracking.metric_log import MetricLog, newest_metrics, read_records
from aae_dist.training.checkpointer import finished_before
from aae_dist.training.folder import RunFolder, check_marker, write_marker
from aae_dist.training.recorder import Recorder

DOCUMENT_BYTES = 128 * MIB


def texts(seeds: list[Any]) -> st.SearchStrategy[bytes]:
    """Draw documents: changed as trees or as bytes, or any other JSON value."""
    encoded = [json.dumps(seed).encode() for seed in seeds]
    trees = mutated_tree(seeds) | json_values()
    # surrogatepass: JSON of another program may hold lone surrogates.
    as_json = trees.map(lambda tree: json.dumps(tree).encode("utf-8", "surrogatepass"))
    return st.one_of(as_json, as_json, mutated(encoded))


MANIFESTS = [
    {
        "version": 1,
        "folder": "/d",
        "classes": {"cat": 0, "dog": 1},
        "shards": [
            {"name": "a.tar", "samples": 3, "bytes": 10240},
            {"name": "b/c.tar.gz", "samples": 0, "bytes": 9, "etag": "x", "unused": 1},
        ],
    }
]
CLASSES = [["cat", "dog"], {"cat": 0, "dog": 7}]


@fuzz(data=texts(MANIFESTS), local=st.booleans())
def test_manifests(data: bytes, local: bool) -> None:
    with bounded("manifest", data, DOCUMENT_BYTES):
        found = parse_manifest(data, "here/manifest.json", "/d", may_point_elsewhere=local)
        assert found.num_samples >= 0
        assert all(shard.url for shard in found.shards)
        assert len(found.id) == 64


@fuzz(data=texts(CLASSES))
def test_class_maps(data: bytes) -> None:
    with bounded("classes", data, DOCUMENT_BYTES):
        assert all(number >= 0 for number in parse_classes(data, "classes.json").values())


# The folder of a run, trained once; each case damages one of its documents.


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    storage, shards = tmp_path_factory.mktemp("runs"), tmp_path_factory.mktemp("shards")
    write_shards(shards, (100,))
    items = [*TINY, f"run.storage={storage}", "run.name=x", "train.steps=20", "launch.kind=local"]
    data = [f"data.train={shards}", f"data.validation={shards}"]
    config = load_config([], [*items, *data, "checkpoint.every_steps=10"]).config
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Recorder, "_draw", lambda recorder, shown: None)  # pictures
        launch_local(config)
    return config


def documents(run: RunConfig) -> Storage:
    return open_storage(f"{run.run.storage}/{run.run.name}")


@pytest.fixture(scope="module")
def sound(run: RunConfig) -> dict[str, bytes]:
    """Return the files of the run as it left them."""
    return {e.key: documents(run).read(e.key) for e in documents(run).list()}


@contextmanager
def damaged(run: RunConfig, sound: Mapping[str, bytes], **files: bytes) -> Iterator[Storage]:
    """Replace files of the run, by key, inside."""
    folder = documents(run)
    for key, data in files.items():
        folder.write(key, data)
    try:
        yield folder
    finally:
        for key in files:
            folder.write(key, sound[key])
        for mark in [e.key for e in folder.list("checkpoints") if e.key not in sound]:
            folder.delete(mark)


CHECKPOINT = "checkpoints/step-000000020"
MANIFEST = f"{CHECKPOINT}/MANIFEST.json"


@fuzz(share=0.5, data=st.data(), key=st.sampled_from(("summary.json", "run.json")))
def test_summaries_and_run_records(run: RunConfig, sound: Any, data: Any, key: str) -> None:
    case = data.draw(texts([json.loads(sound[key])]))
    with damaged(run, sound, **{key: case}):
        with bounded(key, case, DOCUMENT_BYTES):
            list_runs(open_storage(run.run.storage))
        with bounded(key, case, DOCUMENT_BYTES):
            finished_before(run)
        with bounded(key, case, DOCUMENT_BYTES):
            RunFolder(run).register(run, 20)


@fuzz(share=0.5, data=st.data(), step=st.integers(0, 30))
def test_metrics_in_segments(sound: Any, tmp_path_factory: Any, data: Any, step: int) -> None:
    lines = sound["metrics.jsonl"]
    folder = open_storage(str(tmp_path_factory.getbasetemp() / "metrics"))
    digest = [{"latest": {"step": 10, "loss/x": 1.0}, "alarms": {"a": 3}, "curves": {
        "loss/x": {"stride": 1, "seen": 2, "x": [1, 2], "y": [0.5, 0.25]}}}]  # fmt: skip
    parts = st.one_of(
        mutated([lines]), st.lists(texts([json.loads(lines.split(b"\n")[0])])).map(b"\n".join)
    )
    folder.clear("metrics")
    first, last = data.draw(st.integers(0, 12)), data.draw(st.integers(0, 40))
    name = f"metrics/{first:012d}-{last:012d}.jsonl"
    case = {
        "metrics.jsonl": data.draw(parts),
        name: data.draw(parts),
        f"metrics/{last:012d}.json": data.draw(texts(digest)),
        data.draw(st.sampled_from(("metrics/1-2.jsonl", "metrics/x", "metrics/" + "9" * 40))): b"x",
    }
    for key, text in case.items():
        folder.write(key, text)
    shown = b"\n\n".join(case.values())
    with bounded("metrics", shown, DOCUMENT_BYTES):
        assert all(isinstance(record["step"], int) for record in read_records(folder))
        newest_metrics(folder)
    with bounded("metrics", shown, DOCUMENT_BYTES):
        log = MetricLog(folder, step)
        log.history.points()
        log.log({"step": 50, "epoch": 1, "samples_seen": 5, "loss/x": 1.0})
        log.truncate(max(0, step - 1))
        log.upload()


@fuzz(share=0.3, data=st.data())
def test_checkpoint_documents(run: RunConfig, sound: Any, data: st.DataObject) -> None:
    """Documents and tensors whose checkpoint's manifest fits them: changed on purpose."""
    manifest = json.loads(sound[MANIFEST])
    name = data.draw(st.sampled_from(sorted(manifest["files"])))
    old = sound[f"{CHECKPOINT}/{name}"]
    case = data.draw(texts([json.loads(old)]) if name.endswith("json") else mutated([old]))
    fields = {key: value for key, value in manifest.items() if key != "sha256"}
    fields["files"] |= {name: {"sha256": sha256(case).hexdigest(), "size": len(case)}}
    with damaged(run, sound, **{f"{CHECKPOINT}/{name}": case, MANIFEST: seal(fields)}) as folder:
        with bounded("checkpoint", case, DOCUMENT_BYTES):
            aae_dist.load_run(folder.uri)
        with bounded("checkpoint", case, DOCUMENT_BYTES):
            check_metadata(CheckpointStore(folder, keep=2).load(20))


@fuzz(share=0.3, data=st.data(), is_sealed=st.booleans())
def test_checkpoint_manifests(run: RunConfig, sound: Any, data: Any, is_sealed: bool) -> None:
    fields = {k: v for k, v in json.loads(sound[MANIFEST]).items() if k != "sha256"}
    if is_sealed:
        case = seal(data.draw(mutated_tree([fields]).filter(lambda tree: isinstance(tree, dict))))
    else:
        case = data.draw(mutated([sound[MANIFEST]]))
    with damaged(run, sound, **{MANIFEST: case}) as folder:
        store = CheckpointStore(folder, keep=2, report=lambda line: None)
        with bounded("checkpoint manifest", case, DOCUMENT_BYTES):
            store.newest()
        with bounded("checkpoint manifest", case, DOCUMENT_BYTES):
            store.load(20)
        with bounded("checkpoint manifest", case, DOCUMENT_BYTES):
            store.best()


@fuzz(share=0.3, data=st.binary(max_size=80) | st.text(max_size=40).map(str.encode))
def test_markers_of_a_shared_folder(tmp_path_factory: Any, data: bytes) -> None:
    folder = open_storage(str(tmp_path_factory.getbasetemp() / "marker"))
    folder.write(".nonce", data)
    with bounded("marker", data):
        check_marker(folder, write_marker(folder))


# The folder of a sweep.


@pytest.fixture(scope="module")
def sweep(run: RunConfig, sound: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    told = {"step": 20, "metrics": json.loads(sound["summary.json"])["metrics"]}
    trained = Trial({"model.latent_dim": 2}, told=told)
    trials = [trained, Trial({"model.latent_dim": 4}, 0, "failed")]
    folder = write_sweep(tmp_path_factory.mktemp("sweeps") / "s", trials)
    shutil.copytree(Path(run.run.storage, "x"), folder / "trials" / trained.id, dirs_exist_ok=True)
    return folder


@fuzz(share=0.5, data=st.data())
def test_sweeps_and_trials(sweep: Path, data: st.DataObject) -> None:
    paths = [sweep / "sweep.json", *sorted(sweep.glob("trials/*/trial.json"))]
    for path in paths:
        sound = path.read_bytes()
        case = data.draw(texts([json.loads(sound)]))
        path.write_bytes(case)
        with bounded("sweep", case, DOCUMENT_BYTES):
            found = read_sweep(str(sweep))
            assert found.counts()
        with bounded("sweep", case, DOCUMENT_BYTES):
            list_runs(open_storage(str(sweep.parent)))
        path.write_bytes(sound)


def test_a_class_map_of_half_a_surrogate_is_refused() -> None:
    with pytest.raises(DataError):
        parse_classes(b'["\\ud800"]', "classes.json")
