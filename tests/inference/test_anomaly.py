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
from aae_dist.inference.anomaly import Reference, Scorer, share_below

COUNTS = (300, 0, 5)
NAMES = ("error", "log_density", "discriminator")


@pytest.fixture
def run(tmp_path):
    save_run(tmp_path / "run", shape=(1, SIDE, SIDE))
    write_shards(tmp_path / "shards", COUNTS)
    return str(tmp_path / "run")


def images(count: int) -> torch.Tensor:
    return torch.stack([torch.from_numpy(image_of(n))[None] for n in range(count)])


def drawn(num: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((num, 3)) ** 3


def test_scores_are_error_density_and_logit(run):
    trained = aae_dist.load_run(run)
    x = images(20)
    z = trained.encode(x)
    table = Scorer(trained)(x)
    pixels = x.double() / 255
    error = (trained.decode(z).double() - pixels).square().mean((1, 2, 3))
    assert table[:, 0] == pytest.approx(error.numpy(), rel=1e-5)
    assert table[:, 1] == pytest.approx(trained.prior.log_prob(z).numpy(), rel=1e-6)
    assert table[:, 2] == pytest.approx(trained.discriminate(z).numpy(), rel=1e-6)


def test_a_run_without_a_discriminator_or_a_density_has_fewer_scores(tmp_path):
    save_run(tmp_path, method={"kind": "mmd"}, prior={"kind": "swiss_roll"})
    assert Scorer(aae_dist.load_run(str(tmp_path))).names == ("error",)


def test_ranks_are_parts_of_the_validation_samples_with_ties_halved():
    known = np.array([1.0, 2.0, 2.0, 5.0])
    found = share_below(known, np.array([0.0, 1.0, 2.0, 3.0, 9.0]))
    assert found.tolist() == [0, 0.125, 0.5, 0.75, 1]
    reference = Reference(NAMES, drawn(1000), is_two_sided=False)
    assert reference.columns == (*NAMES, *(f"{n}_rank" for n in NAMES), "combined", "rank")
    table = drawn(2000, seed=1)
    rows = reference.rank(table)
    assert np.array_equal(rows[:, :3], table)
    slow = [(drawn(1000)[:, 0] < value).mean() for value in table[:, 0]]
    assert rows[:, 3] == pytest.approx(slow)
    # A low density is unusual.
    slow = [(drawn(1000)[:, 1] > value).mean() for value in table[:, 1]]
    assert rows[:, 4] == pytest.approx(slow)


def test_one_of_twenty_ordinary_samples_ranks_above_95_percent():
    reference = Reference(NAMES, drawn(10_000), is_two_sided=True)
    ranks = reference.rank(drawn(20_000, seed=1))[:, -1]
    assert (ranks > 0.95).mean() == pytest.approx(0.05, abs=0.01)
    assert (ranks > 0.5).mean() == pytest.approx(0.5, abs=0.02)


def test_values_beyond_all_validation_samples_still_differ():
    reference = Reference(("error",), np.linspace(0, 1, 500)[:, None], is_two_sided=True)
    combined = reference.rank(np.array([[0.5], [0.97], [2.0], [3.0]]))[:, -2]
    assert (np.diff(combined) > 0).all()
    assert combined[0] == pytest.approx(-np.log(0.5), abs=0.01)
    again = Reference.from_bytes(("error",), reference.to_bytes(), is_two_sided=True)
    assert np.array_equal(again.table, reference.table)


def test_a_code_at_the_mode_of_the_prior_is_unusual_too():
    table = np.random.default_rng(0).chisquare(16, 5000)[:, None] / -2
    middle, modes = np.array([[-8.0]]), np.array([[0.0], [-30.0]])
    for two_sided, least in ((True, 0.99), (False, -1)):
        reference = Reference(("log_density",), table, two_sided)
        assert reference.rank(middle)[0, -1] < 0.6
        assert reference.rank(modes)[0, -1] > least
        assert reference.rank(modes)[1, -1] > 0.99
    assert reference.rank(modes)[0, -1] == 0


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_score_writes_a_row_per_sample_and_resumes_with_equal_bytes(run, tmp_path, capsys):
    shards, out = str(tmp_path / "shards"), tmp_path / "scores"
    argv = ["score", run, shards, "--reference", shards, "--out"]
    assert main([*argv, str(out)]) == 0
    table = pyarrow.dataset.dataset(str(out), format="parquet").to_table()
    assert table["key"].to_pylist() == [f"{n:06d}" for n in range(305)]
    assert table["label"].to_pylist() == [n % 10 for n in range(305)]
    scorer = Scorer(aae_dist.load_run(run))
    reference = scorer.reference([shards])
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
