"""Samplers fitted to codes: what they draw, what they know, and what they refuse."""

import numpy as np
import pytest
import torch
from helpers.shards import SIDE, write_shards
from helpers.trained import save_run

import aae_dist
from aae_dist.cli import main
from aae_dist.errors import ConfigError
from aae_dist.inference.samplers import (
    Flow,
    GaussianMixture,
    fit_flow,
    fit_gmm,
    load_sampler,
    match,
    save_sampler,
)

MIXTURE = GaussianMixture(
    {
        "weights": torch.tensor([0.3, 0.7]),
        "means": torch.tensor([[-4.0, 1.0], [3.0, 0.0]]),
        "factors": torch.tensor([[[1.0, 0.0], [0.5, 0.3]], [[0.4, 0.0], [-0.2, 1.5]]]),
    }
)


def codes(num: int, seed: int = 0) -> torch.Tensor:
    return MIXTURE.sample(num, torch.Generator().manual_seed(seed))


@pytest.mark.run  # SciPy's distributions import for long
def test_a_mixture_draws_and_knows_its_density():
    from scipy.stats import multivariate_normal

    z = codes(20_000)
    parts = [z[z[:, 0] < -0.5], z[z[:, 0] >= -0.5]]
    assert len(parts[0]) / len(z) == pytest.approx(0.3, abs=0.02)
    for part, mean, factor in zip(parts, MIXTURE._means, MIXTURE._factors, strict=True):
        assert part.mean(0).tolist() == pytest.approx(mean.tolist(), abs=0.08)
        assert part.T.cov().flatten().tolist() == pytest.approx(
            (factor @ factor.T).flatten().tolist(), abs=0.08
        )
    slow = sum(
        w * multivariate_normal(m, f @ f.T).pdf(z[:50].numpy())
        for w, m, f in zip(
            (0.3, 0.7), MIXTURE._means.numpy(), MIXTURE._factors.numpy(), strict=True
        )
    )
    assert MIXTURE.log_prob(z[:50]).numpy() == pytest.approx(np.log(slow), rel=1e-5)


@pytest.mark.run  # so does scikit-learn
def test_a_fitted_mixture_matches_codes_where_one_gaussian_does_not():
    z = codes(2000)
    fitted, single = fit_gmm(z * 50, 2, 0), fit_gmm(z * 50, 1, 0)
    assert match(fitted, codes(1000, seed=1) * 50, 0).value < 0.56
    assert match(single, codes(1000, seed=1) * 50, 0).value > 0.8
    assert fit_gmm(z, 2, 0).log_prob(z).mean() == pytest.approx(
        MIXTURE.log_prob(z).mean().item(), abs=0.02
    )


@pytest.mark.run  # torch.optim imports for long
def test_a_flow_fits_and_its_density_is_that_of_its_samples():
    z = codes(2000) * torch.tensor([10.0, 0.1])
    flow = fit_flow(z, seed=0, steps=60)
    single = Flow({"mean": z.mean(0), "std": z.std(0)})  # before any step
    assert flow.log_prob(z).mean() > single.log_prob(z).mean() + 0.2
    again = Flow(flow.tensors())
    assert torch.equal(again.log_prob(z), flow.log_prob(z))
    draw = flow.sample(5, torch.Generator().manual_seed(0))
    assert torch.equal(draw, again.sample(5, torch.Generator().manual_seed(0)))


def test_fit_sampler_saves_what_sample_decodes(tmp_path, capsys):
    uri = str(tmp_path / "run")
    save_run(uri, shape=(1, SIDE, SIDE))
    write_shards(tmp_path / "shards", (150, 50))
    argv = ["fit-sampler", uri, str(tmp_path / "shards"), "--components", "3"]
    assert main([*argv, f"data.validation={tmp_path}/shards"]) == 0
    out = capsys.readouterr().out
    assert "fitting to 200 codes of step 7" in out
    assert "C2ST of samples of gmm against 200 validation codes: 0." in out
    assert "C2ST of samples of gaussian against 200 validation codes: 0.9" in out

    run = aae_dist.load_run(uri)
    sampler = load_sampler(run, "gmm")
    for seed in ("0", "1"):
        file = tmp_path / f"{seed}.npy"
        assert main(["sample", uri, "--sampler", "gmm", "--seed", seed, "--out", str(file)]) == 0
        drawn = sampler.sample(64, torch.Generator().manual_seed(int(seed)))
        assert np.array_equal(np.load(file), run.decode(drawn).numpy())
    assert main(["sample", uri, "--sampler", "flow", "--out", "a.npy"]) == 2
    assert "has no sampler flow: aae-dist fit-sampler" in capsys.readouterr().err
    assert main(["sample", uri, "--sampler", "gmm", "--classes", "all", "--out", "a.npy"]) == 2


def test_a_sampler_of_other_weights_or_a_damaged_one_is_refused(tmp_path):
    uri = str(tmp_path / "run")
    save_run(uri)
    run = aae_dist.load_run(uri)
    save_sampler(run, "gmm", MIXTURE, {})
    assert load_sampler(run, "gmm").log_prob(torch.zeros(1, 2)).shape == (1,)
    file = tmp_path / "run" / "samplers" / "gmm.safetensors"
    whole = file.read_bytes()
    for content in (b"", whole[:-9], b"\x80\x04" + whole):
        file.write_bytes(content)
        with pytest.raises(ConfigError, match="is damaged"):
            load_sampler(run, "gmm")
    file.write_bytes(whole)
    save_run(uri, step=9)
    with pytest.raises(ConfigError, match="fitted to other weights"):
        load_sampler(aae_dist.load_run(uri), "gmm")
