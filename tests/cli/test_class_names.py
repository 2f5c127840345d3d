"""Names of classes from a pack to what a run shows: codes, pictures, samples, W&B."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.shards import encoded

from aae_dist import load_run
from aae_dist.cli import main
from aae_dist.evaluation import pictures
from aae_dist.storage import open_storage
from aae_dist.tracking import wandb_sink
from aae_dist.training import recorder

NAMES = ("cat", "dog", "_owl", "$x^$")


@pytest.mark.run
@pytest.mark.usefixtures("pictures")
def test_names_of_classes_reach_codes_pictures_samples_and_wandb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = pytest.importorskip("pyarrow.dataset")
    for value, name in enumerate(NAMES):
        for number in range(20):
            path = tmp_path / "raw" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.full((4, 4), 60 * value + number, np.uint8)
            path.write_bytes(encoded(pixels))
    shards, runs = tmp_path / "shards", tmp_path / "runs"
    pack = ["data", "pack", "folder", "--root", str(tmp_path / "raw"), "--out", str(shards)]
    assert main([*pack, "--validation-fraction", "0.5"]) == 0
    shown: list[Any] = []
    draw = pictures.latent_codes
    monkeypatch.setattr(pictures, "latent_codes", lambda *args: shown.append(args) or draw(*args))
    opened: list[Any] = []
    monkeypatch.setattr(
        recorder,
        "open_wandb",
        lambda *args: opened.append(args[-1]),  # type: ignore[func-returns-value]
    )
    train = ["train", f"data.train={shards}/train", f"data.validation={shards}/validation"]
    train += ["run.name=a", f"run.storage={runs}", "launch.kind=local", "train.steps=5"]
    train += ["prior={kind: mixture, num_modes: 3}", "train.global_batch_size=8"]
    assert main([*train, "model.latent_dim=2"]) == 0
    labels = {name: number for number, name in enumerate(sorted(NAMES))}
    names = dict(enumerate(sorted(NAMES)))
    assert shown[-1][-2] == names
    assert opened == [labels]
    assert load_run(str(runs / "a")).classes == names
    out = tmp_path / "codes"
    assert main(["encode", str(runs / "a"), f"{shards}/train", "--out", str(out)]) == 0
    table = dataset.dataset(str(out), format="parquet").to_table().to_pylist()
    assert table
    for row in table:
        assert row["key"].split("/")[0] == row["class"] == names[row["label"]]
    capsys.readouterr()
    sample = ["sample", str(runs / "a"), "--num", "2", "--out", str(tmp_path / "a.npy")]
    assert main([*sample, "--classes", "dog,cat"]) == 0
    assert "'dog': class " in capsys.readouterr().out
    assert np.load(tmp_path / "a.npy").shape == (4, 1, 4, 4)
    assert main([*sample, "--classes", "zebra"]) == 2
    assert "'zebra' is no class of the data; it has '$x^$', '_owl'" in capsys.readouterr().err
    npy = tmp_path / "npy"
    assert (
        main(["encode", str(runs / "a"), f"{shards}/train", "--format", "npy", "--out", str(npy)])
        == 0
    )
    assert json.loads((npy / "classes.json").read_bytes()) == sorted(NAMES)


@pytest.mark.run
def test_class_maps_that_differ_between_training_and_validation_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for part, names in (("train", ("bear", "cat", "dog")), ("val", ("bear", "dog"))):
        for number in range(36):
            path = tmp_path / part / names[number % len(names)] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(np.full((4, 4), number, np.uint8)))
        pack = ["data", "pack", "folder", "--root", str(tmp_path / part), "--out"]
        assert main([*pack, str(tmp_path / f"p-{part}"), "--validation-fraction", "0"]) == 0
    train = ["train", f"data.train={tmp_path}/p-train/train"]
    train += [f"data.validation={tmp_path}/p-val/train", "run.name=a", f"run.storage={tmp_path}/r"]
    train += ["launch.kind=local", "train.steps=1", "train.global_batch_size=8"]
    assert main([*train, "model.latent_dim=2", "prior.kind=gaussian"]) == 0
    output = capsys.readouterr()
    [line] = [each for each in (output.out + output.err).splitlines() if "other numbers" in each]
    assert "'dog' is label 2 in data.train and 1 in data.validation" in line


def test_the_start_of_wandb_has_the_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    started: list[dict[str, Any]] = []
    monkeypatch.setattr(wandb_sink, "decide_mode", lambda *args: ("offline", ""))
    monkeypatch.setattr(
        wandb_sink, "start_request", lambda *args: {"config": {}, "mode": "offline"}
    )
    monkeypatch.setattr(wandb_sink, "WandbSink", lambda start, *args, **kept: started.append(start))
    config: Any = SimpleNamespace(wandb=SimpleNamespace(mode="offline"))
    storage = open_storage(str(tmp_path))
    wandb_sink.open_wandb(config, "id", storage, tmp_path, print, classes={"cat": 0})
    assert started[0]["config"]["classes"] == {"cat": 0}
