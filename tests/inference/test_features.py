"""`evaluation.features` in runs: wavelets, another run's codes, an exported program."""

import json

import pytest
import torch
from helpers.shards import SIDE, write_shards
from helpers.trained import save_run

from aae_dist import load_run
from aae_dist.cli import main
from aae_dist.config import load_config
from aae_dist.errors import ConfigError
from aae_dist.inference.trained_run import build_features

CPU = torch.device("cpu")
IMAGES = torch.rand(3, 1, 28, 28, generator=torch.Generator().manual_seed(0))
FEW = "data.validation=builtin://digits/validation"
RUN = ["data.train=a.tar", "data.validation=b.tar", "train.steps=5", "run.name=a"]


def features(of, **chosen):
    config = of.config.model_copy(
        update={"evaluation": type(of.config.evaluation).model_validate({"features": chosen})}
    )
    return build_features(config, of.image_shape, CPU)


def test_evaluate_scores_samples_by_wavelets(tmp_path, capsys):
    write_shards(tmp_path / "shards", (200, 100))
    shards = str(tmp_path / "shards")
    save_run(tmp_path, shape=(1, SIDE, SIDE), data={"train": shards, "validation": shards})
    assert main(["evaluate", str(tmp_path), "evaluation.features=wavelet", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["samples/num_samples"] == found["prior_match/num_samples"] == 300
    assert 0 < found["samples/frechet_floor"] < found["samples/frechet_distance"]
    assert 0 < found["codes/linear_error"] <= 1


def test_features_are_codes_of_a_run(tmp_path):
    save_run(tmp_path / "own")
    save_run(tmp_path / "other", step=9)
    run, other = load_run(str(tmp_path / "own")), load_run(str(tmp_path / "other"))
    found = features(run, run=other.uri)
    assert torch.equal(found.of(IMAGES), other.encode(IMAGES))
    assert found.hash != features(run, run=run.uri).hash


@pytest.mark.run
@pytest.mark.timeout(300)  # torch.export imports for long
def test_features_are_those_of_an_exported_program(tmp_path):
    save_run(tmp_path / "own")
    run = load_run(str(tmp_path / "own"))

    class Halves(torch.nn.Module):
        def forward(self, x):
            return torch.stack([x[:, 0, :14].mean((1, 2)), x[:, 0, 14:].mean((1, 2))], 1)

    batch = {"x": {0: torch.export.Dim("batch", min=1, max=4096)}}
    program = torch.export.export(Halves(), (IMAGES,), dynamic_shapes=batch)
    torch.export.save(program, tmp_path / "halves.pt2")
    exported = features(run, export=f"{tmp_path}/halves.pt2")
    assert torch.allclose(exported.of(IMAGES), Halves()(IMAGES))
    (tmp_path / "broken.pt2").write_bytes(b"no program")
    for name, message in (("broken", "is no program of torch.export"), ("none", "there is no")):
        with pytest.raises(ConfigError, match=message):
            features(run, export=f"{tmp_path}/{name}.pt2")


def test_a_stored_run_does_not_choose_a_program_to_load(tmp_path):
    save_run(tmp_path, evaluation={"features": {"export": "/anything.pt2"}})
    assert load_run(str(tmp_path)).config.evaluation.features is None
    save_run(tmp_path, step=9, evaluation={"features": "wavelet"})
    assert load_run(str(tmp_path)).config.evaluation.features == "wavelet"


def test_a_run_of_other_images_cannot_give_features(tmp_path):
    save_run(tmp_path / "own")
    save_run(tmp_path / "small", shape=(1, 8, 8))
    with pytest.raises(ConfigError, match=r"samples of shape \(1, 8, 8\), not \(1, 28, 28\)"):
        features(load_run(str(tmp_path / "own")), run=str(tmp_path / "small"))


def test_exactly_one_kind_of_features_is_chosen(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    loaded = load_config([], [*RUN, "evaluation.features={run: runs/a}"]).config
    assert loaded.evaluation.features.run == f"{tmp_path}/runs/a"
    for given in ("{run: a, path: 'b:C'}", "{arguments: {a: 1}}"):
        with pytest.raises(ConfigError, match=r"evaluation\.features: .*exactly one of path, run"):
            load_config([], [*RUN, f"evaluation.features={given}"])
    with pytest.raises(
        ConfigError, match=r"evaluation.features: should be wavelet or .*did you mean wavelet\?"
    ):
        load_config([], [*RUN, "evaluation.features=wavelets"])


def test_scores_of_samples_need_features():
    with pytest.raises(ConfigError, match="measured by features only"):
        load_config([], [*RUN, "train.best_metric=samples/frechet_distance"])
    best = "train.best_metric=samples/frechet_distance"
    load_config([], [*RUN, best, "evaluation.features=wavelet"])
