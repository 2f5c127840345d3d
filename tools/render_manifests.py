"""Render the manifests of `cluster/` into tests/cluster/rendered/, for machines without kubectl.

python tools/render_manifests.py [TARGET]
"""

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[1]
RENDERED = ROOT / "tests/cluster/rendered"
OVERLAYS = ("gke", "eks", "kind-cpu")
PARTS = ("platform", "train", "sweep", "interactive")


def main(target: Path = RENDERED) -> None:
    """Write a file for each part of each overlay, and the hash of what they were made from."""
    target.mkdir(parents=True, exist_ok=True)
    parts = folders()
    with ThreadPoolExecutor(4) as threads:
        for name, text in zip(parts, threads.map(render, parts.values()), strict=True):
            (target / f"{name}.yaml").write_text(text)
    (target / "SOURCES.sha256").write_text(sources_hash() + "\n")


def folders() -> dict[str, Path]:
    """Return what can be rendered: a name, and its folder with a kustomization."""
    overlays = ROOT / "cluster/overlays"
    parts = {
        f"{overlay}-{part}": overlays / overlay / ("" if part == "platform" else part)
        for overlay in OVERLAYS
        for part in PARTS
    }
    return parts | {"kueue": ROOT / "tests/cluster/kueue"}


def render(folder: Path) -> str:
    """Return the YAML that kubectl, or else kustomize, makes of a folder."""
    kubectl, kustomize = shutil.which("kubectl"), shutil.which("kustomize")
    command = [kubectl, "kustomize"] if kubectl else [kustomize or "kustomize", "build"]
    return subprocess.run(
        [*command, str(folder)], check=True, capture_output=True, text=True
    ).stdout


def sources() -> Iterator[Path]:
    """Yield the YAML files that the manifests are made from, in a fixed order."""
    yield from sorted((ROOT / "cluster").rglob("*.yaml"))
    yield from sorted((ROOT / "tests/cluster/kueue").rglob("*.yaml"))


def sources_hash() -> str:
    """Return a hash of the names and contents of all sources."""
    digest = hashlib.sha256()
    for path in sources():
        digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
