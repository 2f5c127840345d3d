"""kubectl as a program: render an overlay, look at a job, apply one."""

import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from aae_dist.errors import LaunchError
from aae_dist.launch.manifest import Object

ENDED = ("Complete", "Failed", "ValidationFailed")
"""Values of a RayJob's `status.jobDeploymentStatus` after which nothing of it runs."""
SECONDS = 120


def render(folder: Path) -> list[Object]:
    """Return the objects that a kustomize folder gives; no cluster is asked.

    Raises:
        LaunchError: neither kubectl nor kustomize is here, or the folder cannot be rendered.
    """
    if not (folder / "kustomization.yaml").is_file():
        raise LaunchError(
            f"{folder}: no kustomization.yaml there; name an overlay such as cluster/overlays/gke, "
            "whose folders `train` and `sweep` hold the templates"
        )
    if shutil.which("kubectl"):
        text = _run(["kubectl", "kustomize", str(folder)])
    elif shutil.which("kustomize"):
        text = _run(["kustomize", "build", str(folder)])
    else:
        raise _absent()
    return [found for found in yaml.safe_load_all(text) if found]


class Kubectl:
    """The cluster of kubectl's current context, or of a named one."""

    def __init__(self, namespace: str, context: str | None = None) -> None:
        """Look into `namespace` only."""
        if not shutil.which("kubectl"):
            raise _absent()
        named = ["--context", context] if context else []
        self._command = ["kubectl", *named, "--namespace", namespace]
        self.words = " ".join(self._command)
        """The command as a person would type it."""

    def state(self, name: str) -> str | None:
        """Return `jobDeploymentStatus` of a RayJob, '' before it has one, None without a job."""
        arguments = ["get", "rayjob", name, "--ignore-not-found", "--output", "json"]
        text = _run([*self._command, *arguments])
        if not text.strip():
            return None
        found: dict[str, Any] = json.loads(text)
        return str(found.get("status", {}).get("jobDeploymentStatus", ""))

    def delete(self, name: str) -> None:
        """Remove a RayJob that has ended, and wait until it is gone."""
        _run([*self._command, "delete", "rayjob", name, "--ignore-not-found"])

    def apply(self, objects: Sequence[Object]) -> str:
        """Create or change the objects; return what kubectl says."""
        # By the server: kubectl's own way keeps a copy in an annotation of at most 256 KiB.
        arguments = ["apply", "--server-side", "--force-conflicts", "--filename", "-"]
        return _run([*self._command, *arguments], stdin=dump(objects))


def dump(objects: Sequence[Object]) -> str:
    """Return objects as the YAML that kubectl reads."""
    return yaml.dump_all(objects, Dumper=_Dumper, sort_keys=False, width=100)


class _Dumper(yaml.SafeDumper):
    """Writes text of several lines as people write it: the configuration stays readable."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def _run(command: Sequence[str], stdin: str | None = None) -> str:
    try:
        done = subprocess.run(
            command, input=stdin, capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise LaunchError(
            f"`{' '.join(command[:4])} ...` gave no answer in {SECONDS} s; is the cluster there?"
        ) from None
    if done.returncode:
        reason = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise LaunchError(f"kubectl: {reason[-1] if reason else 'failed without a word'}")
    return done.stdout


def _absent() -> LaunchError:
    return LaunchError(
        "kubectl is not on the path, and --cluster renders and applies manifests with it. Install "
        "it, or submit to a running Ray cluster with --address http://HEAD:8265"
    )
