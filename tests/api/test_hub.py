"""Runs pushed to a server of the hub's protocol over HTTP, and pulled from it."""

import importlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from helpers.hub_server import HubServer, hub_server
from helpers.trained import save_run

import aae_dist
from aae_dist.cli import main
from aae_dist.errors import CheckpointError, ConfigError, StorageError

huggingface_hub = pytest.importorskip("huggingface_hub")
constants = importlib.import_module("huggingface_hub.constants")

pytestmark = pytest.mark.run

TOKEN = "hf_canary0123456789abcdef"
REPO = "lab/digits-z2"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    # The hub's newer storage, a program of its own, is not part of the server.
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with hub_server(TOKEN) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


def run_with_secrets(folder: Path, step: int = 7) -> str:
    """Save a run whose configuration names places and accounts, with a summary."""
    config = save_run(
        folder,
        step=step,
        run={"name": "digits-z2", "storage": "/home/somebody/runs", "init_from": "/home/old"},
        data={"train": "s3://secret-bucket/train", "validation": "/home/somebody/v"},
        wandb={"entity": "secret-team", "project": "secret-project"},
        prior={"kind": "mixture"},
    )
    (folder / "run.json").write_text('{"id": "0123456789abcdef", "total_steps": 100}')
    verdict = {"match": "good", "text": ["not compared (/home/somebody/v)"]}
    metrics = {"reconstruction/mse": 0.0413, "prior_match/c2st": 0.55, "step": step}
    summary = {
        "state": "finished",
        "step": step,
        "metrics": metrics,
        "verdict": verdict,
        "config": config.model_dump(mode="json"),
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    return str(folder)


PRIVATE = (b"somebody", b"secret-", b"/home/", TOKEN.encode(), b"s3://")


def test_a_pushed_run_is_pulled_and_decodes_the_same(
    hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = run_with_secrets(tmp_path / "run")
    assert main(["push", uri, REPO, "--license", "apache-2.0"]) == 0
    assert f"{hub.address}/{REPO}" in capsys.readouterr().out
    assert main(["pull", REPO, str(tmp_path / "pulled")]) == 0
    assert str(tmp_path / "pulled") in capsys.readouterr().out
    run, pulled = aae_dist.load_run(uri), aae_dist.load_run(str(tmp_path / "pulled"))
    codes = torch.randn(5, 2)
    assert torch.equal(run.decode(codes), pulled.decode(codes))
    assert torch.equal(run.sample(3), pulled.sample(3))
    assert pulled.step == 7
    repository = hub.repositories[REPO]
    assert repository.private, "unless public is asked for"
    for name, data in repository.files.items():
        assert not [text for text in PRIVATE if text in data], name
        assert name.endswith((".safetensors", ".json", ".yaml", ".md", ".png")), name


def test_the_card_has_a_header_scores_a_verdict_and_code_that_runs(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = run_with_secrets(tmp_path / "run")
    page = aae_dist.push(
        uri, REPO, license="mit", data_name="ylecun/mnist", data_license="cc-by-sa-3.0"
    )
    assert page == f"{hub.address}/{REPO}"
    card = hub.repositories[REPO].files["README.md"].decode()
    header = yaml.safe_load(card.split("---\n")[1])
    assert (header["license"], header["datasets"]) == ("mit", ["ylecun/mnist"])
    results = header["model-index"][0]["results"][0]["metrics"]
    assert {each["type"]: each["value"] for each in results} == {"mse": 0.0413, "c2st": 0.55}
    assert huggingface_hub.ModelCard(card).data.eval_results[0].metric_value == 0.0413
    assert "Verdict: good match" in card
    monkeypatch.chdir(tmp_path)
    names: dict[str, torch.Tensor] = {}
    exec(card.split("```python\n")[1].split("```")[0], names)
    assert names["codes"].shape == (16, 2)
    assert "Licence: cc-by-sa-3.0" in card


def test_another_push_replaces_the_checkpoint_and_so_does_another_pull(
    hub: HubServer, tmp_path: Path
) -> None:
    folder = tmp_path / "pulled"
    aae_dist.push(run_with_secrets(tmp_path / "new", step=9), REPO)
    aae_dist.pull(REPO, folder)
    first = hub.repositories[REPO].sha
    aae_dist.push(run_with_secrets(tmp_path / "old", step=7), REPO)
    names = [name for name in hub.repositories[REPO].files if "step-" in name]
    assert all("step-000000007" in name for name in names)
    assert first != hub.repositories[REPO].sha
    assert aae_dist.load_run(aae_dist.pull(REPO, folder)).step == 7


def test_an_exported_folder_is_pushed_with_its_own_card(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aae_dist.push(run_with_secrets(tmp_path / "run"), REPO)
    exported = aae_dist.pull(REPO, tmp_path / "exported")
    Path(exported, "README.md").write_text(f"---\nlicense: mit\n---\n# Mine, {TOKEN}\n")
    aae_dist.push(exported, "lab/other", public=True)
    files = hub.repositories["lab/other"].files
    assert files["README.md"] == b"---\nlicense: mit\n---\n# Mine, ***\n"
    assert not hub.repositories["lab/other"].private


def test_only_files_of_a_run_are_pulled(hub: HubServer, tmp_path: Path) -> None:
    aae_dist.push(run_with_secrets(tmp_path / "run"), REPO, public=True)
    files = hub.repositories[REPO].files
    for name in ("model.pkl", "checkpoints/../../evil.json", "checkpoints/step-000000007/a.pt"):
        files[name] = b"x"
    folder = aae_dist.pull(REPO, tmp_path / "a" / "pulled")
    found = {path.name for path in Path(folder).rglob("*") if ".cache" not in path.parts}
    assert not {"model.pkl", "evil.json", "a.pt"} & found
    assert not list(tmp_path.rglob("evil.json"))


@pytest.mark.parametrize("name", ["checkpoints/mine.pt", "config.yaml", "README.md"])
def test_files_of_something_else_are_not_pulled_over(
    hub: HubServer, tmp_path: Path, name: str
) -> None:
    aae_dist.push(run_with_secrets(tmp_path / "run"), REPO, public=True)
    mine = tmp_path / "mine" / name
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(ConfigError, match=f"holds {name}"):
        aae_dist.pull(REPO, tmp_path / "mine")
    assert mine.read_text() == "mine"


def test_the_token_comes_from_the_environment_alone(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = run_with_secrets(tmp_path / "run")
    aae_dist.push(uri, REPO)
    stored = tmp_path / "token"
    stored.write_text(TOKEN)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(stored))
    monkeypatch.delenv("HF_TOKEN")
    hub.tokens.clear()
    with pytest.raises(ConfigError, match="set HF_TOKEN"):
        aae_dist.push(uri, REPO)
    with pytest.raises(StorageError, match="no such repository, or HF_TOKEN may not see it"):
        aae_dist.pull(REPO, tmp_path / "x")
    assert hub.tokens == {None}


def test_refusals_of_the_hub_are_one_line(
    hub: HubServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    uri = run_with_secrets(tmp_path / "run")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong0123456789")
    assert main(["push", uri, REPO]) == 2
    error = capsys.readouterr().err
    assert "403 (You may not write here); check that HF_TOKEN may write there" in error
    assert "hf_wrong" not in error
    with pytest.raises(ConfigError, match="OWNER/NAME"):
        aae_dist.push(uri, "digits")
    monkeypatch.setenv("HF_ENDPOINT", "http://example.org")
    with pytest.raises(ConfigError, match="https"):
        aae_dist.pull(REPO, tmp_path / "x")


def test_a_repository_without_a_run_is_refused(hub: HubServer, tmp_path: Path) -> None:
    aae_dist.push(run_with_secrets(tmp_path / "run"), REPO)
    hub.repositories[REPO].files = {"README.md": b"# nothing\n"}
    with pytest.raises(CheckpointError, match="holds no run of aae_dist"):
        aae_dist.pull(REPO, tmp_path / "x")
    with pytest.raises(ConfigError, match="is the folder of a run"):
        aae_dist.pull(REPO, tmp_path / "run")
