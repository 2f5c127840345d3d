"""Runs on signals and volumes: in memory and packed, resumed, encoded, exported, in pictures."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.arrays import small
from helpers.equality import assert_bit_equal
from numpy.typing import NDArray

import aae_dist
from aae_dist.api.data import as_arrays
from aae_dist.cli.main import main
from aae_dist.data.decode.sample import decode_array
from aae_dist.errors import ConfigError, DataError, SampleError
from aae_dist.utils.arrays import npy_bytes

DRAW = np.random.default_rng(0)
SIGNALS = DRAW.random((200, 12, 2), np.float32)  # NLC
IMAGES = DRAW.integers(0, 256, (200, 5, 6, 6)).astype(np.uint8)  # 5 channels
VOLUMES = DRAW.random((200, 5, 6, 7), np.float32)  # NDHW
CASES = {
    "signals": (SIGNALS, "NLC", (2, 12)),
    "images": (IMAGES, None, (5, 6, 6)),
    "volumes": (VOLUMES, "NDHW", (1, 5, 6, 7)),
}


class StopAt8:
    def on_log(self, metrics: dict[str, float]) -> bool:
        return metrics["step"] == 8


def config(storage: Path, name: str, **data: Any) -> dict[str, Any]:
    found = small(storage, run={"name": name}, data=data)
    widths = {"encoder_width": 4, "decoder_width": 4, "discriminator_widths": (16,)}
    found["model"] = {"kind": "conv", "latent_dim": 2, **widths}
    found["train"]["steps"] = 12
    return found


@pytest.mark.run
@pytest.mark.timeout(180)
@pytest.mark.parametrize("name", CASES)
def test_a_run_continues_on_packed_arrays_as_if_unbroken(name: str, tmp_path: Path) -> None:
    x, layout, shape = CASES[name]
    asked: dict[str, Any] = {"layout": layout} if layout else {}
    whole = aae_dist.train(config(tmp_path, "a", **asked), x, progress=False)
    assert whole.run.image_shape == shape
    given = aae_dist.train(config(tmp_path, "b"), x, [StopAt8()], layout=layout, progress=False)
    assert given.step == 8
    shards = aae_dist.pack(x, tmp_path / "t", layout=layout)
    packed = config(tmp_path, "b", train=shards, image_keys=["npy"])
    done = aae_dist.train(packed, progress=False)
    assert_bit_equal(done.uri, whole.uri, 12)
    first = as_arrays(x, layout).images[:3]
    assert torch.equal(done.run.encode(first), whole.run.encode(first))
    assert done.run.reconstruct(first).shape == (3, *shape)


@pytest.mark.run
@pytest.mark.timeout(180)
@pytest.mark.usefixtures("pictures")
@pytest.mark.parametrize("name", ["signals", "volumes"])
def test_other_commands_take_them(name: str, tmp_path: Path) -> None:
    x, layout, shape = CASES[name]
    config_of_run = config(tmp_path, "a")
    done = aae_dist.train(config_of_run, x, validation=0.5, layout=layout, progress=False)
    pictures = {
        path.name.split("-")[0].removesuffix(".png") for path in Path(done.uri).rglob("*.png")
    }
    assert {"reconstructions", "prior_samples"} <= pictures
    assert main(["export", done.uri, "--out", str(tmp_path / "e")]) == 0
    facts = json.loads((tmp_path / "e" / "export.json").read_text())
    assert facts["encoder"]["pixels"]["shape"] == ["batch", *shape]
    assert main(["sample", done.uri, "--num", "4", "--out", str(tmp_path / "s.png")]) == 0
    packed = aae_dist.pack(x, tmp_path / "p", layout=layout)
    walk = ["interpolate", done.uri, "--kind", "traverse", "--data", packed]
    assert main([*walk, "data.image_keys=[npy]", "--out", str(tmp_path / "i.png")]) == 0
    out = str(tmp_path / "r")
    assert main(["reconstruct", done.uri, packed, "--out", out]) == 0
    images, _ = aae_dist.data.read_arrays(
        out, image_keys=("npy",), layout=done.run.config.data.layout
    )
    assert images.shape == (200, *shape)


def test_files_are_read_in_their_layout() -> None:
    volume = DRAW.random((3, 4, 5, 2), np.float32)
    got = decode_array(npy_bytes(volume, "<f4"), "NDHWC")
    assert (got == volume.transpose(3, 0, 1, 2)).all()
    assert decode_array(npy_bytes(volume[0, :, 0], "<f4"), "NCL").shape == (4, 2)
    assert decode_array(npy_bytes(volume[0, :, 0], "<f4")).shape == (1, 4, 2)
    with pytest.raises(SampleError, match="of volumes say data.layout=NCDHW or NDHWC"):
        decode_array(npy_bytes(volume, "<f4"))
    with pytest.raises(SampleError, match=r"data.layout=NCL has 2 dimensions"):
        decode_array(npy_bytes(volume, "<f4"), "NCL")


def test_channels_that_arrays_do_not_have_are_named(tmp_path: Path) -> None:
    x: NDArray[Any] = np.zeros((20, 5, 6, 6), np.float32)
    shards = aae_dist.pack(x, tmp_path / "p")
    with pytest.raises(ConfigError, match="data.channels=3: the arrays have 5 channels"):
        aae_dist.data.read_arrays(shards, image_keys=("npy",), channels=3)
    with pytest.raises(ConfigError, match=r"data.channels=3: samples in memory"):
        aae_dist.train(config(tmp_path, "a", channels=3), x, progress=False)
    with pytest.raises(DataError, match="say layout='NCDHW'"):
        aae_dist.train(config(tmp_path, "a"), np.zeros((9, 3, 3, 3, 1), np.float32))
