"""Readable lines for pydantic's errors: dotted path, what is expected, the value, a fix."""

import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError

from aae_dist.config import run_config, schema
from aae_dist.config.schema import Classes, Node, Value, find, join, leaves, short_json
from aae_dist.config.sections import BEYOND, Section
from aae_dist.config.sections.model import IMPORT_PATH
from aae_dist.config.sections.run import NAME, ROOTED

EXAMPLES = {"run.name": "run.name=my-first-run", "data.train": "data.train=builtin://digits/train"}

_WHAT = {
    **dict.fromkeys(("int_type", "int_from_float"), "a whole number"),
    **dict.fromkeys(("tuple_type", "list_type"), "a list"),
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), "a map of keys"),
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "finite_number": "a finite number",
    "greater_than": "greater than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "too_short": "a list of {min_length} or more",
    "too_long": "a list of {max_length}",
    "missing": "a list of more items",
    BEYOND: "{wanted}",
}

_FORMS = {
    NAME: "a name of letters, digits and . - _ (the first a letter or digit, 100 at most)",
    IMPORT_PATH: "an import path such as package.module:Class",
    ROOTED: "a path that begins with / or ~",
}

Keys = tuple[str | int, ...]
MISSING = ("missing", "union_tag_not_found")
"""Types of errors that an unreadable override may have caused."""


def lines(
    error: ValidationError,
    root: type[Section],
    tree: Node,
    contradictions: Sequence[tuple[str, str]] = (),
    is_complete: bool = True,
) -> list[str]:
    """Return one line per problem of a validation, in the order of the sections of `root`.

    `contradictions` between sections, as (path, text), come last. Missing keys are reported if the
    tree `is_complete`.
    """
    # Group the errors by key, since a union reports several for one value.
    grouped: dict[Keys, list[Mapping[str, Any]]] = {}
    for one in error.errors(include_url=False):
        if one["type"] != run_config.CROSS_CHECKS and (is_complete or one["type"] not in MISSING):
            keys, _ = _locate((root,), one["loc"])
            grouped.setdefault(keys, []).append(one)
    found = []
    for keys, errors in grouped.items():
        # A union of plain values reports an error per member: take the one that got furthest.
        if not any(other != keys and other[: len(keys)] == keys for other in grouped):
            found.append(_line(keys, errors, root, tree))
    return found + [_cross_check(path, text, tree) for path, text in contradictions]


def did_you_mean(got: Any, known: Iterable[Any]) -> str:
    """Return `; did you mean NAME?`, empty if no known name is similar."""
    close = get_close_matches(str(got), [str(name) for name in known], 1)
    return f"; did you mean {close[0]}?" if close and str(got) != close[0] else ""


def _locate(classes: Classes, loc: Sequence[str | int]) -> tuple[Keys, Classes]:
    """Return pydantic's location without its union tags, and the classes around its last key."""
    keys: list[str | int] = []
    around, below = classes, classes
    rest = list(loc)
    while rest:
        part = rest.pop(0)
        if below and str(part).startswith(("literal[", *(cls.__name__ for cls in below))):
            continue  # a member of a union without kinds
        if below and isinstance(part, str):
            keys.append(part)
            around, below = below, schema.children(below, part)
            variants = schema.by_kind(below)
            if len(below) > 1 and rest and rest[0] in variants:
                below = (variants[str(rest.pop(0))],)
        elif isinstance(part, int) or not keys or _is_open(around, keys[-1]):
            if isinstance(part, int) and keys:
                below = schema.item_classes(around, str(keys[-1]))
            keys.append(part)
    return tuple(keys), around


def _is_open(classes: Classes, key: str | int) -> bool:
    """Return whether the field is a map with arbitrary keys, which are part of the path."""
    fields = [cls.model_fields[str(key)] for cls in classes if key in cls.model_fields]
    return any(str(field.annotation).startswith("dict[") for field in fields)


def _line(keys: Keys, errors: list[Mapping[str, Any]], root: type[Section], tree: Node) -> str:
    path = ".".join(map(str, keys)) or "(whole configuration)"
    _, around = _locate((root,), errors[0]["loc"])
    match errors[0]["type"]:
        case "extra_forbidden":
            return _unknown(keys, around, root, tree)
        case "missing" if isinstance(keys[-1], str):
            return f"{path} is missing; {_example(path, around)}"
        case "union_tag_not_found" | "union_tag_invalid":
            tags = list(schema.by_kind(schema.children(around, str(keys[-1]))))
            node, whole = find(tree, (*keys, "kind")), (*keys, "kind")
            if isinstance(node, Value):
                node = Value(_value(node, whole), node.source)
            return _wrong_kind(path, tags, node)
    return _wrong_value(keys, errors, around, tree)


def _example(path: str, around: Classes) -> str:
    if path in EXAMPLES:
        return f"for example {EXAMPLES[path]}"
    key = path.rpartition(".")[2]
    fields = [cls.model_fields[key] for cls in around if key in cls.model_fields]
    return next(
        (" ".join(f.description.split()) for f in fields if f.description), "give it a value"
    )


def _wrong_kind(path: str, tags: list[str], got: Node | None) -> str:
    if not isinstance(got, Value) or got.value is None:
        return f"{path}.kind is missing; should be {_one_of(tags)}"
    return f"{path}.kind: should be {_one_of(tags)}{_got(got)}{did_you_mean(got.value, tags)}"


def _wrong_value(keys: Keys, errors: list[Mapping[str, Any]], around: Classes, tree: Node) -> str:
    node, last = find(tree, keys), str(keys[-1]) if keys else ""
    value = _value(node, keys)
    field = next((cls.model_fields[last] for cls in around if last in cls.model_fields), None)
    allowed = schema.choices(field.annotation) if field else []
    wanted = " or ".join(dict.fromkeys(_wanted(error, allowed) for error in errors))
    advice = did_you_mean(value, allowed)
    kinds = {error["type"] for error in errors}
    if "string_pattern_mismatch" in kinds and wanted == _FORMS[NAME]:
        near = re.sub(r"[^A-Za-z0-9._-]+", "-", str(value)).strip("-._")
        advice = f"; try {near}" if re.fullmatch(NAME, near) else ""
    if "string_type" in kinds and isinstance(value, int | float):
        advice = "; quote text that looks like a number"
    return f"{'.'.join(map(str, keys))}: should be {wanted}{_got(node, keys)}{advice}"


def _wanted(error: Mapping[str, Any], allowed: list[Any]) -> str:
    if error["type"] == "literal_error":
        return _one_of(allowed)
    if error["type"] == "string_pattern_mismatch":
        pattern = error["ctx"]["pattern"]
        return _FORMS.get(pattern, f"text that matches {pattern}")
    if error["type"] in _WHAT:
        return _WHAT[error["type"]].format(**error.get("ctx", {}))
    return f"valid ({error['msg']})"


def _one_of(values: list[Any]) -> str:
    listed = ", ".join(str(value) for value in dict.fromkeys(values))
    return f"one of {listed}" if len(values) > 1 else listed


def _unknown(keys: Keys, around: Classes, root: type[Section], tree: Node) -> str:
    """Return the line for an unknown key: it may be of another kind, misspelled, or misplaced."""
    path, parent, key = ".".join(map(str, keys)), ".".join(map(str, keys[:-1])), str(keys[-1])
    variants = schema.by_kind(_union_at(root, keys[:-1]))
    owners = [kind for kind, cls in variants.items() if key in cls.model_fields]
    got = _got(find(tree, keys), keys)
    if owners:
        node = find(tree, (*keys[:-1], "kind"))
        kind = node.value if isinstance(node, Value) else "(none)"
        fix = " or ".join(f"{parent}.kind={owner}" for owner in owners)
        return f"{path}: {parent}.kind={kind} has no {key}{got}; set {fix}, or remove {key}"
    guesses = _guesses(key, parent, around, root)
    keys_here = ", ".join(schema.keys_of(around))
    advice = f"did you mean {' or '.join(guesses[:3])}?" if guesses else f"known keys: {keys_here}"
    return f"{path}: unknown key{got}; {advice}"


def _union_at(root: type[Section], keys: Keys) -> Classes:
    classes: Classes = (root,)
    for key in keys:
        classes = schema.children(classes, str(key))
    return classes


def _guesses(key: str, parent: str, around: Classes, root: type[Section]) -> list[str]:
    if renamed := [new for old, new in schema.RENAMED.items() if old.endswith(f".{key}")]:
        return renamed
    paths = list(dict.fromkeys(schema.all_paths((root,))))
    near = [join(parent, k) for k in get_close_matches(key, schema.keys_of(around), 2, cutoff=0.7)]
    near += [path for path in paths if path.rpartition(".")[2] == key]
    if near:
        return list(dict.fromkeys(near))
    names = {path.rpartition(".")[2]: path for path in reversed(paths)}
    return [names[name] for name in get_close_matches(key, names, 1, cutoff=0.8)]


def _value(node: Node | None, keys: Keys) -> Any:
    if not isinstance(node, Value):
        return None
    # The keys behind that of a list lead to a value in it.
    first = next((place for place, key in enumerate(keys) if isinstance(key, int)), len(keys))
    value = node.value
    for key in keys[first:]:
        try:
            value = value[key]
        except (LookupError, TypeError):
            return value
    return value


def _got(node: Node | None, keys: Keys = ()) -> str:
    """Return `, got VALUE (SOURCE)`; for a map only its source."""
    if isinstance(node, Value):
        return f", got {short_json(_value(node, keys))} ({node.source})"
    first = next((leaf for _, leaf in leaves(node, "")), None) if node else None
    return f" ({first.source})" if first else ""


def _cross_check(path: str, text: str, tree: Node) -> str:
    node = find(tree, tuple(path.split(".")))
    source = f" ({node.source})" if isinstance(node, Value) and node.source != "default" else ""
    return f"{path}: {text}{source}"
