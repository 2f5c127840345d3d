import pytest

from aae_dist.report.markup import Html, join, tag
from aae_dist.report.text import duration, number, spelled

CANARY = "<script>alert('canary')</script>\"' onload=canary &amp;"


def test_text_and_attributes_are_escaped_and_markup_is_not():
    made = tag("p", CANARY, tag("b", "bold"), title=CANARY, class_="a", hidden=True, id=None)
    assert "<script" not in made
    assert made.count("<b>bold</b>") == 1
    assert made.startswith('<p title="&lt;script&gt;alert(&#x27;canary&#x27;)&lt;/script&gt;&quot;')
    assert made.endswith("</p>")
    assert ' class="a" hidden>' in made
    assert join(CANARY, Html("<i>")).endswith("&amp;amp;<i>")


def test_elements_without_content_are_not_closed():
    assert tag("meta", name="viewport", http_equiv="x") == '<meta name="viewport" http-equiv="x">'


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
        spelled({"kind": "mixture", "num_modes": 5, "on": True}) == "mixture, num_modes 5, on true"
    )
    assert spelled([512, 256]) == "[512, 256]"
