"""`key.path=value` arguments: one layer, whatever their order."""

import re
from collections.abc import Sequence

from aae_dist.config.tree import Node, Tree
from aae_dist.config.yaml_text import YamlProblem, parse

_KEY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def read_overrides(overrides: Sequence[str]) -> tuple[Tree, list[str]]:
    """Return the layer that the overrides make, and one line for each that cannot be read."""
    layer: Tree = {}
    problems = []
    for text in overrides:
        try:
            keys, value = _read(text)
        except YamlProblem as problem:
            problems.append(f"override {text!r}: {problem.reason}")
        else:
            _put(layer, keys, value)
    return layer, problems


def _read(text: str) -> tuple[list[str], Node]:
    key, equals, value = text.partition("=")
    if not equals:
        raise YamlProblem(1, "is not KEY=VALUE, for example train.steps=1000")
    if not _KEY.fullmatch(key):
        raise YamlProblem(1, f"{key!r} is not a dotted key such as train.steps")
    if not value.strip():
        raise YamlProblem(1, f"no value; write {key}=null for none or {key}='\"\"' for empty text")
    try:
        return key.split("."), parse(value, f"override {text}", number_lines=False)
    except YamlProblem as problem:
        raise YamlProblem(
            1,
            f"the value is not YAML ({problem.reason}); put text that holds special characters "
            f"in quotes, for example {key}='\"{{000..011}}.tar\"'",
        ) from None


def _put(layer: Tree, keys: list[str], value: Node) -> None:
    """Set `keys` in the layer; a map joins a map that an earlier override made."""
    *parents, last = keys
    for key in parents:
        node = layer.get(key)
        if not isinstance(node, dict):
            node = layer[key] = {}
        layer = node
    present = layer.get(last)
    if isinstance(present, dict) and isinstance(value, dict):
        for key, child in value.items():
            _put(present, [key], child)
    else:
        layer[last] = value
