"""Write docs/configuration.md from the docstrings of the configuration's fields.

python tools/config_reference.py > docs/configuration.md
"""

import json
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic.fields import FieldInfo

from aae_dist.config import RunConfig
from aae_dist.config.sections import Section
from aae_dist.config.sections.sweep import SweepFile

HEAD = """\
# Configuration

Written from the sections in `aae_dist/config/` by `tools/config_reference.py`; a test keeps it
true.

Every key may stand in a YAML file or be given as an override, as in
`aae-dist train a.yaml train.steps=500`. Files count in order, then overrides; maps merge, lists
replace. Unknown keys are refused. Where a section has a `kind`, changing it keeps the fields that
both kinds have and names those it drops. `1e-4` is a number. A file may also have an address, such
as s3://bucket/a.yaml. A `*` in a key below stands for each of the names that follow it. The section
`sweep` belongs to `aae-dist tune` alone (see [sweeps.md](sweeps.md)).
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
    """Yield one section's table, and those of the sections in it, unless they were `seen`.

    `defaults` are what stands at `path` by default, perhaps of another kind: one, or, where fields
    that are alike share a table and `path` has a `*` for their names, one for each name.
    """
    if (path, section) in seen:
        return
    seen.add((path, section))
    kind = section.model_fields.get("kind")
    if kind and len(typing.get_args(kind.annotation)) > 1:
        kind = None  # a choice of this section, not the name of one among several
    title = f"`{path}.kind={kind.default}`" if kind else f"`{path}`"
    names = f" (`*` is {', '.join(defaults)})" if len(defaults) > 1 else ""
    yield f"\n{title}{names}: " + " ".join((section.__doc__ or "").split())
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
    for alike in inner.values():
        (name, field, values), *more = alike
        if more:
            name, values = "*", {name: values[""] for name, _, values in alike}
        for part in sections_of(field.annotation):
            yield from table(f"{path}.{name}", part, values, seen)


def row(path: str, field: FieldInfo, values: Mapping[str, Any]) -> str:
    """Return the line of one key."""
    meaning = " ".join((field.description or "").split())
    shown = "required" if field.is_required() else spelled(values)
    cells = (f"`{path}`", type_of(field.annotation), shown, meaning)
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def sections_of(annotation: Any) -> list[type[Section]]:
    """Return the sections that a field can hold."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [s for part in typing.get_args(annotation) for s in sections_of(part)]


def type_of(annotation: Any) -> str:
    """Return a type as a user would say it."""
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


def spelled(values: Mapping[str, Any]) -> str:
    """Return a default as YAML would have it; of several, what each name has."""
    names: dict[str, list[str]] = {}
    for name, value in values.items():
        names.setdefault("" if value is None else f"`{json.dumps(value)}`", []).append(name)
    if len(names) == 1:
        return next(iter(names))
    return ", ".join(f"{text} ({', '.join(which)})" for text, which in names.items())


if __name__ == "__main__":
    main()
