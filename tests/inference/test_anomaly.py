"""Scores of how unusual samples are, and `aae-dist score`, which writes them."""

import csv
import json
import shutil

import numpy as np
import pyarrow.dataset
import pytest
import torch
from helpers.shards import SIDE, image_of, write_shards
from helpers.trained import save_run

import aae_dist
from aae_dist.cli import main
from aae_dist.inference.anomaly import (
    Neighbours,
    Reference,
    Scorer,
    reference_of,
    share_below,
)

COUNTS = (300, 0, 5)
NAMES = ("error", "log_density", "discriminator")
CODES = torch.empty(0, 3)


@pytest.fixture
def run(tmp_path):
    save_run(tmp_path / "run", shape=(1, SIDE, SIDE))
    write_shards(tmp_path / "shards", COUNTS)
    return str(tmp_path / "run")


def images(count: int) -> torch.Tensor:
    return torch.stack([torch.from_numpy(image_of(n))[None] for n in range(count)])


def drawn(num: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((num, 3)) ** 3


def nearest_densities(z: np.ndarray, known: np.ndarray, same: float = 0.0) -> list[float]:
    """The formula of `Neighbours`, written out for codes of three dimensions."""
    found = []
    for row in z:
        distances = np.sqrt(((known - row) ** 2).sum(1))
        r = distances[distances > same].min()
        ball = 4 / 3 * np.pi * r**3
        found.append(-np.euler_gamma - np.log(len(known) * ball))
    return found


def test_scores_are_error_density_and_logit(run):
    trained = aae_dist.load_run(run)
    x = images(20)
    z = trained.encode(x)
    known = trained.encode(images(300)[20:])
    table = Scorer(trained, Neighbours(known))(x)
    pixels = x.double() / 255
    error = (trained.decode(z).double() - pixels).square().mean((1, 2, 3))
    assert table[:, 0] == pytest.approx(error.numpy(), rel=1e-5)
    assert table[:, 1] == pytest.approx(Neighbours(known).log_prob(z).numpy(), rel=1e-6)
    assert table[:, 2] == pytest.approx(trained.discriminate(z).numpy(), rel=1e-6)


def test_a_run_without_a_discriminator_has_fewer_scores(tmp_path):
    save_run(tmp_path, method={"kind": "mmd"}, prior={"kind": "swiss_roll"})
    scorer = Scorer(aae_dist.load_run(str(tmp_path)), Neighbours(torch.randn(9, 2)))
    assert scorer.names == ("error", "log_density")


def test_the_density_is_that_of_the_nearest_known_code():
    known, z = drawn(200).astype(np.float32), drawn(50, seed=1).astype(np.float32)
    density = Neighbours(torch.from_numpy(known))
    found = density.log_prob(torch.from_numpy(z)).numpy()
    assert found == pytest.approx(nearest_densities(z, known, density.same), rel=1e-5)


def test_the_density_of_normal_codes_is_that_of_the_normal_distribution_on_average():
    generator = torch.Generator().manual_seed(0)
    z, known = (torch.randn(n, 3, generator=generator) for n in (2000, 5000))
    true = torch.distributions.Normal(0, 1).log_prob(z.double()).sum(1)
    error = Neighbours(known).log_prob(z) - true
    assert error.mean().item() == pytest.approx(0, abs=0.1)


@pytest.mark.parametrize("rounding", [0, 1e-6])
def test_a_known_sample_is_not_its_own_neighbour(rounding):
    known = torch.from_numpy(drawn(300).astype(np.float32))
    others = [Neighbours(known[np.arange(300) != n]).log_prob(known[n : n + 1]) for n in range(9)]
    found = Neighbours(known).log_prob(known[:9] + rounding)
    slow = torch.cat(others) + np.log(299 / 300)
    assert found.numpy() == pytest.approx(slow.numpy(), abs=1e-3)


def test_codes_that_are_all_equal_have_a_density():
    found = Neighbours(torch.zeros(200, 3)).log_prob(torch.tensor([[0.0, 0, 0], [1, 0, 0]]))
    assert found.isfinite().all()
    assert found[0] > found[1]


def test_ranks_are_parts_of_the_validation_samples_with_ties_halved():
    known = np.array([1.0, 2.0, 2.0, 5.0])
    found = share_below(known, np.array([0.0, 1.0, 2.0, 3.0, 9.0]))
    assert found.tolist() == [0, 0.125, 0.5, 0.75, 1]
    reference = Reference(NAMES, drawn(1000), CODES)
    assert reference.columns == (*NAMES, *(f"{n}_rank" for n in NAMES), "combined", "rank")
    table = drawn(2000, seed=1)
    rows = reference.rank(table)
    assert np.array_equal(rows[:, :3], table)
    known = drawn(1000)
    slow = [(known[:, 0] < value).mean() for value in table[:, 0]]
    assert rows[:, 3] == pytest.approx(slow)
    # A low density is unusual.
    slow = [(known[:, 1] > value).mean() for value in table[:, 1]]
    assert rows[:, 4] == pytest.approx(slow)


def test_one_of_twenty_ordinary_samples_ranks_above_95_percent():
    reference = Reference(NAMES, drawn(10_000), CODES)
    ranks = reference.rank(drawn(20_000, seed=1))[:, -1]
    assert (ranks > 0.95).mean() == pytest.approx(0.05, abs=0.01)
    assert (ranks > 0.5).mean() == pytest.approx(0.5, abs=0.02)


def test_values_beyond_all_validation_samples_still_differ():
    both = np.column_stack([np.linspace(0, 1, 500), np.zeros(500)])
    reference = Reference(NAMES[:2], both, CODES)
    combined = reference.rank(np.array([[0.5, 0], [0.97, 0], [2.0, 0], [3.0, 0]]))[:, -2]
    assert (np.diff(combined) > 0).all()
    # Each score alone: -log of the part that is as unusual, of equal ones half.
    assert combined[0] == pytest.approx(-2 * np.log(0.5), abs=0.01)
    again = Reference.from_bytes(NAMES[:2], reference.to_bytes())
    assert np.array_equal(again.table, reference.table)
    assert torch.equal(again.codes_nZ, reference.codes_nZ)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_score_writes_a_row_per_sample_and_resumes_with_equal_bytes(run, tmp_path, capsys):
    shards, out = str(tmp_path / "shards"), tmp_path / "scores"
    argv = ["score", run, shards, "--reference", shards, "--out"]
    assert main([*argv, str(out)]) == 0
    table = pyarrow.dataset.dataset(str(out), format="parquet").to_table()
    assert table["key"].to_pylist() == [f"{n:06d}" for n in range(305)]
    assert table["label"].to_pylist() == [n % 10 for n in range(305)]
    reference = reference_of(aae_dist.load_run(run), [shards])
    scorer = Scorer(aae_dist.load_run(run), Neighbours(reference.codes_nZ))
    parts = [images(305)[at] for at in (slice(256), slice(256, 300), slice(300, 305))]
    expected = np.concatenate([reference.rank(scorer(part)) for part in parts])
    assert table.column_names == ["key", "label", "class", *reference.columns]
    assert np.array_equal(np.column_stack([table[n] for n in reference.columns]), expected)
    ranks = np.array(table["rank"])
    assert (ranks > 0.95).mean() == pytest.approx(0.05, abs=0.01)

    whole = contents(out)
    (out / "000000.parquet").unlink()
    about = json.loads((out / "_about.json").read_text())
    (out / "_about.json").write_text(json.dumps({**about, "complete": False}))
    assert main([*argv, str(out)]) == 0
    assert contents(out) == whole
    assert main(["encode", run, shards, "--out", str(out)]) == 2
    assert "holds the output of another command" in capsys.readouterr().err

    shutil.rmtree(out)
    assert main([*argv, str(out), "--format", "csv"]) == 0
    with (out / "000000.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["key", "label", *reference.columns]
    assert [list(map(float, row[2:])) for row in rows[1:]] == expected[:300].tolist()
