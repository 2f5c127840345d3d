"""`encode` and `reconstruct` over whole data sets, from the command line."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.shards import SIDE, image_of, write_shards
from helpers.trained import save_run
from webdataset import TarWriter

import aae_dist
from aae_dist.cli import main
from aae_dist.config.sections.run import Data
from aae_dist.data import open_dataset
from aae_dist.storage import open_storage

COUNTS = (300, 0, 5)
SHAPE = (1, SIDE, SIDE)


@pytest.fixture
def run(tmp_path: Path) -> str:
    save_run(tmp_path / "run", shape=SHAPE)
    return str(tmp_path / "run")


@pytest.fixture
def shards(tmp_path: Path) -> str:
    write_shards(tmp_path / "shards", COUNTS)
    return str(tmp_path / "shards")


def contents(folder: str | Path) -> dict[str, bytes]:
    storage = open_storage(str(folder))
    return {entry.key: storage.read(entry.key) for entry in storage.list()}


def expected(run: str, chunk: int) -> torch.Tensor:
    """Encode as the plainest program would, but in shards and in chunks of `chunk`."""
    images = torch.stack([torch.from_numpy(image_of(n))[None] for n in range(sum(COUNTS))])
    trained = aae_dist.load_run(run)
    parts = [part for shard in images.split(COUNTS) for part in shard.split(chunk)]
    return torch.cat([trained.encode(part) for part in parts if len(part)])


def test_codes_keys_and_labels_come_in_order_one_row_a_sample(
    run: str, shards: str, tmp_path: Path
) -> None:
    dataset = pytest.importorskip("pyarrow.dataset")
    out = tmp_path / "codes"
    assert main(["encode", run, shards, "--out", str(out)]) == 0
    table = dataset.dataset(str(out), format="parquet").to_table()
    assert table["key"].to_pylist() == [f"{n:06d}" for n in range(305)]
    assert table["label"].to_pylist() == [n % 10 for n in range(305)]
    assert np.array_equal(np.array(table["code"].to_pylist(), np.float32), expected(run, 256))
    about = json.loads((out / "_about.json").read_bytes())
    assert about["complete"]
    assert [(s["file"], s["samples"], s["source"]) for s in about["shards"]] == [
        ("000000.parquet", 300, "000.tar"),
        ("000001.parquet", 0, "001.tar"),
        ("000002.parquet", 5, "002.tar"),
    ]


def test_npy_holds_the_same_without_pyarrow(
    run: str, shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    out = tmp_path / "codes"
    assert main(["encode", run, shards, "--format", "npy", "--out", str(out)]) == 0
    codes = np.concatenate([np.load(path) for path in sorted(out.glob("*.codes.npy"))])
    keys = np.concatenate([np.load(path) for path in sorted(out.glob("*.keys.npy"))])
    labels = np.concatenate([np.load(path) for path in sorted(out.glob("*.labels.npy"))])
    assert codes.dtype == np.float32
    assert np.array_equal(codes, expected(run, 256))
    assert keys.tolist() == [f"{n:06d}" for n in range(305)]
    assert labels.tolist() == [n % 10 for n in range(305)]


def test_a_sample_without_a_label_has_none(run: str, shards: str, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    argv = ["encode", run, shards, "--out", str(tmp_path / "codes"), "data.label_key=null"]
    assert main(argv) == 0
    table = parquet.read_table(tmp_path / "codes" / "000000.parquet")
    assert table["label"].null_count == 300


def test_an_interrupted_command_goes_on_with_equal_bytes(
    run: str, shards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for out in (whole, broken):
        assert main(["encode", run, shards, "--out", str(out)]) == 0
    about = json.loads((broken / "_about.json").read_bytes())
    del about["shards"]
    (broken / "_about.json").write_text(json.dumps({**about, "complete": False}))
    (broken / "000002.parquet").unlink()
    kept = (broken / "000000.parquet").stat().st_mtime_ns
    capsys.readouterr()
    assert main(["encode", run, shards, "--out", str(broken)]) == 0
    assert "2 of 3 shards were there already" in capsys.readouterr().out
    assert contents(whole) == contents(broken)
    assert (broken / "000000.parquet").stat().st_mtime_ns == kept
    assert main(["encode", run, shards, "--out", str(broken)]) == 0
    assert "complete already" in capsys.readouterr().out


def test_a_folder_of_something_else_is_refused(
    run: str, shards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    codes = str(tmp_path / "codes")
    assert main(["encode", run, shards, "--out", codes]) == 0
    save_run(run, step=8, shape=SHAPE)
    for argv, problem in (
        (
            ["encode", run, shards, "--out", codes],
            "(other step: 7 there, 8 asked for, weights); give another --out, or empty it",
        ),
        (
            ["encode", run, shards, "--step", "7", "--format", "npy", "--out", codes],
            '(other format: "parquet" there, "npy" asked for)',
        ),
        (
            ["encode", run, shards, "--step", "7", "--out", codes, "data.resize=cover"],
            '(other resize: null there, "cover" asked for)',
        ),
        (["encode", run, shards, "--out", shards], "is not empty; give another --out"),
        (["encode", run, f"{shards}/no-*.tar", "--out", codes], "no-*.tar"),
        (["encode", run, shards, "--out", codes, "launch.worker=2"], "launch.workers"),
        (
            ["encode", run, shards, "--out", codes, "data.channels=2"],
            "channels: null there, 2 asked for",
        ),
    ):
        assert main(argv) == 2, argv
        err = capsys.readouterr().err
        assert problem in err
        assert "Traceback" not in err
    assert main(["encode", run, shards, "--step", "7", "--out", codes]) == 0


def test_a_command_that_wrote_no_shard_leaves_the_folder_free(
    run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["encode", run, "builtin://digits/validation", "--out", str(tmp_path / "codes")]
    assert main(argv) == 2
    assert "28 x 28 pixels, wanted 4 x 4" in capsys.readouterr().err
    assert main([*argv, "data.resize=cover"]) == 0


def test_a_damaged_shard_leaves_the_others_and_no_half(
    run: str, shards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "index", shards]) == 0
    last = Path(shards) / "002.tar"
    good = last.read_bytes()
    last.write_bytes(good[:700] + bytes(len(good) - 700))
    out = tmp_path / "codes"
    assert main(["encode", run, shards, "--out", str(out)]) == 2
    assert "002.tar" in capsys.readouterr().err
    assert sorted(p.name for p in out.iterdir()) == [
        *("000000.parquet", "000001.parquet", "_about.json")
    ]
    last.write_bytes(good)
    assert main(["encode", run, shards, "--out", str(out)]) == 0
    assert json.loads((out / "_about.json").read_bytes())["complete"]


def test_from_bucket_to_bucket(
    run: str,
    shards: str,
    s3: Callable[[], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    bucket = open_storage(s3())
    for folder, prefix in ((run, "runs/a"), (shards, "data")):
        for key, data in contents(folder).items():
            bucket.write(f"{prefix}/{key}", data)
    far = [f"{bucket.uri}/runs/a", f"{bucket.uri}/data/*.tar", "--out", f"{bucket.uri}/codes"]
    assert main(["encode", *far]) == 0
    assert main(["encode", run, shards, "--out", str(tmp_path / "codes")]) == 0
    far_files, near_files = contents(f"{bucket.uri}/codes"), contents(tmp_path / "codes")
    for files in (far_files, near_files):
        del files["_about.json"]  # it names the run
    assert far_files == near_files


def test_reconstructions_are_shards_that_can_be_trained_on(
    run: str, shards: str, tmp_path: Path
) -> None:
    out = tmp_path / "reconstructed"
    assert main(["reconstruct", run, shards, "--out", str(out)]) == 0
    settings = Data(train=str(out))
    data = open_dataset(settings.train, settings)
    images, labels = data.read(range(305))
    assert data.keys([0, 304]) == ["000000", "000304"]
    assert labels.tolist() == [n % 10 for n in range(305)]
    originals = torch.stack([torch.from_numpy(image_of(n))[None] for n in range(305)])
    wanted = aae_dist.load_run(run).reconstruct(originals) * 255
    assert (images - wanted).abs().max() <= 0.51


def test_vectors_are_encoded_and_reconstructed_too(tmp_path: Path) -> None:
    dataset = pytest.importorskip("pyarrow.dataset")
    rows = np.random.default_rng(0).normal(0, 9, (40, 6)).astype(np.float32)
    np.save(tmp_path / "rows.npy", rows)
    argv = ["data", "pack", "npy", "--root", str(tmp_path / "rows.npy")]
    assert main([*argv, "--out", str(tmp_path / "data")]) == 0
    shards = str(tmp_path / "data/train")
    data = {"train": shards, "image_keys": ("npy",)}
    model = {"decoder_output": "linear", "latent_dim": 3}
    save_run(tmp_path / "run", shape=(1, 1, 6), data=data, model=model)
    run = str(tmp_path / "run")
    assert main(["encode", run, shards, "--out", str(tmp_path / "codes")]) == 0
    assert main(["reconstruct", run, shards, "--out", str(tmp_path / "again")]) == 0
    settings = [Data(train=str(tmp_path / d), image_keys=("npy",)) for d in ("data/train", "again")]
    originals, again = (open_dataset(each.train, each) for each in settings)
    every = range(len(originals))
    vectors = originals.read(every)[0]
    table = dataset.dataset(str(tmp_path / "codes"), format="parquet").to_table()
    trained = aae_dist.load_run(run)
    codes = np.array(table["code"].to_pylist(), np.float32)
    assert np.array_equal(codes, trained.encode(vectors).numpy())
    assert torch.equal(again.read(every)[0], trained.reconstruct(vectors))


@pytest.mark.parametrize("channels", [2, 4, 5])
def test_arrays_of_any_channels_are_reconstructed_as_arrays(tmp_path: Path, channels: int) -> None:
    rows = np.random.default_rng(0).random((20, channels, 4, 6), np.float32)
    (tmp_path / "shards").mkdir()
    with TarWriter(str(tmp_path / "shards/0.tar")) as writer:
        for number, row in enumerate(rows):
            writer.write({"__key__": f"{number}", "npy": (row * 255).astype(np.uint8)})
    shards = str(tmp_path / "shards")
    data = {"train": shards, "image_keys": ("npy",)}
    save_run(tmp_path / "run", shape=(channels, 4, 6), data=data)
    run, again = str(tmp_path / "run"), str(tmp_path / "again")
    assert main(["reconstruct", run, shards, "--out", again]) == 0
    settings = [Data(train=folder, image_keys=("npy",)) for folder in (shards, again)]
    originals, written = (open_dataset(each.train, each).read(range(20))[0] for each in settings)
    assert originals.dtype == torch.uint8
    assert torch.equal(written, aae_dist.load_run(run).reconstruct(originals))
