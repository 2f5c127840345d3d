"""Configuration before validation: nested maps whose leaves know their source."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Value:
    """A JSON scalar or list, and where it was set."""

    value: Any
    source: str
    """For messages: `configs/a.yaml:3`, `override train.steps=10` or `default`."""


Node = Value | dict[str, "Node"]
Tree = dict[str, Node]


def plain(node: Node) -> Any:
    """Return the node as maps, lists and scalars."""
    if isinstance(node, Value):
        return node.value
    return {key: plain(child) for key, child in node.items()}


def from_plain(value: Any, source: str) -> Node:
    """Return a node of maps, lists and scalars whose leaves all have the given source."""
    if isinstance(value, dict):
        return {key: from_plain(child, source) for key, child in value.items()}
    return Value(value, source)


def leaves(node: Node, path: str) -> Iterator[tuple[str, Value]]:
    """Yield (dotted path, leaf) for all leaves under the node at `path`."""
    if isinstance(node, Value):
        yield path, node
        return
    for key, child in node.items():
        yield from leaves(child, join(path, key))


def join(path: str, key: str) -> str:
    """Return the dotted path of `key` under `path`; the root's path is empty."""
    return f"{path}.{key}" if path else key


def find(node: Node, keys: tuple[str | int, ...]) -> Node | None:
    """Return the node at `keys`, or the list that contains it; None if there is none."""
    for key in keys:
        if isinstance(node, Value):
            return node
        if key not in node:
            return None
        node = node[str(key)]
    return node


def short_json(value: Any, longest: int = 60) -> str:
    """Return a value as one line of JSON, cut at `longest` characters."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= longest else text[: longest - 3] + "..."
