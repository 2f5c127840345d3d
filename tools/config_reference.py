"""Write docs/configuration.md from the docstrings of the configuration's fields.

python tools/config_reference.py > docs/configuration.md
"""

import json
import typing
from collections.abc import Iterator
from typing import Any

from aae_dist.config import RunConfig
from aae_dist.config.section import Section
from aae_dist.config.sweep import SweepFile

HEAD = """\
# Configuration

Written from the sections in `aae_dist/config/` by `tools/config_reference.py`; a test keeps it
true.

Every key may stand in a YAML file or be given as an override, as in
`aae-dist train a.yaml train.steps=500`. Files count in order, then overrides; maps merge, lists
replace. Unknown keys are refused. Where a section has a `kind`, changing it keeps the fields that
both kinds have and names those it drops. `1e-4` is a number. The section `sweep` belongs to
`aae-dist tune` alone (see [sweeps.md](sweeps.md)).
"""


def main() -> None:
    """Print the page."""
    print(HEAD, end="")
    for name, field in {**RunConfig.model_fields, **SweepFile.model_fields}.items():
        print(f"\n## {name}")
        for section in sections_of(field.annotation):
            print("\n".join(table(name, section, field.default)))


def table(path: str, section: type[Section], default: Any) -> Iterator[str]:
    """Yield one section's table, and those of the sections in it.

    `default` is what stands at `path` by default, perhaps of another kind.
    """
    kind = section.model_fields.get("kind")
    if kind and len(typing.get_args(kind.annotation)) > 1:
        kind = None  # a choice of this section, not the name of one among several
    title = f"`{path}.kind={kind.default}`: " if kind else f"`{path}`: "
    yield "\n" + title + " ".join((section.__doc__ or "").split())
    rows, inner = [], []
    for name, field in section.model_fields.items():
        value = getattr(default, name) if isinstance(default, section) else field.default
        if sections_of(field.annotation):
            inner.append((f"{path}.{name}", field, value))
        elif name != "kind" or kind is None:
            meaning = " ".join((field.description or "").split())
            shown = "required" if field.is_required() else spelled(value)
            rows.append(f"| `{path}.{name}` | {type_of(field.annotation)} | {shown} | {meaning} |")
    if rows:
        yield "\n| key | type | default | meaning |\n|---|---|---|---|"
        yield from rows
    for inner_path, field, value in inner:
        for part in sections_of(field.annotation):
            yield from table(inner_path, part, value)


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


def spelled(value: Any) -> str:
    """Return a default as YAML would have it."""
    return "" if value is None else f"`{json.dumps(value)}`"


if __name__ == "__main__":
    main()
