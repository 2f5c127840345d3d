"""benchmarks/paper.py: what it keeps and what its table says."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, Any]]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import paper
    import paper_scores

    yield paper, paper_scores
    for name in ("paper", "paper_scores", "timing"):
        sys.modules.pop(name, None)


def test_kmeans_finds_separate_clouds(modules: tuple[Any, Any]) -> None:
    draw = torch.Generator().manual_seed(0)
    cloud = torch.arange(4).repeat_interleave(25)
    points = (
        torch.randn(100, 2, generator=draw) + 20 * torch.eye(4, 2)[cloud] + 9.0 * cloud[:, None]
    )
    found = modules[1].kmeans(points, 4, seed=0).argmin(1)
    assert len({tuple(found[cloud == n].unique().tolist()) for n in range(4)}) == 4


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
