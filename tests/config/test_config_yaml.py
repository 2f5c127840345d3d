import math
import shlex
import time

import pytest

from aae_dist.config import load_config
from aae_dist.config.schema import plain
from aae_dist.config.yaml import YamlProblem, dump, parse, read_overrides
from aae_dist.errors import ConfigError


def value_of(text):
    return plain(parse(text, "x.yaml"))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E3", 1000.0),
        ("-.5", -0.5),
        ("3.0", 3.0),
        ("0x10", 16),
        ("007", 7),
        ("true", True),
        ("null", None),
        ("~", None),
        ("off", "off"),
        ("yes", "yes"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("1_000", "1_000"),
        ("'1e-4'", "1e-4"),
        ("e5", "e5"),
        ("[a, 1, {b: 2}]", ["a", 1, {"b": 2}]),
        ("", {}),
        ("# nothing but a comment", {}),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text, value):
    result = value_of(text)
    assert (result, type(result)) == (value, type(value))


@pytest.mark.parametrize("digits", ["9" * 9000, "9" * 4000, "0x" + "f" * 9000, "." + "1" * 9000])
def test_a_number_of_thousands_of_digits_is_refused_in_one_short_line(digits):
    with pytest.raises(ConfigError) as raised:
        load_config([], [f"run.seed={digits}", "run.name=x", "train.steps=1"])
    line = next(line for line in str(raised.value).splitlines() if "digits" in line)
    assert "more than 100 digits" in line
    assert len(line) < 500


@pytest.mark.parametrize("text", ["a\\0b", "\\x00", "\\ud800"])
def test_text_that_no_file_name_can_hold_is_refused(text):
    with pytest.raises(ConfigError, match="is not a valid str"):
        load_config([], [f'data.cache.dir="{text}"', "run.name=x", "train.steps=1"])


def test_infinity_and_nan_are_read_for_the_sections_to_refuse():
    assert value_of("-.inf") == -math.inf
    assert math.isnan(value_of(".nan"))


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("train:\n  steps: 1\n  steps: 2\n", 3, "duplicate key 'steps'"),
        ("a: 1\nb: [\n", 3, "expected the node content"),
        ("1: a\n", 1, "a key must be text"),
        ("true: a\n", 1, "a key must be text"),
        ("? [a]\n: b\n", 1, "a key must be text"),
        ("a: !!python/object/apply:os.system [ls]\n", 1, "python/object"),
        ("a: !!timestamp 2024-01-01\n", 1, "not supported"),
        ("a: !!int x\n", 1, "is not a valid int"),
        ("x: &x {a: 1}\ny:\n  <<: *x\n", 3, "merge keys"),
        ("a: 1\n---\nb: 2\n", 2, "another document"),
        ('a: "\\ud800"\n', 1, "is not a valid str"),
        ("a: " + "9" * 5000, 1, "is not a valid int"),
        ("a: " + "[" * 5000, 1, "nested deeper"),
        ("a: [" + "1, " * 30_000 + "1]", 1, "more than 20000 values"),
        ("a: &a [*a]\n", 1, "contains itself"),
        ("a: &a {b: *a}\n", 1, "contains itself"),
        ("a: \x00", 1, "special characters"),
        ("a: " + "x" * (1 << 20), 1, "larger than"),
    ],
)
def test_bad_yaml_is_refused_with_its_line(text, line, reason):
    with pytest.raises(YamlProblem, match=reason) as caught:
        parse(text, "x.yaml")
    assert caught.value.line == line


def test_aliases_that_multiply_are_refused_quickly():
    laughs = ["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    laughs += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    started = time.process_time()
    with pytest.raises(YamlProblem, match="more than 20000 values"):
        parse("\n".join(laughs), "x.yaml")
    assert time.process_time() - started < 5.0


def test_maps_that_multiply_are_refused_too():
    laughs = ["a0: &a0 {x: 1}"]
    laughs += [
        f"a{n}: &a{n} {{{', '.join(f'k{i}: *a{n - 1}' for i in range(10))}}}" for n in range(1, 9)
    ]
    with pytest.raises(YamlProblem, match="more than 20000 values"):
        parse("\n".join(laughs), "x.yaml")


def test_a_plain_alias_works():
    assert value_of("a: &a [1, 2]\nb: *a\n") == {"a": [1, 2], "b": [1, 2]}


def test_leaves_know_their_line():
    tree = parse("train:\n  steps: 3\n", "a.yaml")
    assert tree["train"]["steps"].source == "a.yaml:2"


@pytest.mark.parametrize(
    "value",
    [
        "1e-4",
        "1",
        "true",
        "off",
        "2024-01-01",
        "null",
        "",
        "a: b",
        "0o7",
        "*",
        "é",
        "\x85",
        "\u2028",
        "a\nb\n",
        " a ",
        "😀",
    ],
)
def test_text_that_looks_like_something_else_survives_a_dump(value):
    assert value_of(dump({"a": value})) == {"a": value}


@pytest.mark.parametrize("value", [1e-4, 1e-8, 3.0, 1e22, -0.0, 123456789.123])
def test_floats_stay_floats_and_exact(value):
    back = value_of(dump({"a": value}))["a"]
    assert back == value
    assert isinstance(back, float)


@pytest.mark.parametrize(
    ("value", "lost"),
    [
        ("OUT/exp #2/runs", "'#2/runs' begins a comment"),
        ("#runs", "'#runs' begins a comment"),
        ("[a, #b\n c]", "'#b' begins a comment"),
        ("{a: b #c\n}", "'#c' begins a comment"),
        ("| # c\n  x", "'# c' begins a comment"),
        ("\ufeffruns", "would not be read"),
        (" runs", "the blanks around 'runs'"),
        ("runs ", "the blanks around 'runs'"),
        ("runs\n", "the blanks around 'runs'"),
        ("a\nb", "the line break in"),
        ("a\x85b", "the line break in"),
        ("'a\n b'", "the line break in"),
        ("&a runs", "'&a' would not be part"),
        ("--- runs", "'---' would not be part"),
        ("runs\n...", "'...' would not be part"),
        ("1e999", "not a valid float"),
        ("-1e-999", "not a valid float"),
    ],
)
def test_an_override_of_which_a_part_would_vanish_is_refused(value: str, lost: str) -> None:
    layer, problems = read_overrides([f"run.storage={value}"])
    assert layer == {}
    assert len(problems) == 1
    assert lost in problems[0]


def test_the_advice_for_such_an_override_is_read_as_it_was_meant() -> None:
    _, problems = read_overrides(["run.storage=OUT/exp #2/runs"])
    advice = problems[0].rpartition("quote the text: ")[2]
    layer, problems = read_overrides([shlex.split(advice)[0]])
    assert problems == []
    assert plain(layer) == {"run": {"storage": "OUT/exp #2/runs"}}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a#b", "a#b"),
        ("'a #b '", "a #b "),
        ('"a #b"', "a #b"),
        (" 5 ", 5),
        ("{ a: [x , 'y #'] }", {"a": ["x", "y #"]}),
        ("[1,\n 2]\n", [1, 2]),
        ("|\n  x #y\n  z\n", "x #y\nz\n"),
        ("0.0e5", 0.0),
        (" null", None),
    ],
)
def test_an_override_that_is_read_as_given_stays_allowed(value: str, expected: object) -> None:
    layer, problems = read_overrides([f"key={value}"])
    assert problems == []
    assert plain(layer["key"]) == expected
