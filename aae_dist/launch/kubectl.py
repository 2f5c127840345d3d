"""kubectl as a program: render an overlay, look at a job, apply one."""

import json
import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import yaml

from aae_dist.errors import LaunchError
from aae_dist.launch.manifest import Object

ENDED = ("Complete", "Failed", "ValidationFailed")
"""Values of a RayJob's `status.jobDeploymentStatus` after which nothing of it runs."""
SECONDS = 120
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""400 lines take 0.3 s with the loader that is written in Python."""


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
    return [found for found in yaml.load_all(text, Loader=_Loader) if found]


class ExistsError(LaunchError):
    """An object of the name is there already."""


class Kubectl:
    """The cluster of kubectl's current context, or of a named one."""

    def __init__(self, namespace: str, context: str | None = None, overlay: str = "") -> None:
        """Look into `namespace` only; `overlay` is named to those whose namespace is missing."""
        if not shutil.which("kubectl"):
            raise _absent()
        named = ["--context", context] if context else []
        self._command = ["kubectl", *named, "--namespace", namespace]
        self._namespace, self._overlay = namespace, overlay
        self.words = " ".join(self._command)
        """The command as a person would type it."""

    def job(self, name: str) -> Object | None:
        """Return a RayJob, None when there is none of the name."""
        text = self._run("get", "rayjob", name, "--ignore-not-found", "--output", "json")
        found: Object | None = json.loads(text) if text.strip() else None
        return found

    def pods(self, selector: str) -> list[Object]:
        """Return the pods that labels select."""
        text = self._run("get", "pods", "--selector", selector, "--output", "json")
        found: list[Object] = json.loads(text)["items"]
        return found

    def create(self, wanted: Object) -> Object:
        """Create an object; return what the cluster made of it.

        Raises:
            ExistsError: one of its kind and name is there already.
            LaunchError: the cluster refuses it.
        """
        text = self._run("create", "--filename", "-", "--output", "json", stdin=dump([wanted]))
        found: Object = json.loads(text)
        return found

    def delete(self, job: Object) -> None:
        """Remove this RayJob, and no other of its name, and wait until it is gone."""
        name, uid = job["metadata"]["name"], job["metadata"]["uid"]
        path = f"/apis/ray.io/v1/namespaces/{self._namespace}/rayjobs/{name}"
        options = {"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": {"uid": uid}}
        self._run("delete", "--raw", path, "--filename", "-", stdin=json.dumps(options))
        until = time.monotonic() + SECONDS
        while (found := self.job(name)) is not None and found["metadata"]["uid"] == uid:
            if time.monotonic() > until:
                raise LaunchError(f"rayjob/{name} is still being removed after {SECONDS} s")
            time.sleep(1.0)

    def follow_log(self, pod: str) -> "subprocess.Popen[str]":
        """Start to read a pod's log from its beginning; the process ends with the pod."""
        return subprocess.Popen(
            [*self._command, "logs", "--follow", pod],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            errors="replace",
        )

    def execute(self, pod: str, command: Sequence[str]) -> str:
        """Run a command in the first container of a pod; return what it prints."""
        return self._run("exec", pod, "--", *command)

    def _run(self, *arguments: str, stdin: str | None = None) -> str:
        try:
            return _run([*self._command, *arguments], stdin)
        except LaunchError as error:
            raise self._explained(str(error)) from None

    def _explained(self, message: str) -> LaunchError:
        """Return an error that names the step of cluster/README.md that was left out."""
        if re.search(r"AlreadyExists|already exists", message):
            return ExistsError(message)
        if re.search(r'resource type "rayjobs?"|no matches for kind "RayJob"', message):
            return LaunchError(
                f"{message}. The cluster has no KubeRay: an administrator installs its operator, "
                'once per cluster (cluster/README.md, section 1, "Once per cluster")'
            )
        if re.search(r'namespaces "[^"]+" not found', message):
            return LaunchError(
                f"{message}. Make it, with its accounts and network policies: kubectl apply -k "
                f'{self._overlay or "OVERLAY"} (cluster/README.md, section 3, "The overlay")'
            )
        return LaunchError(message)


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
        raise LaunchError(f"kubectl: {_cause(reason)}")
    return done.stdout


def _cause(lines: Sequence[str]) -> str:
    """Return the line that says why; one of advice may follow it."""
    errors = [line for line in lines if line.startswith("error:") or "Error from server" in line]
    return (errors or lines or ["failed and printed nothing"])[-1]


def _absent() -> LaunchError:
    return LaunchError(
        "kubectl is not on the path, and --cluster renders and applies manifests with it. Install "
        "it, or submit to a running Ray cluster with --address http://HEAD:8265"
    )
