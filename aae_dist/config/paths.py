"""Local paths in a configuration, made absolute relative to the current directory."""

import os
from typing import Any

PATHS = (
    ("run", "storage"),
    ("run", "init_from"),
    ("data", "train"),
    ("data", "validation"),
    ("prior", "uri"),
    ("prior", "vectors"),
)
"""Keys whose value is a local path or a URL, or a list of them."""


def inside_ray_job() -> bool:
    """Return whether this process is the entrypoint of a submitted Ray job, or its child.

    Its current directory is a copy unpacked by Ray, so relative paths have no meaning.
    """
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def absolute_storage(path: str) -> str:
    """Return a local path absolute, `~` expanded; URLs, and relative paths in a Ray job, stay."""
    if "://" in path or not path:
        return path
    expanded = os.path.expanduser(path)
    if inside_ray_job() and not os.path.isabs(expanded):
        return path
    return os.path.abspath(expanded)


def absolute(value: Any) -> Any:
    """Return a path, or each path of a list, absolute; anything else unchanged."""
    if isinstance(value, list):
        return [absolute(item) for item in value]
    return absolute_storage(value) if isinstance(value, str) else value
