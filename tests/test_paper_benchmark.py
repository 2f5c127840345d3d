"""benchmarks/paper.py: what it keeps and what its table says."""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aae_dist.config import load_config

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, Any]]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import paper
    import paper_scores

    yield paper, paper_scores
    for name in ("paper", "paper_scores", "timing"):
        sys.modules.pop(name, None)


def test_labels_that_guide_are_in_the_training_data(
    modules: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    paper, _ = modules
    folder_of = {None: "mnist", 100: "mnist-100-{}", 10_000: "mnist-10000-{}"}
    monkeypatch.setattr(
        paper, "packed", lambda _, labels, seed: tmp_path / folder_of[labels].format(seed)
    )
    numbers = {"seeds": 2, "width": 8, "batch": 100, "epochs": 1.0, "evaluations": 1}
    options = argparse.Namespace(work=tmp_path, precision="fp32", **numbers)

    def space(key: str) -> Any:
        row = paper.ROWS[key]
        items = paper.overrides(row, "name", row.variants["ours"], options)
        (item,) = (item for item in items if item.startswith("sweep.space="))
        return json.loads(item.removeprefix("sweep.space="))

    guided = [
        [f"{tmp_path}/mnist-10000-{n}/{part}" for part in ("labelled", "train")] for n in (0, 1)
    ]
    assert space("guided-10000") == {"data.train": {"grid": guided}}
    labelled = [f"{tmp_path}/mnist-100-{n}/labelled" for n in (0, 1)]
    assert space("labels-100") == {"data.labelled": {"grid": labelled}}
    assert space("clusters-16") == {"run.seed": {"grid": [0, 1]}}


@pytest.mark.parametrize("key", ["labels-100", "reduction-100"])
def test_networks_of_1000_units_have_the_rates_of_the_file(
    modules: tuple[Any, Any], key: str
) -> None:
    paper, _ = modules
    given = ["run.name=a", "data.train=x.tar", "train.steps=1"]
    phases = load_config([paper.ROOT / paper.ROWS[key].files[0]], given).config.phases
    rates = {name: getattr(phases, name).optimizer.lr for name in paper.RATES}
    assert rates == paper.RATES


def result(row: str, variant: str, seed: int, value: float) -> dict[str, Any]:
    settings = {"epochs": 5, "width": 400, "batch": 100, "precision": "fp32"}
    name = {"row": row, "variant": variant, "seed": seed}
    return {**name, **settings, "value": value, "seconds": 60, "curve": [[1, 0.1], [5, value]]}


def test_the_table_says_what_is_met_and_what_was_not_run(modules: tuple[Any, Any]) -> None:
    results = [result("labels-100", "ours", seed, 0.05 + 0.01 * seed) for seed in range(3)]
    lines = [*modules[0].table(results), *modules[0].curves(results)]
    (ours,) = (line for line in lines if line.startswith("| 100 labels, error | ours"))
    assert "| 6.00 +- 2.48 | 3 | 5, 400 | 60 |" in ours
    assert "target 8 met, paper 1.9 **not met**" in ours
    assert sum("| not run |" in line for line in lines) == len(
        [v for row in modules[0].ROWS.values() for v in row.variants]
    ) - 1  # fmt: skip
    assert "- labels-100, ours (5 epochs, 400 units): 1: 0.1, 5: 0.05" in lines


def test_known_results_do_not_run_again(modules: tuple[Any, Any]) -> None:
    options = argparse.Namespace(seeds=1, epochs=5, width=400, batch=100, precision="fp32")
    known = [result("labels-100", "ours", 0, 0.05)]
    assert list(modules[0].run("labels-100", "ours", options, known)) == []
