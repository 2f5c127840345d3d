"""Cut the schema of one version out of a KubeRay CRD, for the tests of the manifests.

python tools/reduce_crd.py ray.io_rayjobs.yaml tests/cluster/schemas/ray.io_rayjobs.v1.json.xz
"""

import json
import lzma
import sys
from pathlib import Path
from typing import Any

import yaml

VERSION = "v1"


def main(source: str, target: str) -> None:
    """Write the schema as compressed JSON, without descriptions: 1.4 MB become some 20 kB."""
    crd = yaml.CSafeLoader(Path(source).read_text()).get_single_data()
    [version] = [v for v in crd["spec"]["versions"] if v["name"] == VERSION]
    schema = without_descriptions(version["schema"]["openAPIV3Schema"])
    text = json.dumps(schema, separators=(",", ":"), sort_keys=True)
    Path(target).write_bytes(lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME))


def without_descriptions(node: Any) -> Any:
    """Return the schema without its prose; a property that is called description stays."""
    if isinstance(node, list):
        return [without_descriptions(item) for item in node]
    if not isinstance(node, dict):
        return node
    return {
        key: without_descriptions(value)
        for key, value in node.items()
        if not (key == "description" and isinstance(value, str))
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
