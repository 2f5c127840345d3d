"""Parse YAML and `key.path=value` overrides into trees, and write YAML, with YAML 1.2 scalars.

PyYAML reads YAML 1.1, where `1e-4` is text, `off` is false, `1:30` is 90 and `2024-01-01` a date.
Here `1e-4` is a number, only true and false are booleans, and the other three are text.
"""

import json
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node as YamlNode, ScalarNode, SequenceNode

from aae_dist.config.schema import Node, Tree, Value

LARGEST_BYTES = 1 << 20
LARGEST_NODES = 20_000  # Counted with aliases written out, so that they cannot multiply.
LARGEST_DEPTH = 32
LARGEST_DIGITS = 100
"""Characters of a number: Python writes out no whole number of more than 4,300 digits."""

LARGEST_SHOWN = 200  # characters of an override that a message repeats

_KEY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_TAG = "tag:yaml.org,2002:"
_INT = re.compile(r"[-+]?[0-9]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(
    r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
_SCALARS = (
    (_TAG + "null", re.compile(r"~|null|Null|NULL|"), list("~nN") + [""]),
    (_TAG + "bool", re.compile(r"true|True|TRUE|false|False|FALSE"), list("tTfF")),
    (_TAG + "int", _INT, list("-+0123456789")),
    (_TAG + "float", _FLOAT, list("-+.0123456789")),
)


class YamlProblem(Exception):
    """The text is not YAML, or not allowed in a configuration; has the line and the reason."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(reason)
        self.line, self.reason = line, reason


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012
    depth = 0
    count = 0

    def compose_node(self, parent: YamlNode | None, index: int) -> YamlNode | None:
        # Checked while composing: the composer recurses, so deep nesting would crash it first,
        # and it takes a minute for a million values.
        self.depth += 1
        self.count += 1
        if self.count > LARGEST_NODES:
            raise YamlProblem(self.line + 1, f"more than {LARGEST_NODES} values")
        if self.depth > LARGEST_DEPTH:
            raise YamlProblem(self.line + 1, f"nested deeper than {LARGEST_DEPTH} levels")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


for _tag, _pattern, _first in _SCALARS:
    _anchored = re.compile(f"(?:{_pattern.pattern})\\Z")
    _Loader.add_implicit_resolver(_tag, _anchored, _first)
    # In addition to YAML 1.1's: text that is a number in either version is written in quotes.
    _Dumper.add_implicit_resolver(_tag, _anchored, _first)
_Dumper.add_representer(
    list, lambda dumper, data: dumper.represent_sequence(_TAG + "seq", data, flow_style=True)
)


def parse(text: str, source: str, number_lines: bool = True) -> Node:
    """Return the tree of one YAML document; the source of a leaf is `source`, with its line."""
    if len(text) > LARGEST_BYTES:
        raise YamlProblem(1, f"larger than {LARGEST_BYTES} characters")
    try:
        root = _Loader(text).get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        reason = " ".join(filter(None, (error.context, error.problem)))
        raise YamlProblem(mark.line + 1 if mark else 1, reason) from None
    except yaml.YAMLError as error:
        raise YamlProblem(1, str(error).splitlines()[0]) from None
    return {} if root is None else _Builder(source, number_lines).node(root)


def dump(value: Any) -> str:
    """Return maps, lists and scalars as YAML: maps in blocks in their order, lists on one line."""
    # Non-ASCII characters are escaped: PyYAML loses some of Unicode's line breaks otherwise.
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, width=100)


def count_nodes(value: Any) -> int:
    """Return how many nodes `parse` counts in the YAML of a value: maps, lists, scalars, keys."""
    if isinstance(value, dict):
        return 1 + sum(1 + count_nodes(child) for child in value.values())
    return 1 + sum(map(count_nodes, value)) if isinstance(value, list) else 1


class _Builder:
    """Builds a tree from composed YAML nodes, counting the nodes that aliases expand to."""

    def __init__(self, source: str, number_lines: bool) -> None:
        self.source, self.number_lines, self.count = source, number_lines, 0

    def node(self, node: YamlNode, depth: int = 0) -> Node:
        if isinstance(node, MappingNode):
            self._check(node, depth)
            return {key: self.node(child, depth + 1) for key, child in self._items(node)}
        line = _line(node)
        source = f"{self.source}:{line}" if self.number_lines else self.source
        return Value(self._value(node), source)

    def _value(self, node: YamlNode, depth: int = 0) -> Any:
        self._check(node, depth)
        if isinstance(node, MappingNode):
            return {key: self._value(child, depth + 1) for key, child in self._items(node)}
        if isinstance(node, SequenceNode):
            return [self._value(child, depth + 1) for child in node.value]
        return _scalar(node)

    def _check(self, node: YamlNode, depth: int) -> None:
        self.count += 1
        if self.count > LARGEST_NODES:
            raise YamlProblem(_line(node), f"more than {LARGEST_NODES} values, aliases written out")
        if depth > LARGEST_DEPTH:
            raise YamlProblem(_line(node), "an alias contains itself")
        if not isinstance(node, ScalarNode) and node.tag not in (_TAG + "map", _TAG + "seq"):
            raise YamlProblem(_line(node), f"the tag {node.tag} is not supported")

    def _items(self, node: MappingNode) -> list[tuple[str, YamlNode]]:
        items: dict[str, YamlNode] = {}
        for key_node, child in node.value:
            key = _key(key_node)
            if key in items:
                raise YamlProblem(_line(key_node), f"duplicate key {key!r} in one map")
            items[key] = child
        return list(items.items())


def _key(node: YamlNode) -> str:
    if not isinstance(node, ScalarNode) or node.tag != _TAG + "str" or not node.value:
        raise YamlProblem(_line(node), "a key must be text; quote it")
    if node.value == "<<":
        raise YamlProblem(_line(node), "merge keys (<<) are not supported; give several files")
    return str(node.value)


def _float(text: str) -> float:
    if text.lower().strip("+-.") in ("inf", "nan"):
        return float(text.replace(".", "", 1))
    value = float(text)
    mantissa = text.lower().partition("e")[0]
    # 1e999 would become infinity and 1e-999 zero.
    if math.isinf(value) or (not value and mantissa.strip("+-.0")):
        raise ValueError
    return value


def _text(text: str) -> str:
    text.encode()  # Refuses lone surrogates, which neither JSON nor a file name can hold.
    if "\0" in text:  # nor can a file name hold this
        raise ValueError
    return text


_READERS: dict[str, Callable[[str], Any]] = {
    "null": lambda text: None,
    "bool": lambda text: text.lower() == "true",
    "int": lambda text: int(text, 16) if text.startswith("0x") else int(text),
    "float": _float,
    "str": _text,
}


def _scalar(node: YamlNode) -> Any:
    reader = _READERS.get(node.tag.removeprefix(_TAG)) if isinstance(node, ScalarNode) else None
    if reader is None:
        raise YamlProblem(_line(node), f"the tag {node.tag} is not supported")
    kind = node.tag.removeprefix(_TAG)
    if kind in ("int", "float") and len(node.value) > LARGEST_DIGITS:
        reason = f"{node.value[:20]}... is not a valid {kind}: more than {LARGEST_DIGITS} digits"
        raise YamlProblem(_line(node), reason)
    try:
        return reader(node.value)
    except ValueError:
        raise YamlProblem(_line(node), f"{node.value[:40]!r} is not a valid {kind}") from None


def _line(node: YamlNode) -> int:
    return int(node.start_mark.line) + 1


def read_overrides(overrides: Sequence[str]) -> tuple[Tree, list[str]]:
    """Return the layer of the overrides, and one line per override that cannot be parsed."""
    layer: Tree = {}
    problems = []
    for text in overrides:
        try:
            keys, value = _read(text)
        except YamlProblem as problem:
            shown = text if len(text) <= LARGEST_SHOWN else f"{text[:LARGEST_SHOWN]}..."
            problems.append(f"override {shown!r}: {problem.reason}")
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
        node = parse(value, f"override {text}", number_lines=False)
    except YamlProblem as problem:
        raise YamlProblem(
            1,
            f"the value is not YAML ({problem.reason}); quote text with special characters, "
            f"for example {key}='\"{{000..011}}.tar\"'",
        ) from None
    try:
        _check_all_is_read(value)
    except YamlProblem as problem:
        quoted = json.dumps(value.strip(), ensure_ascii=False)
        raise YamlProblem(1, f"{problem.reason}; quote the text: {key}='{quoted}'") from None
    return key.split("."), node


_DROPPED = (
    *(yaml.AnchorToken, yaml.AliasToken, yaml.DirectiveToken),
    *(yaml.DocumentStartToken, yaml.DocumentEndToken),
)


def _check_all_is_read(text: str) -> None:
    """Raise YamlProblem unless every character of an override's value is part of what is read.

    YAML drops comments, which begin at ` #`, blanks around plain text, anchors and marks of
    documents, and folds line breaks: a path with one of these would become another path.
    """
    end = 0
    for token in yaml.scan(text, Loader=_Loader):
        start, after = token.start_mark.index, token.end_mark.index
        _check_gap(text[end:start])
        if isinstance(token, _DROPPED):
            raise YamlProblem(1, f"{text[start:after]!r} would not be part of the value")
        if isinstance(token, yaml.ScalarToken):
            _check_scalar(text, token)
        end = max(end, after)
    _check_gap(text[end:])


def _check_gap(gap: str) -> None:
    if gap.strip(" \t\r\n"):
        raise YamlProblem(1, f"{gap.strip()[:40]!r} begins a comment in YAML and would not be read")


def _check_scalar(text: str, token: yaml.ScalarToken) -> None:
    raw = text[token.start_mark.index : token.end_mark.index]
    if token.style in ("|", ">"):
        return _check_gap(raw.splitlines()[0].partition(" ")[2])
    if token.plain and raw != token.value or len(raw.splitlines()) > 1:
        raise YamlProblem(1, f"the line break in {raw[:40]!r} would become a blank")
    if token.plain and text.strip(" \r\n") == raw != text and _is_text(raw):
        raise YamlProblem(1, f"the blanks around {raw[:40]!r} would be dropped")
    return None


def _is_text(raw: str) -> bool:
    return not any(pattern.fullmatch(raw) for _, pattern, _ in _SCALARS)


def _put(layer: Tree, keys: list[str], value: Node) -> None:
    """Set `keys` in the layer; a map is merged into the map of an earlier override."""
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
