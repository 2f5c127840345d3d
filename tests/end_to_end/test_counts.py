"""Runs on counts: likelihoods of cells, from the data to the trained run."""

import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from helpers.arrays import small
from helpers.cells import cells_in_batches, knn_agreement, simulated_cells
from helpers.equality import assert_bit_equal
from helpers.ranks import single_world
from helpers.steps import MODELS, build, tiny_config

import aae_dist
from aae_dist.losses import COUNT_LOSSES
from aae_dist.models import build_posterior

ROOT = Path(__file__).parents[2]
COUNTS, TYPES = simulated_cells(300, 20)


def of_counts(storage: Path, loss: str, **sections: Any) -> dict[str, Any]:
    model = {"decoder_output": "linear"}
    return small(storage, model=model, method={"reconstruction_loss": loss}, **sections)


class StopAt12:
    def on_log(self, metrics: dict[str, float]) -> bool:
        return metrics["step"] == 12


@pytest.mark.run
@pytest.mark.timeout(180)
@pytest.mark.parametrize("loss", COUNT_LOSSES)
def test_a_run_on_counts_resumes_bit_for_bit(tmp_path: Path, loss: str) -> None:
    whole = of_counts(tmp_path, loss, run={"name": "whole"})
    result = aae_dist.train(whole, (COUNTS, TYPES), progress=False)
    found = [record["loss/reconstruction"] for record in result.history]
    # Runs start from the mean profile, not from equal proportions.
    equal = torch.zeros(300, list(COUNT_LOSSES).index(loss) + 1, 20)
    equal[:, 0] = 1 / 20
    assert max(found) < COUNT_LOSSES[loss](equal, torch.from_numpy(COUNTS)).mean()
    config = of_counts(tmp_path, loss, run={"name": "broken"})
    aae_dist.train(config, (COUNTS, TYPES), [StopAt12()], progress=False)
    assert aae_dist.train(config, (COUNTS, TYPES), progress=False).step == 24
    assert_bit_equal(f"{tmp_path}/broken", f"{tmp_path}/whole", 24)
    # What a trained run gives: expected counts, with the totals of the samples or the median one.
    run = result.run
    again = run.reconstruct(COUNTS[:5])
    decoded = run.decode(run.encode(COUNTS[:5]))
    assert again.shape == (5, 1, 1, 20)
    if loss != "zinb":  # where dropout takes a part of the counts
        totals = torch.from_numpy(COUNTS[:5].sum(1))
        torch.testing.assert_close(again.flatten(1).sum(1), totals)
        median = float(np.median(COUNTS.sum(1)))
        assert abs(decoded.flatten(1).sum(1)[0].item() - median) < 0.1 * median
    _, decoder = run.as_modules()
    torch.testing.assert_close(decoder(run.encode(COUNTS[:5])), decoded)


GIVEN = {
    "kind": "product",
    "parts": ({"dims": 2, "prior": {"kind": "categorical"}, "given": "label"}, {"dims": 2}),
}


def test_the_kl_of_a_code_that_holds_a_covariate_is_that_of_its_other_part() -> None:
    tree = {"method": {"kind": "variational"}, "posterior": {"kind": "gaussian"}}
    config = tiny_config(**tree, prior=GIVEN, model={**MODELS["mlp"], "latent_dim": 4})
    _, method, _ = build(config, single_world())
    outputs, labels = torch.randn(6, 4, dtype=torch.float64), torch.tensor([0, 1, 0, 1, 1, 0])
    posterior = build_posterior(config.posterior, config.prior)
    with_labels = posterior.with_labels(outputs, labels)  # type: ignore[attr-defined]
    z = posterior.sample(with_labels, torch.randn(6, 2, dtype=torch.float64))
    assert torch.equal(z[:, :2], torch.eye(2, dtype=torch.float64)[labels])
    mean, log_std = outputs.chunk(2, 1)
    q = torch.distributions.Normal(mean, log_std.exp())
    wanted = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(method.kl(with_labels, z), wanted)  # type: ignore[attr-defined]


@pytest.mark.run
@pytest.mark.timeout(180)
def test_a_run_that_is_given_type_and_batch_resumes_bit_for_bit(tmp_path: Path) -> None:
    counts, types, batches = cells_in_batches(300)
    labels = np.ravel_multi_index((types, batches), (6, 2))
    of_types = {"dims": 6, "prior": {"kind": "categorical"}, "given": "label"}
    prior = {"kind": "product", "parts": (of_types, *GIVEN["parts"])}
    sections: dict[str, Any] = {"prior": prior, "posterior": {"kind": "gaussian"}}
    results = {}
    for name in ("whole", "broken"):
        config = of_counts(tmp_path, "negative_binomial", run={"name": name}, **sections)
        config["method"]["kind"] = "variational"
        config["model"]["latent_dim"] = 10
        if name == "broken":
            aae_dist.train(config, (counts, labels), [StopAt12()], validation=0.2, progress=False)
        results[name] = aae_dist.train(config, (counts, labels), validation=0.2, progress=False)
    assert_bit_equal(results["broken"].uri, results["whole"].uri, 24)
    run = results["whole"].run
    codes = run.encode(counts[:5], labels[:5])
    assert torch.equal(codes[:, :6].argmax(1), torch.from_numpy(types[:5]))
    assert torch.equal(codes[:, 6:8].argmax(1), torch.from_numpy(batches[:5]))
    with pytest.raises(ValueError, match="labels must be from 0 to 11"):
        run.encode(counts[:1], [12])


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_codes_given_the_batch_say_little_of_it(tmp_path: Path) -> None:
    counts, types, batches = cells_in_batches(1000)
    train, held_out = slice(0, 800), slice(800, None)
    found = {}
    for name in ("plain", "given"):
        dims = 8 if name == "plain" else 10
        config = of_counts(tmp_path, "negative_binomial", run={"name": name})
        config["method"]["kind"] = "variational"
        widths = {"encoder_widths": (64,), "decoder_widths": (64,)}
        config |= {"posterior": {"kind": "gaussian"}, "wandb": {"mode": "disabled"}}
        config["model"] |= {"latent_dim": dims, **widths}
        config["train"] |= {"steps": 800}
        if name == "given":
            parts = ({**GIVEN["parts"][0]}, {"dims": 8})  # type: ignore[index]
            config["prior"] = {"kind": "product", "parts": parts}
        run = aae_dist.train(config, (counts[train], batches[train]), progress=False).run
        z = run.encode(counts[held_out], batches[held_out]).double().numpy()[:, -8:]
        found[name] = [knn_agreement(z, labels[held_out]) for labels in (types, batches)]
    assert found["given"][1] < 0.6 < 0.8 < found["plain"][1]  # 0.5 says nothing of the batch
    assert found["given"][0] > 0.9


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_codes_of_cells_keep_types_apart_as_a_pca_does_and_match_the_prior(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("IPython", "IPython.display"):  # of a kernel; it shows pictures
        monkeypatch.setitem(sys.modules, name, Mock())
    text = (ROOT / "tools" / "notebooks" / "cells.py").read_text()
    names: dict[str, Any] = {}
    source = text.replace("tempfile.mkdtemp()", repr(str(tmp_path)))
    exec(compile(source, "cells.py", "exec"), names)
    codes, types = names["codes"], names["types"][names["held_out"]]
    pca = names["log_pca"](names["counts"][names["held_out"]], 8)
    assert names["agreement"](codes, types) >= names["agreement"](pca, types)
    assert names["result"].metrics["prior_match/c2st"] <= 0.65


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (COUNTS + 0.5, "whole numbers from 0 on; data.train has"),
        (COUNTS - 1, "whole numbers from 0 on; data.train has -1"),
        (np.zeros((300, 1, 4, 5), np.uint8), "these samples are uint8 images"),
    ],
)
def test_what_are_no_counts_is_refused(tmp_path: Path, x: Any, message: str) -> None:
    with pytest.raises(aae_dist.ConfigError, match=message):
        aae_dist.train(of_counts(tmp_path, "poisson"), x, progress=False)


def test_contradictions_are_refused(tmp_path: Path) -> None:
    config = small(tmp_path, method={"reconstruction_loss": "zinb", "image_noise": 0.1})
    with pytest.raises(aae_dist.ConfigError) as caught:
        aae_dist.train(config, COUNTS)
    assert "zinb needs model.decoder_output=linear" in str(caught.value)
    assert "method.image_noise" in str(caught.value)
