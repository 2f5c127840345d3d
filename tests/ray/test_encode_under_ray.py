"""Whole data sets through Ray workers, on a real cluster."""

from collections import Counter
from pathlib import Path

import pyarrow.dataset
import pytest
from helpers.trained import save_run
from webdataset import TarWriter

from aae_dist.cli import main
from aae_dist.data import open_manifest
from aae_dist.data.format.reader import ShardReader

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]


def write_digits(folder: Path) -> None:
    """Write the 10,000 shipped digits to 10 shards, with a key of its own for each."""
    folder.mkdir()
    shards = [
        s for n in ("train", "validation") for s in open_manifest(f"builtin://digits/{n}").shards
    ]
    for number, shard in enumerate(shards):
        reader = ShardReader(shard)
        with TarWriter(str(folder / f"{number:03d}.tar")) as writer:
            for n, key in enumerate(reader.index.keys):
                writer.write({"__key__": f"{number}-{key}", **reader.fields(n)})


def test_two_workers_write_the_bytes_of_one_process(joined, tmp_path, capsys):
    write_digits(tmp_path / "digits")
    save_run(tmp_path / "run")
    argv = ["encode", str(tmp_path / "run"), str(tmp_path / "digits"), "--out"]
    assert main([*argv, str(tmp_path / "one")]) == 0
    assert main([*argv, str(tmp_path / "two"), "launch.workers=2"]) == 0
    assert "starting 2 workers" in capsys.readouterr().out
    one, two = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        for name in ("one", "two")
    )
    assert len(one) == 11
    assert one == two
    table = pyarrow.dataset.dataset(str(tmp_path / "two"), format="parquet").to_table()
    counts = Counter(table["key"].to_pylist())
    assert len(counts) == 10_000
    assert set(counts.values()) == {1}


def test_a_mistake_in_a_worker_is_one_line_and_more_than_the_cluster_has_too(
    joined, tmp_path, capsys
):
    write_digits(tmp_path / "digits")
    assert main(["data", "index", str(tmp_path / "digits")]) == 0
    with (tmp_path / "digits" / "004.tar").open("r+b") as file:
        file.seek(512)
        file.write(b"no image")
    save_run(tmp_path / "run")
    argv = ["encode", str(tmp_path / "run"), str(tmp_path / "digits"), "--out"]
    assert main([*argv, str(tmp_path / "out"), "launch.workers=2"]) == 2
    err = capsys.readouterr().err
    assert "004.tar" in err.splitlines()[-1]
    assert "Traceback" not in err
    assert main([*argv, str(tmp_path / "many"), "launch.workers=64"]) == 2
    assert "can never start" in capsys.readouterr().err
