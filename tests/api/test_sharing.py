"""Folders of runs for others: what is in them, and what is not."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.trained import save_run

import aae_dist
from aae_dist.api.card import Card
from aae_dist.api.sharing import FILES, share, shared_config
from aae_dist.config import config_from_tree, load_config
from aae_dist.config.load import GivenTree
from aae_dist.config.yaml import parse
from aae_dist.errors import ConfigError
from aae_dist.storage import open_storage

ROOT = Path(__file__).parents[2]


def write(tmp_path: Path, step: int = 7, **sections: Any) -> Path:
    save_run(tmp_path / "run", step=step, **sections)
    out = tmp_path / "out"
    share(aae_dist.load_run(str(tmp_path / "run")), open_storage(str(out)), Card())
    return out


def test_the_folder_of_a_run_loads_without_the_run(tmp_path: Path) -> None:
    out = write(tmp_path)
    images = torch.rand(3, 1, 28, 28)
    wanted = aae_dist.load_run(str(tmp_path / "run")).encode(images)
    (tmp_path / "run").rename(tmp_path / "gone")
    assert torch.equal(aae_dist.load_run(str(out)).encode(images), wanted)
    names = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert all(FILES.match(name) for name in names)
    assert "checkpoints/step-000000007/state.json" not in names
    assert "10,000 handwritten digits of MNIST" in (out / "README.md").read_text()
    assert "was not evaluated" in (out / "README.md").read_text()


def test_a_second_export_keeps_the_card_and_replaces_a_later_checkpoint(tmp_path: Path) -> None:
    out = write(tmp_path, step=9)
    (out / "README.md").write_text("mine")
    save_run(tmp_path / "other", step=8)
    share(aae_dist.load_run(str(tmp_path / "other")), open_storage(str(out)), Card())
    assert (out / "README.md").read_text() == "mine"
    assert aae_dist.load_run(str(out)).step == 8


def test_a_run_that_trains_is_not_written_into(tmp_path: Path) -> None:
    save_run(tmp_path / "run")
    (tmp_path / "run" / "run.json").write_text("{}")
    run = aae_dist.load_run(str(tmp_path / "run"))
    with pytest.raises(ConfigError, match="is the folder of a run"):
        share(run, open_storage(str(tmp_path / "run")), Card())


@pytest.mark.parametrize("name", ["checkpoints/mine.pt", "config.yaml", "samples.png"])
def test_files_of_something_else_are_not_replaced(name: str, tmp_path: Path) -> None:
    save_run(tmp_path / "run")
    mine = tmp_path / "out" / name
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    run, out = aae_dist.load_run(str(tmp_path / "run")), open_storage(str(tmp_path / "out"))
    with pytest.raises(ConfigError, match=f"holds {name}, which is of no shared run"):
        share(run, out, Card())
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == [mine]
    assert mine.read_text() == "mine"


@pytest.mark.parametrize(
    "sections",
    [
        {"shape": (1, 1, 5), "model": {"decoder_output": "linear"}},
        {"shape": (1, 1, 9), "model": {"decoder_output": "linear"},
         "method": {"reconstruction_loss": "zinb"}},
        {"shape": (2, 16), "model": {"kind": "conv", "encoder_width": 4, "decoder_width": 4},
         "data": {"train": "x", "layout": "NCL", "image_keys": ["npy"]}},
    ],
)  # fmt: skip
def test_vectors_counts_and_signals_are_not_pictured_but_shared(
    tmp_path: Path, sections: dict[str, Any]
) -> None:
    out = write(tmp_path, **sections)
    assert not (out / "samples.png").exists()
    assert "samples.png" not in (out / "README.md").read_text()
    assert aae_dist.load_run(str(out)).sample(2).shape == (2, *sections["shape"])


def config(**sections: Any) -> Any:
    base = {"run": {"name": "x"}, "data": {"train": "/a"}, "train": {"steps": 5}}
    return config_from_tree({**base, **sections})


def test_places_and_accounts_are_left_out_and_what_ships_stays() -> None:
    found = shared_config(
        config(
            data={"train": ["gs://b/x"], "validation": "builtin://digits/validation"},
            prior={"kind": "data", "vectors": "s3://bucket/v"},
            run={"name": "x", "init_from": "/home/old", "seed": 3},
            train={"steps": 5, "device": "cuda", "evaluate_every_steps": 2},
        )
    )
    assert (found.data.train, found.data.validation) == (
        "not-shared",
        "builtin://digits/validation",
    )
    assert (found.prior.vectors, found.run.init_from, found.run.seed) == ("not-shared", None, 3)
    assert found.train.device == "auto"
    assert "/home" not in json.dumps(found.model_dump(mode="json")).replace("~/aae_dist/runs", "")


def test_every_ready_configuration_is_shared_without_places() -> None:
    files = [path for path in (ROOT / "configs").rglob("*.yaml") if path.parent.name != "sweep"]
    assert len(files) > 40
    own = "run: {name: x, storage: /secret/runs}\ndata: {train: s3://secret/x}\ntrain: {steps: 5}"
    base = GivenTree("base", parse(own, "base"))
    for path in files:
        given = load_config([base, path]).config
        text = shared_config(given).model_dump_json()
        assert "secret" not in text, path
        assert shared_config(given).phases == given.phases


def test_the_file_that_a_network_started_from_is_not_shared() -> None:
    own = {"path": "mine:Encoder", "arguments": {"width": 3}, "weights": "/home/me/w.safetensors"}
    found = shared_config(config(model={"encoder": own})).model.encoder
    assert found is not None
    assert (found.weights, found.arguments) == (None, {"width": 3})


@pytest.mark.parametrize("place", ["/home/me/w.pt", "~/w", "s3://b/w", "C:\\w", "../w"])
def test_an_argument_that_names_a_place_is_refused(place: str) -> None:
    prior = {"kind": "custom", "path": "mine:Prior", "arguments": {"file": [place]}}
    with pytest.raises(ConfigError, match=r"prior\.arguments\.file: .* is a place"):
        shared_config(config(prior=prior))


def test_a_licence_is_an_identifier() -> None:
    with pytest.raises(ConfigError, match="data license: should be an identifier"):
        Card(data_license="My own, do not copy")
