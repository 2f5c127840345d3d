"""Checks of a verb's options before torch is imported and a checkpoint is read."""

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from aae_dist.config import schema, yaml
from aae_dist.errors import ConfigError
from aae_dist.storage import join, open_storage, read_or_none

ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
WITHOUT_CLASSES = ("gaussian", "uniform", "laplace", "student_t", "sphere")
"""Kinds of priors that have no classes; of others it depends on their settings."""
CONFIG = "config.yaml"


def check_format(name: str) -> None:
    """Raise ConfigError when a package of an export's format is not installed."""
    absent = [p for p in ONNX_PACKAGES if find_spec(p) is None] if name == "onnx" else []
    if absent:
        raise ConfigError(
            f"--format onnx needs {', '.join(absent)}: pip install {' '.join(ONNX_PACKAGES)} "
            "(or use --format torch)"
        )


def check_classes(uri: str, classes: str | None) -> None:
    """Raise ConfigError if `--classes` is given and the run's prior is known to have none."""
    if classes is None:
        return
    kind = _stored(uri).get("prior", {}).get("kind")
    if kind in WITHOUT_CLASSES:
        raise ConfigError(f"--classes: the prior of {uri} ({kind}) has none; leave --classes out")


def _stored(uri: str) -> Mapping[str, Any]:
    """Return the configuration in a run's folder, by section; empty without a readable one."""
    data = read_or_none(open_storage(uri), CONFIG)
    try:
        tree = schema.plain(yaml.parse((data or b"").decode(), join(uri, CONFIG)))
    except (yaml.YamlProblem, UnicodeDecodeError):
        return {}
    sections = tree if isinstance(tree, dict) else {}
    return {name: part for name, part in sections.items() if isinstance(part, dict)}
