"""Tables of real columns, counts and categories: the loss, the networks, a run, and refusals."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.arrays import small
from helpers.equality import assert_bit_equal
from numpy.typing import NDArray

import aae_dist
from aae_dist.losses import mixed_error
from aae_dist.models import MlpDecoder, MlpEncoder, TableDecoder, TableEncoder

SIZES = (2, 3, 3, 2)
COLUMNS = {"real": 2, "counts": 3, "categories": (3, 2)}


def table(num: int = 300) -> NDArray[np.float32]:
    """Columns that a hidden number of each row decides."""
    draw = np.random.default_rng(0)
    hidden = draw.normal(size=(num, 1))
    real = np.hstack([hidden, -hidden]) + 0.1 * draw.normal(size=(num, 2))
    counts = draw.poisson(np.exp(1 + 0.5 * hidden * [1, -1, 0.5]))
    thirds, halves = np.digitize(hidden[:, 0], [-0.4, 0.4]), hidden[:, 0] > 0
    parts = [real, counts, np.eye(3)[thirds], np.eye(2)[halves.astype(int)]]
    return np.hstack(parts).astype(np.float32)


def test_the_error_is_that_of_distributions_and_zero_for_a_perfect_reconstruction() -> None:
    x = torch.from_numpy(table(20)).double()
    assert float(mixed_error(x, x, SIZES).abs().max()) < 1e-4
    hat = torch.cat(
        [x[:, :2] + 0.3, x[:, 2:5] + 0.5, torch.full((20, 3), 1 / 3), torch.full((20, 2), 0.5)], 1
    )
    normal = 0.5 * 2 * 0.3**2
    poisson = torch.distributions.Poisson
    gap = poisson(x[:, 2:5].clamp_min(1e-9)).log_prob(x[:, 2:5]) - poisson(hat[:, 2:5]).log_prob(
        x[:, 2:5]
    )
    wanted = normal + gap.sum(1) + np.log(3) + np.log(2)
    torch.testing.assert_close(mixed_error(hat, x, SIZES), wanted, atol=1e-6, rtol=0)
    hat.requires_grad_()
    mixed_error(hat, x, SIZES).sum().backward()
    assert hat.grad is not None
    assert bool(hat.grad.isfinite().all())


def test_decoders_start_from_the_means_and_give_expected_values() -> None:
    x = torch.from_numpy(table())[:, None, None]
    decoder = TableDecoder(MlpDecoder(2, (1, 1, 10), (4,), sigmoid=False), SIZES)
    torch.nn.init.zeros_(decoder.network.layers[-1].weight)  # type: ignore[union-attr,arg-type]
    torch.nn.init.zeros_(decoder.network.layers[-1].bias)  # type: ignore[union-attr,arg-type]
    decoder.set_profile(x.mean(0))
    found = decoder(torch.randn(5, 2)).detach()
    assert found.shape == (5, 1, 1, 10)
    torch.testing.assert_close(found[0], x.mean(0), atol=0.11, rtol=0)
    torch.testing.assert_close(found[..., 5:8].sum(-1), torch.ones(5, 1, 1))
    encoder = TableEncoder(MlpEncoder((1, 1, 10), 2, (4,)), SIZES)
    assert encoder(x[:5]).shape == (5, 2)


def mixed(storage: Path, name: str, **columns: Any) -> dict[str, Any]:
    return small(
        storage,
        run={"name": name},
        model={"decoder_output": "linear"},
        method={"reconstruction_loss": "mixed"},
        data={"columns": {**COLUMNS, **columns}},
    )


class StopAt12:
    def on_log(self, metrics: dict[str, float]) -> bool:
        return metrics["step"] == 12


@pytest.mark.run
@pytest.mark.timeout(180)
def test_a_run_on_a_table_learns_it_and_resumes_bit_for_bit(tmp_path: Path) -> None:
    x = table()
    config = mixed(tmp_path, "whole")
    config["train"]["steps"] = 60
    whole = aae_dist.train(config, x, progress=False)
    losses = [record["loss/reconstruction"] for record in whole.history]
    assert losses[-1] < 0.8 * losses[0]
    config["run"] = {**config["run"], "name": "broken"}
    assert aae_dist.train(config, x, [StopAt12()], progress=False).step == 12
    broken = aae_dist.train(config, x, progress=False)
    assert_bit_equal(broken.uri, whole.uri, 60)
    again = broken.run.reconstruct(x[:4]).flatten(1)
    torch.testing.assert_close(again[:, 8:].sum(1), torch.ones(4))
    assert float(again[:, 2:5].min()) > 0


def with_column(number: int, value: float) -> NDArray[np.float32]:
    x = table()
    x[:, number] = value
    return x


@pytest.mark.parametrize(
    ("x", "columns", "message"),
    [
        (table(), {"real": 5}, "data.columns: 13 columns in all, .* has samples of shape"),
        (with_column(3, 0.5), {}, r"counts are whole numbers from 0 on \(got 0.5\)"),
        (with_column(6, 2.0), {}, "category 0 should be one-hot"),
        (table(), {"categories": (1, 4)}, "data.columns.categories"),
    ],
)
def test_tables_that_do_not_fit_are_refused(
    tmp_path: Path, x: Any, columns: dict[str, Any], message: str
) -> None:
    with pytest.raises(aae_dist.ConfigError, match=message):
        aae_dist.train(mixed(tmp_path, "a", **columns), x, progress=False)


def test_columns_and_the_loss_go_together(tmp_path: Path) -> None:
    with pytest.raises(aae_dist.ConfigError, match=r"data.columns: names the columns of .*mixed"):
        aae_dist.train(small(tmp_path, data={"columns": COLUMNS}), table())
    config = small(tmp_path, method={"reconstruction_loss": "mixed"})
    with pytest.raises(aae_dist.ConfigError, match="mixed needs model.decoder_output=linear"):
        aae_dist.train(config, table())
