"""Write docs/configuration.md from the docstrings of the configuration's fields.

python tools/config_reference.py > docs/configuration.md
"""

import json
import textwrap
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic.fields import FieldInfo

from aae_dist.config import RunConfig
from aae_dist.config.sections import Section
from aae_dist.config.sections.sweep import SweepFile

HEAD = """\
# Configuration

Generated from the sections in `aae_dist/config/sections/` by `tools/config_reference.py`; a test
checks that it is up to date.

Every key can be set in a YAML file or by an override, as in `aae-dist train a.yaml
train.steps=500`. Files are merged in order, then the overrides: maps are merged, lists are
replaced. Unknown keys are errors. Where a section has a `kind`, changing it keeps the fields that
both kinds have and reports the fields that it drops. `1e-4` is a number. A file can also be given
by its address, such as s3://bucket/a.yaml. A `*` in a key below stands for each of the names that
follow it. The section `sweep` is used by `aae-dist tune` only (see [sweeps.md](sweeps.md)).
"""


def main() -> None:
    """Print the page."""
    print(HEAD, end="")
    seen: set[tuple[str, type[Section]]] = set()
    for name, field in {**RunConfig.model_fields, **SweepFile.model_fields}.items():
        print(f"\n## {name}")
        for section in sections_of(field.annotation):
            print("\n".join(table(name, section, {"": field.default}, seen)))


def table(
    path: str,
    section: type[Section],
    defaults: Mapping[str, Any],
    seen: set[tuple[str, type[Section]]],
) -> Iterator[str]:
    """Yield the table of one section and those of the sections in it, unless they are in `seen`.

    `defaults` has the default at `path`, perhaps of another kind. Fields of the same type share a
    table, with a `*` in `path`; `defaults` then has one entry per field name.
    """
    if (path, section) in seen:
        return
    seen.add((path, section))
    kind = section.model_fields.get("kind")
    if kind and len(typing.get_args(kind.annotation)) > 1:
        kind = None  # a choice within this section, not the tag of a union
    title = f"`{path}.kind={kind.default}`" if kind else f"`{path}`"
    names = f" (`*` is {', '.join(defaults)})" if len(defaults) > 1 else ""
    about = f"{title}{names}: " + " ".join((section.__doc__ or "").split())
    yield "\n" + textwrap.fill(about, 100, break_long_words=False, break_on_hyphens=False)
    rows: list[str] = []
    inner: dict[str, list[tuple[str, FieldInfo, dict[str, Any]]]] = {}
    for name, field in section.model_fields.items():
        values = {
            label: getattr(default, name) if isinstance(default, section) else field.default
            for label, default in defaults.items()
        }
        if sections_of(field.annotation):
            inner.setdefault(str(field.annotation), []).append((name, field, values))
        elif name != "kind" or kind is None:
            rows.append(row(f"{path}.{name}", field, values))
    if rows:
        yield "\n| key | type | default | meaning |\n|---|---|---|---|"
        yield from rows
    for fields in inner.values():
        (name, field, values), *more = fields
        if more:
            name, values = "*", {name: values[""] for name, _, values in fields}
        parts = sections_of(field.annotation)
        if len(parts) > 1 and {part for _, part in seen}.issuperset(parts):
            kinds = ", ".join(str(part.model_fields["kind"].default) for part in parts)
            yield "\n" + textwrap.fill(f"`{path}.{name}`: of a kind above: {kinds}.", 100)
            continue
        for part in parts:
            yield from table(f"{path}.{name}", part, values, seen)


def row(path: str, field: FieldInfo, values: Mapping[str, Any]) -> str:
    """Return the table row of one key."""
    meaning = " ".join((field.description or "").split())
    shown = "required" if field.is_required() else format_default(values)
    cells = (f"`{path}`", type_of(field.annotation), shown, meaning)
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def sections_of(annotation: Any) -> list[type[Section]]:
    """Return the sections that a field may contain."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [s for part in typing.get_args(annotation) for s in sections_of(part)]


def type_of(annotation: Any) -> str:
    """Return the type in plain words."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin is typing.Annotated:
        return type_of(arguments[0])
    if origin is tuple:
        inner = dict.fromkeys(type_of(a) for a in arguments if a is not Ellipsis)
        return f"list of {' and '.join(inner)}"
    if origin is dict:
        return "map"
    if arguments:
        parts = [type_of(a) for a in arguments if a is not type(None)]
        return " or ".join(parts)
    names = {str: "text", int: "integer", float: "number", bool: "true or false"}
    return names.get(annotation, str(annotation))


def format_default(values: Mapping[str, Any]) -> str:
    """Return a default in YAML; if it differs between names, the default per name."""
    names: dict[str, list[str]] = {}
    for name, value in values.items():
        names.setdefault("" if value is None else f"`{json.dumps(value)}`", []).append(name)
    if len(names) == 1:
        return next(iter(names))
    named = {text: ", ".join(which) for text, which in names.items() if text}
    return ", ".join(f"{text} ({which})" for text, which in named.items())


if __name__ == "__main__":
    main()
