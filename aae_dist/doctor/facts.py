"""Facts about one machine, collected on that machine: versions, GPUs, memory and disk."""

import hashlib
import importlib.metadata
import os
import platform
import shutil
import socket
from dataclasses import dataclass
from pathlib import Path

from aae_dist.version import __version__

PACKAGES = ("torch", "numpy", "ray", "webdataset", "safetensors", "obstore", "pydantic")
"""Packages whose versions must be equal on all machines: ranks compute and read with them."""
SHARED_MEMORY = "/dev/shm"


@dataclass(frozen=True)
class Space:
    """A file system."""

    path: str
    free: int
    total: int
    """Both in bytes."""


@dataclass(frozen=True)
class Machine:
    """What a rank finds on one machine."""

    host: str
    versions: dict[str, str]
    """By package; also `python`, and `code`: a hash of aae_dist's own files."""
    gpus: tuple[str, ...]
    """Names of the GPUs that this process sees."""
    nccl: str | None
    shared_memory: Space | None
    scratch: Space
    """Where temporary files and caches go."""


def collect_facts() -> Machine:
    """Return the facts about this machine; imports torch, which takes seconds."""
    gpus, nccl = _gpus()
    shared = _space(SHARED_MEMORY) if os.path.isdir(SHARED_MEMORY) else None
    return Machine(
        host=socket.gethostname(),
        versions=_versions(),
        gpus=gpus,
        nccl=nccl,
        shared_memory=shared,
        # Not tempfile.gettempdir(), which falls back to another folder when this one is full.
        scratch=_space(os.environ.get("TMPDIR") or "/tmp"),
    )


def _versions() -> dict[str, str]:
    # The code of aae_dist that runs here, which may differ from the installed package.
    found = {"python": platform.python_version(), "aae_dist": __version__}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found | {"code": code_hash()}


def code_hash() -> str:
    """Return a hash of the files of aae_dist that run here: two builds may share a version."""
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(str(path.relative_to(package)).encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def _gpus() -> tuple[tuple[str, ...], str | None]:
    import torch

    if not torch.cuda.is_available():
        return (), None
    names = tuple(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    return names, ".".join(map(str, torch.cuda.nccl.version()))


def _space(path: str) -> Space:
    usage = shutil.disk_usage(path)
    return Space(path, usage.free, usage.total)
