"""Write schemas of Kubernetes' own kinds, as closed objects, for the tests of the manifests.

They come from the classes of Kubernetes' Python client (`pip install kubernetes`, no dependency of
ours):

python tools/core_schemas.py tests/cluster/schemas/core.json.xz
"""

import inspect
import json
import lzma
import re
import sys
from pathlib import Path
from typing import Any

from kubernetes import client

KINDS = (
    "V1ConfigMap",
    "V1Namespace",
    "V1NetworkPolicy",
    "V1PersistentVolumeClaim",
    "V1ServiceAccount",
)
SIMPLE: dict[str, dict[str, Any]] = {
    "str": {"type": "string"},
    "bytes": {"type": "string"},
    "int": {"type": "integer"},
    "float": {"type": "number"},
    "bool": {"type": "boolean"},
    "datetime": {"type": "string"},
    "object": {},
}


def main(target: str) -> None:
    """Write one document: definitions by class name."""
    definitions: dict[str, Any] = {}
    for kind in KINDS:
        add(kind, definitions)
    text = json.dumps(definitions, separators=(",", ":"), sort_keys=True)
    Path(target).write_bytes(lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME))


def add(name: str, definitions: dict[str, Any]) -> None:
    """Add the class `name`, and all classes that its fields are made of."""
    if name in definitions:
        return
    model: Any = getattr(client, name)
    definitions[name] = schema = {"type": "object", "additionalProperties": False}
    keys = model.attribute_map
    needed = set(re.findall(r"`(\w+)`, must not be `None`", inspect.getsource(model)))
    types = model.openapi_types.items()
    schema["properties"] = {keys[field]: of_type(text, definitions) for field, text in types}
    if needed:
        schema["required"] = sorted(keys[field] for field in needed)


def of_type(text: str, definitions: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a type as the client writes it: str, List[...], Dict[...], a class."""
    if text in SIMPLE:
        return SIMPLE[text]
    if inner := re.fullmatch(r"(?:list|List)\[(.+)\]", text):
        return {"type": "array", "items": of_type(inner[1], definitions)}
    if inner := re.fullmatch(r"(?:dict|Dict)[\[(]str, (.+)[\])]", text):
        return {"type": "object", "additionalProperties": of_type(inner[1], definitions)}
    add(text, definitions)
    return {"$ref": f"#/definitions/{text}"}


if __name__ == "__main__":
    main(*sys.argv[1:])
