import pytest

from aae_dist.report.view import format_value, number
from aae_dist.utils.text import duration


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.44, "0.4 s"), (59, "59 s"), (200, "3 min 20 s"), (3600, "1 h"), (90061, "1 d 1 h")],
)
def test_durations_have_two_units(seconds, words):
    assert duration(seconds) == words


def test_numbers_and_structural_values_fit_a_cell():
    assert [number(v) for v in (None, float("nan"), 1e-4, 12345.0, 0.123456)] == [
        "–", "–", "0.0001", "12,345", "0.1235",
    ]  # fmt: skip
    assert (
        format_value({"kind": "mixture", "num_modes": 5, "on": True})
        == "mixture, num_modes 5, on true"
    )
    assert format_value([512, 256]) == "[512, 256]"
