"""sample, interpolate, reconstruct and evaluate on a run with fresh weights."""

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.shards import SIDE, encoded, write_shards
from helpers.trained import save_run
from PIL import Image
from webdataset import TarWriter

import aae_dist
from aae_dist import load_run
from aae_dist.cli import main
from aae_dist.config.sections.run import Data
from aae_dist.data import open_dataset
from aae_dist.utils.arrays import npy_bytes, stratified

MIXTURE = {"kind": "mixture", "num_modes": 3}


@pytest.fixture
def run(tmp_path: Path) -> str:
    save_run(tmp_path / "run", prior=MIXTURE)
    return str(tmp_path / "run")


def test_each_class_is_a_row_of_samples(run: str, tmp_path: Path) -> None:
    for suffix in ("npy", "png"):
        out = str(tmp_path / f"x.{suffix}")
        assert main(["sample", run, "--classes", "2,0", "--num", "4", "--out", out]) == 0
    trained = aae_dist.load_run(run)
    labels = torch.tensor([2, 2, 2, 2, 0, 0, 0, 0])
    wanted = trained.sample(8, torch.Generator().manual_seed(0), labels)
    assert np.array_equal(np.load(tmp_path / "x.npy"), wanted.numpy())
    with Image.open(tmp_path / "x.png") as picture:
        assert picture.size == (6 * (4 * 29 - 1), 6 * (2 * 29 - 1))  # small images are enlarged
    assert main(["sample", run, "--classes", "all", "--num", "1", "--out", out]) == 0


@pytest.mark.parametrize(
    ("kind", "shape"),
    [("pairs", (3 * 5, 1, 28, 28)), ("plane", (5 * 5, 1, 28, 28)), ("traverse", (10, 1, 28, 28))],
)
@pytest.mark.parametrize("source", ["data", "prior"])
def test_ways_through_the_latent_space(
    run: str, tmp_path: Path, kind: str, shape: tuple[int, ...], source: str
) -> None:
    out = tmp_path / "way.npy"
    argv = ["interpolate", run, "--kind", kind, "--num", "3", "--steps", "5", "--from", source]
    assert main([*argv, "--out", str(out)]) == 0
    images = np.load(out)
    assert images.shape == shape
    assert len(np.unique(images.reshape(len(images), -1), axis=0)) > len(images) // 2
    again = tmp_path / "again.npy"
    assert main([*argv, "--out", str(again), "--seed", "1"]) == 0
    if kind != "plane":  # of two dimensions it shows the whole range, whatever the seed
        assert not np.array_equal(images, np.load(again))


def test_a_way_between_data_ends_at_the_reconstructions_of_data(run: str, tmp_path: Path) -> None:
    out = tmp_path / "way.npy"
    assert main(["interpolate", run, "--num", "2", "--steps", "3", "--out", str(out)]) == 0
    trained = aae_dist.load_run(run)
    data = trained.open()
    images, _ = data.read(range(len(data)))
    all_reconstructed = trained.reconstruct(images)
    for end in np.load(out)[[0, 2, 3, 5]]:
        nearest = (all_reconstructed - torch.from_numpy(end)).abs().amax((1, 2, 3)).min()
        assert nearest < 1e-5


@pytest.mark.parametrize(
    ("prior", "dim", "path"),
    [
        ({"kind": "gaussian"}, 8, "spherical"),
        ({"kind": "gaussian"}, 2, "linear"),
        (MIXTURE, 8, "linear"),
    ],
)
def test_the_way_fits_the_prior(prior, dim, path, tmp_path, capsys) -> None:
    save_run(tmp_path / "run", prior=prior, model={"latent_dim": dim})
    argv = ["interpolate", str(tmp_path / "run"), "--from", "prior"]
    assert main([*argv, "--out", str(tmp_path / "way.png")]) == 0
    assert f"(pairs, {path})" in capsys.readouterr().out


def test_some_reconstructions_in_a_file(run: str, tmp_path: Path) -> None:
    out = tmp_path / "r.npy"
    assert (
        main(["reconstruct", run, "builtin://digits/train", "--num", "4", "--out", str(out)]) == 0
    )
    trained = aae_dist.load_run(run)
    originals, _ = trained.open("builtin://digits/train").read(stratified(4, 8000))
    assert np.array_equal(np.load(out), trained.reconstruct(originals).numpy())
    picture = tmp_path / "r.png"
    assert main(["reconstruct", run, "--num", "9", "--out", str(picture)]) == 0
    with Image.open(picture) as opened:
        assert opened.width > 500


def test_other_data_is_evaluated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(tmp_path / "run")
    save_run(run, shape=(1, SIDE, SIDE))
    write_shards(tmp_path / "shards", (20, 30))
    argv = ["evaluate", run, "--json", "--data"]
    assert main([*argv, f"{tmp_path}/shards/000.tar", f"{tmp_path}/shards/001.tar"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["prior_match/num_samples"] == 50
    assert printed.err.startswith(f"evaluating step 7 of {run} ...\n")


def test_parzen_scores_the_data_by_decoded_samples(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(tmp_path / "run")
    save_run(run, shape=(1, SIDE, SIDE))
    write_shards(tmp_path / "shards", (20, 30))
    argv = ["evaluate", run, f"{tmp_path}/shards/001.tar", "--json"]
    assert main([*argv, "--parzen", "300"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["parzen/num_samples"] == 300
    trained = load_run(run)
    assert trained.parzen(300, f"{tmp_path}/shards/001.tar").items() <= found.items()
    assert main([*argv, "--parzen", "0"]) == 2


def digits_of(folder: Path, side: int) -> str:
    """Write a shard of 20 images of side x side pixels."""
    path = str(folder / f"{side}.tar")
    with TarWriter(path) as writer:
        for number in range(20):
            pixels = np.random.default_rng(number).integers(0, 256, (side, side), np.uint8)
            writer.write({"__key__": f"{number:03d}", "png": encoded(pixels)})
    return path


@pytest.mark.parametrize(
    "argv",
    [
        ["evaluate", "RUN", "--data", "DATA"],
        ["evaluate", "RUN", "DATA", "--json"],
        ["interpolate", "RUN", "DATA", "--num", "2", "--out", "x.npy"],
        ["reconstruct", "RUN", "DATA", "--num", "2", "--out", "x.npy"],
        ["encode", "RUN", "DATA", "--format", "npy", "--out", "codes"],
    ],
    ids=" ".join,
)
def test_images_of_another_size_are_taken_as_the_message_says(
    argv: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    places = {"RUN": str(tmp_path / "run"), "DATA": digits_of(tmp_path, 20)}
    # What training saves: everything filled in that the data decided.
    data = {"train": digits_of(tmp_path, 28), "image_size": 28, "resize": "none", "channels": 1}
    save_run(tmp_path / "run", data=data)
    command = [places.get(word, word) for word in argv]
    assert main(command) == 2
    (advice,) = re.findall(r"data\.\S+=\S+", capsys.readouterr().err)
    if "codes" in command:  # that folder is for the shards as they were read at first
        command[-1] = "others"
    assert main([*command, advice]) == 0


def test_an_override_that_would_do_nothing_is_refused(
    run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["reconstruct", run, "--out", str(tmp_path / "x.png"), "launch.workers=2"]
    assert main(argv) == 2
    assert (
        "launch.workers=2: here only data.*, evaluation.* and train.device may be overridden"
        in capsys.readouterr().err
    )
    assert main(["evaluate", run, "data.resise=cover"]) == 2
    assert "resise" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv",
    [
        ["evaluate", "RUN", "DATA"],
        ["interpolate", "RUN", "DATA", "--num", "2", "--out", "x.npy"],
        ["reconstruct", "RUN", "DATA", "--num", "2", "--out", "x.npy"],
        ["sample", "RUN", "--num", "2", "--out", "x.npy"],
    ],
    ids=" ".join,
)
def test_verbs_use_the_device_that_is_asked_for(
    argv: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    used = []

    load_run = aae_dist.load_run

    def load(uri: str, device: torch.device, checkpoint: str) -> aae_dist.TrainedRun:
        used.append(device.type)
        return load_run(uri, "cpu", checkpoint)

    monkeypatch.setattr(aae_dist, "load_run", load, raising=False)
    places = {"RUN": str(tmp_path / "run"), "DATA": digits_of(tmp_path, 28)}
    save_run(places["RUN"], data={"train": places["DATA"]})
    command = [places.get(word, word) for word in argv]
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main([*command, "train.device=cuda"]) == 2
    assert "torch sees no GPU" in capsys.readouterr().err
    assert main([*command, "train.device=auto"]) == 0
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert main([*command, "train.device=cuda"]) == 0
    assert main(command) == 0
    assert used == ["cpu", "cuda", "cpu"]
    assert main([*command, "train.device=gpu"]) == 2
    assert "train.device" in capsys.readouterr().err


def test_sample_reads_no_data(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", run, "--out", "x.npy", "data.resize=cover"]) == 2
    assert "here only train.device may be overridden" in capsys.readouterr().err


def test_a_run_of_a_gpu_is_encoded_on_a_machine_without_one(tmp_path: Path) -> None:
    save_run(tmp_path / "run", train={"steps": 9, "device": "cuda"})
    argv = ["encode", str(tmp_path / "run"), "--format", "npy", "--out", str(tmp_path / "codes")]
    assert main([*argv, "train.device=cpu"]) == 0


def test_floats_are_pictured_in_their_own_range(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).random((40, 3, 6, 6), np.float32)
    with TarWriter(str(tmp_path / "floats.tar")) as writer:
        for number, row in enumerate(rows):
            writer.write({"__key__": f"{number:03d}", "npy": npy_bytes(row)})
    data = {"train": str(tmp_path / "floats.tar"), "image_keys": ("npy",)}
    save_run(tmp_path / "run", shape=(3, 6, 6), data=data)
    out = tmp_path / "x.png"
    argv = ["reconstruct", str(tmp_path / "run"), str(tmp_path / "floats.tar"), "--num", "8"]
    assert main([*argv, "--out", str(out)]) == 0
    pixels = np.asarray(Image.open(out).convert("L"))
    top = pixels[len(pixels) // 4 : len(pixels) // 2]  # the originals, as bright as they are
    assert np.mean(top[top < 250]) > 80


@pytest.mark.parametrize("channels", [2, 4, 5])
def test_arrays_of_any_channels_are_pictured_and_written(channels: int, tmp_path: Path) -> None:
    rows = np.random.default_rng(0).integers(0, 256, (12, channels, 6, 6), np.uint8)
    (tmp_path / "in").mkdir()
    with TarWriter(str(tmp_path / "in" / "000.tar")) as writer:
        for number, row in enumerate(rows):
            buffer = io.BytesIO()
            np.save(buffer, row)
            writer.write({"__key__": f"{number:03d}", "npy": buffer.getvalue()})
    data = {"train": str(tmp_path / "in"), "image_keys": ("npy",)}
    save_run(tmp_path / "run", shape=(channels, 6, 6), data=data)
    run = str(tmp_path / "run")
    assert main(["sample", run, "--num", "4", "--out", str(tmp_path / "x.png")]) == 0
    with Image.open(tmp_path / "x.png") as picture:
        assert picture.mode == "L"  # the first channel
    out = str(tmp_path / "out")
    assert main(["reconstruct", run, str(tmp_path / "in"), "--out", out]) == 0
    again = open_dataset(out, Data(train=out, image_keys=("npy",)))
    wanted = aae_dist.load_run(run).reconstruct(torch.from_numpy(rows))
    assert torch.equal(again.read(range(12))[0], wanted)


@pytest.mark.parametrize(
    ("argv", "problem"),
    [
        (["reconstruct", "RUN", "--out", "x.jpg"], "should be one of .png"),
        (["reconstruct", "RUN", "--out", "s3://bucket/x.png"], "a local file"),
        (["sample", "RUN", "--classes", "3", "--out", "x.png"], "give numbers from 0 to 2"),
        (["sample", "RUN", "--classes", "a", "--out", "x.png"], "give numbers from 0 to 2"),
        (["sample", "PLAIN", "--classes", "0", "--out", "x.png"], "(gaussian) has none"),
        (["interpolate", "RUN", "--out", "x.gif"], "should be one of .png"),
        (["interpolate", "PLAIN", "--out", "x.png"], "trained without data.validation"),
        (["reconstruct", "PLAIN", "--out", "x.png"], "trained without data.validation"),
        (["evaluate", "PLAIN"], "trained without data.validation"),
        (["evaluate", "RUN", "--data", "/nowhere/*.tar"], "/nowhere"),
        (
            ["evaluate", "RUN", "FEW"],
            "few: 5 samples are too few to score the match with the prior",
        ),
        (["evaluate", "RUN", "--step", "3"], "no checkpoint of step 3"),
        (["evaluate", "RUN", "--checkpoint", "3"], "no checkpoint of step 3. There are [7]."),
        (["sample", "RUN", "--checkpoint", "best", "--out", "x.png"], "There are [7]; take newest"),
        (["export", "RUN", "--checkpoint", "bets", "--out", "x"], "; did you mean best?"),
        (["encode", "RUN", "--checkpoint", "0", "--out", "x"], "should be best, newest or a step"),
        (["sample", "RUN", "--out", "/proc/x/y.png"], "cannot be written"),
        (["encode", "PLAIN", "--out", "x", "--format", "npy"], "trained without data.validation"),
        (
            ["encode", "/nowhere", "--out", "x", "--format", "npy"],
            "holds no checkpoint that verifies",
        ),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    argv: list[str],
    problem: str,
    run: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    save_run(tmp_path / "plain", data={"train": "builtin://digits/train"})
    write_shards(tmp_path / "few", [5])
    places = {"RUN": run, "PLAIN": str(tmp_path / "plain"), "FEW": str(tmp_path / "few")}
    assert main([places.get(word, word) for word in argv]) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("aae-dist: ")
    assert problem in message
