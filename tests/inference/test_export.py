import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.shards import SIDE, image_of, write_shards
from helpers.trained import save_run

import aae_dist
from aae_dist.cli import main
from aae_dist.inference import early_checks, export as exporting
from aae_dist.storage import open_storage

SHAPE = (1, SIDE, SIDE)


def save(tmp_path: Path, **sections: Any) -> str:
    write_shards(tmp_path / "shards", (20,))
    shards = str(tmp_path / "shards")
    save_run(
        tmp_path / "run", shape=SHAPE, data={"train": shards, "validation": shards}, **sections
    )
    return str(tmp_path / "run")


@pytest.mark.run
@pytest.mark.timeout(180)
def test_exported_programs_give_the_codes_and_images_of_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri, out = save(tmp_path), tmp_path / "out"
    assert main(["export", uri, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert printed.count("equal to the run within") == 2
    assert aae_dist.load_run(str(out)).step == 7
    assert (out / "README.md").read_text().startswith("---\nlicense: unknown\n")
    run = aae_dist.load_run(uri)
    images = torch.stack([torch.from_numpy(image_of(n))[None] for n in range(11)])
    encoder = torch.export.load(out / "encoder.pt2").module()
    decoder = torch.export.load(out / "decoder.pt2").module()
    codes = encoder(images / 255)
    assert torch.allclose(codes, run.encode(images), atol=1e-5)
    assert torch.allclose(decoder(codes), run.reconstruct(images), atol=1e-5)
    about = json.loads((out / "export.json").read_bytes())
    assert about["step"] == 7
    assert about["encoder"]["pixels"]["shape"] == ["batch", 1, SIDE, SIDE]
    assert about["decoder"]["pixels"]["range"] == [0, 1]
    linear = run.config.model.model_copy(update={"decoder_output": "linear"})
    run.config = run.config.model_copy(update={"model": linear})
    assert exporting.export_metadata(run, "torch", "pt2", {})["decoder"]["pixels"]["range"] is None
    assert max(about["largest_difference"].values()) <= 1e-5


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "sections",
    [
        {"posterior": {"kind": "gaussian"}},
        {"posterior": {"kind": "universal"}},
        {"posterior": {"kind": "categorical"}, "prior": {"kind": "categorical"}},
        {"train": {"steps": 9, "precision": "fp64"}},
    ],
)
def test_every_posterior_and_precision_is_exported(
    tmp_path: Path, sections: dict[str, Any]
) -> None:
    assert main(["export", save(tmp_path, **sections), "--out", str(tmp_path / "out")]) == 0


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", ["conv", "resnet"])
def test_convolutions_are_exported(tmp_path: Path, kind: str) -> None:
    model = {"kind": kind, "latent_dim": 3, "encoder_width": 4, "decoder_width": 4}
    data = {"train": "builtin://digits/train", "validation": "builtin://digits/validation"}
    save_run(tmp_path / "run", shape=(3, 32, 32), data=data, model=model)
    run = aae_dist.load_run(str(tmp_path / "run"))
    differences = exporting.export(run, open_storage(str(tmp_path / "out")), "torch")
    assert max(differences.values()) <= 1e-5


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", ["mlp", "conv", "resnet"])
def test_onnx_programs_give_the_codes_and_images_of_the_run(tmp_path: Path, kind: str) -> None:
    onnx = pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    model: dict[str, Any] = {"kind": kind, "latent_dim": 3}
    if kind != "mlp":
        model |= {"encoder_width": 4, "decoder_width": 4}
    data = {"train": "builtin://digits/train", "validation": "builtin://digits/validation"}
    save_run(tmp_path / "run", shape=(3, 28, 30), data=data, model=model)
    uri, out = str(tmp_path / "run"), tmp_path / "out"
    assert main(["export", uri, "--format", "onnx", "--out", str(out)]) == 0
    assert {"decoder.onnx", "encoder.onnx", "export.json"} < {path.name for path in out.iterdir()}
    run, images = aae_dist.load_run(uri), torch.rand(11, 3, 28, 30)
    codes = run.encode(images)
    for name, wanted in (("encoder", codes), ("decoder", run.decode(codes))):
        onnx.checker.check_model(str(out / f"{name}.onnx"), full_check=True)
        session = onnxruntime.InferenceSession(str(out / f"{name}.onnx"))
        x = images if name == "encoder" else codes
        [got] = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        assert (torch.from_numpy(got) - wanted).abs().max() <= 1e-5


def test_without_its_packages_onnx_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The run is absent: this is said before it is looked for.
    monkeypatch.setattr(early_checks, "find_spec", lambda name: None if "onnx" in name else name)
    assert main(["export", str(tmp_path), "--format", "onnx", "--out", str(tmp_path / "x")]) == 2
    err = capsys.readouterr().err
    assert "pip install onnx onnxscript onnxruntime" in err
    assert err.count("\n") == 1


def test_a_program_with_other_numbers_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(part: exporting.Part, path: Path) -> exporting.Run:
        path.write_bytes(b"")
        return lambda x: part.module(x) * 1.001

    monkeypatch.setattr(exporting, "WRITERS", {"torch": (write, "pt2")})
    run = aae_dist.load_run(save(tmp_path))
    with pytest.raises(exporting.ExportError, match="the exported encoder differs by"):
        exporting.export(run, open_storage(str(tmp_path / "out")), "torch")
    assert not (tmp_path / "out").exists()


def test_a_decoder_that_fails_leaves_an_earlier_export_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, out = aae_dist.load_run(save(tmp_path)), tmp_path / "out"
    factor = {"encoder": 1.0, "decoder": 1.0}

    def write(part: exporting.Part, path: Path) -> exporting.Run:
        path.write_text(str(factor))
        return lambda x: part.module(x) * factor[part.name]

    monkeypatch.setattr(exporting, "WRITERS", {"torch": (write, "pt2")})
    exporting.export(run, open_storage(str(out)), "torch")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert set(before) == {"encoder.pt2", "decoder.pt2", "export.json"}
    factor["decoder"] = 1.1
    with pytest.raises(exporting.ExportError, match="decoder differs"):
        exporting.export(run, open_storage(str(out)), "torch")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_a_network_that_cannot_be_traced_is_told_what_to_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(part: exporting.Part, path: Path) -> exporting.Run:
        raise RuntimeError("specialized it to be a constant\n(3)")

    monkeypatch.setattr(exporting, "WRITERS", {"torch": (write, "pt2")})
    run = aae_dist.load_run(save(tmp_path))
    with pytest.raises(exporting.ExportError, match=r"x.shape\[0\] instead of len"):
        exporting.export(run, open_storage(str(tmp_path / "out")), "torch")
