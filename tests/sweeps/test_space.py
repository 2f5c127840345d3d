"""Search spaces as pure values: what is a term, what its points and draws are."""

import math

import pytest

from aae_dist.sweeps import space
from aae_dist.sweeps.plan import RandomDraw

PRIOR = {
    "choice": [
        {"kind": "gaussian", "std": {"uniform": [1, 5]}},
        {"kind": "mixture", "num_modes": {"choice": [5, 10]}},
    ]
}


def test_grids_are_crossed_in_order_also_inside_options():
    node = {"a": {"grid": [1, {"b": {"grid": [2, 3]}}]}, "c": {"grid": ["x", "y"]}}
    points = space.grid_points(node)
    assert points[:2] == [{"a": 1, "c": "x"}, {"a": 1, "c": "y"}]
    assert points[2:4] == [{"a": {"b": 2}, "c": "x"}, {"a": {"b": 2}, "c": "y"}]
    assert len(points) == 6


def test_terms_of_an_option_are_drawn_only_with_it():
    found = [space.drawn(PRIOR, RandomDraw(0, n), "prior") for n in range(200)]
    gaussian = [v for v in found if v["kind"] == "gaussian"]
    mixture = [v for v in found if v["kind"] == "mixture"]
    assert 60 < len(gaussian) < 140
    assert all(1 <= v["std"] <= 5 and set(v) == {"kind", "std"} for v in gaussian)
    assert {v["num_modes"] for v in mixture} == {5, 10}


def test_randint_includes_both_ends_and_loguniform_is_even_in_the_logarithm():
    whole = {space.drawn({"randint": [2, 4]}, RandomDraw(n), "k") for n in range(100)}
    assert whole == {2, 3, 4}
    logs = [
        math.log10(space.drawn({"loguniform": [1e-4, 1e-2]}, RandomDraw(n), "k"))
        for n in range(400)
    ]
    assert all(-4.0001 <= value <= -1.9999 for value in logs)
    assert abs(sum(logs) / len(logs) + 3) < 0.1


def test_a_draw_is_a_function_of_its_key():
    draws = [space.drawn({"uniform": [0, 1]}, RandomDraw(7, 3), "k") for _ in range(2)]
    assert draws[0] == draws[1] != space.drawn({"uniform": [0, 1]}, RandomDraw(7, 4), "k")


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"grid": []}, "k.grid: should be a list of one or more"),
        ({"grid": [1, 1]}, "k.grid: duplicate option 1"),
        ({"uniform": [1]}, r"k.uniform: should be \[low, high\] with low < high"),
        ({"uniform": [2, 1]}, r"k.uniform: should be \[low, high\]"),
        ({"loguniform": [0, 1]}, "both above 0"),
        ({"randint": [1, 2.5]}, "both whole numbers"),
        ({"randint": [True, 5]}, "both whole numbers"),
        ({"grid": [1], "std": 3}, "a term stands alone in its map"),
        ({"choice": [{"a": {"grid": [1, 2]}}]}, "a grid cannot stand inside a choice"),
        ({"choice": [{"a": {"uniform": "x"}}]}, r"k.choice.0.a.uniform: should be"),
    ],
)
def test_a_term_that_is_not_well_formed_is_told(node, message):
    import re

    assert any(re.search(message, line) for line in space.problems(node, "k"))


def test_well_formed_spaces_have_no_problems():
    assert not list(space.problems(PRIOR, "prior"))
    assert not list(space.problems({"kind": "mixture", "num_modes": {"grid": [2, 4]}}, "prior"))
