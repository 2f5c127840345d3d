"""Trees of configuration before validation, and the keys, kinds and defaults of the sections."""

import json
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic_core import to_jsonable_python

from aae_dist.config.sections import Section


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


RENAMED = {
    "data.max_bad_in_a_row": "data.max_consecutive_bad_samples",
    "train.max_roll_backs": "train.max_rollbacks",
    "launch.max_stuck_seconds": "launch.hang_timeout_seconds",
}
"""Former names of keys, which checkpoints of schema 1 may contain."""
ADDED: Mapping[str, Mapping[str | None, Mapping[str, Any]]] = {
    "data": {None: {"standardize": False}},
    "method": {"adversarial": {"balance": "none"}},
}
"""By section and kind: what runs did whose checkpoints lack a key that has another default now."""

Classes = tuple[type[Section], ...]
"""The section classes possible at a path: none for a plain value, several for a union by `kind`."""


def classes_in(annotation: Any) -> Classes:
    """Return the section classes in an annotation."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return (annotation,)
    if get_origin(annotation) is Annotated:
        return classes_in(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(found for member in get_args(annotation) for found in classes_in(member))
    return ()


@cache
def children(classes: Classes, key: str) -> Classes:
    """Return the section classes possible at `key` of any of `classes`."""
    found = (cls.model_fields[key].annotation for cls in classes if key in cls.model_fields)
    return tuple(child for annotation in found for child in classes_in(annotation))


def item_classes(classes: Classes, key: str) -> Classes:
    """Return the section classes of the items of lists at `key` of any of `classes`."""
    found = [cls.model_fields[key].annotation for cls in classes if key in cls.model_fields]
    lists = [a for annotation in found for a in _plain_types(annotation) if get_origin(a) is tuple]
    return tuple(c for each in lists for item in get_args(each) for c in classes_in(item))


def _plain_types(annotation: Any) -> list[Any]:
    """Return the members of a union without what `Annotated` adds."""
    if get_origin(annotation) is Annotated:
        return _plain_types(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [a for member in get_args(annotation) for a in _plain_types(member)]
    return [annotation]


def may_be_list(classes: Classes, path: str) -> bool:
    """Return whether the value at a dotted path may be a list; true for an unknown path."""
    *parents, last = path.split(".")
    for key in parents:
        classes = children(classes, key)
    found = [cls.model_fields[last].annotation for cls in classes if last in cls.model_fields]
    plain = [str(a) for a in found if "tuple[" not in str(a) and "dict[" not in str(a)]
    return not found or len(plain) < len(found)


@cache
def by_kind(classes: Classes) -> Mapping[str, type[Section]]:
    """Return the classes of a union by `kind`; empty for sections without kinds."""
    return {
        kind: cls
        for cls in classes
        if "kind" in cls.model_fields
        for kind in get_args(cls.model_fields["kind"].annotation)
    }


def keys_of(classes: Classes) -> list[str]:
    """Return the distinct keys of the classes."""
    return list(dict.fromkeys(key for cls in classes for key in cls.model_fields))


def choices(annotation: Any) -> list[Any]:
    """Return the values of the Literals in an annotation."""
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [value for member in get_args(annotation) for value in choices(member)]


def all_paths(classes: Classes, path: str = "") -> Iterator[str]:
    """Yield the dotted path of every key under the classes, including all kinds."""
    for key in keys_of(classes):
        yield join(path, key)
        yield from all_paths(children(classes, key), join(path, key))


def default_of(cls: type[Section], key: str) -> Any:
    """Return a field's default in JSON; null for a required field."""
    field = cls.model_fields[key]
    return None if field.is_required() else to_jsonable_python(field.get_default())


def default_tree(cls: type[Section]) -> dict[str, Any]:
    """Return the first layer: the defaults of every section that has its own default."""
    # `phases.generator.optimizer` differs from the defaults of its class, for example.
    tree: dict[str, Any] = {}
    for key, field in cls.model_fields.items():
        if isinstance(field.default, Section):
            tree[key] = field.default.model_dump(mode="json")
        elif len(below := classes_in(field.annotation)) == 1 and field.is_required():
            tree[key] = default_tree(below[0])
    return tree
