"""Runs on counts: likelihoods of cells, from the data to the trained run."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.arrays import small
from helpers.cells import simulated_cells
from helpers.equality import assert_bit_equal

import aae_dist
from aae_dist.losses import COUNT_LOSSES

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
