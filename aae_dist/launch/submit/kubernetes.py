"""A RayJob on Kubernetes, made from a kustomize overlay, through the program kubectl."""

import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from aae_dist.config import RunConfig
from aae_dist.config.redaction import redact
from aae_dist.errors import ConfigError, LaunchError
from aae_dist.launch.ray.cluster import refuse_if_impossible
from aae_dist.launch.ray.resources import request_of
from aae_dist.launch.submit import manifest
from aae_dist.launch.submit.manifest import Object
from aae_dist.launch.submit.work import LOCAL, Work, local_paths

ENDED = ("Complete", "Failed", "ValidationFailed")
"""Final values of a RayJob's `status.jobDeploymentStatus`."""
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


def manifests(work: Work, cluster: Path, doctor: bool = False) -> tuple[Object, Object]:
    """Return the ConfigMap and the RayJob of a run or sweep; no cluster is asked.

    Args:
        work: the run or sweep.
        cluster: folder of an overlay, such as cluster/overlays/gke.
        doctor: the job checks the cluster, once, and trains nothing.

    Raises:
        ConfigError: the configuration holds a secret, or names folders that no pod has.
        LaunchError: the overlay cannot be rendered, or has no room for the run.
    """
    if redact(work.text) != work.text:
        raise ConfigError(
            "the configuration holds a secret (a signed URL, a password in one, or the value of a "
            "variable such as WANDB_API_KEY), and the cluster shows it to everybody who may read "
            "ConfigMaps; use the pods' own identity (s3://, gs://, az://) or a Kubernetes secret"
        )
    template = _template(work, cluster)
    check(work, template, cluster)
    settings, job = manifest.fill(template, job_name(work, doctor), work.address, work.text)
    if doctor:
        manifest.examine(job)
    return settings, job


def job_name(work: Work, doctor: bool = False) -> str:
    """Return the name of the RayJob of a run or sweep, or of the one that checks its cluster."""
    return manifest.job_name(work.name + "-doctor" * doctor, work.storage)


def connect(work: Work, cluster: Path, context: str | None = None) -> "Kubectl":
    """Return the cluster where the overlay's namespace is."""
    namespace = _template(work, cluster)["metadata"].get("namespace", "default")
    return Kubectl(namespace, context, str(cluster))


def create(api: "Kubectl", settings: Object, job: Object) -> None:
    """Create a configuration and its job, in place of an ended one.

    The job decides between two submissions at the same moment, and the second one takes its
    configuration back. The job becomes the owner of its own, which is removed together with it.

    Raises:
        LaunchError: the run's job has not ended, or the cluster refuses.
    """
    name = job["metadata"]["name"]
    try:
        _remove_ended(api, name)
        api.create(settings)
        try:
            created = api.create(job)
        except BaseException:
            api.delete_settings(settings)
            raise
    except ExistsError:
        raise LaunchError(
            f"another submission was first: rayjob/{name} works on this now"
        ) from None
    api.set_owner(settings, created)


def _remove_ended(api: "Kubectl", name: str) -> None:
    """Remove the ended job of an earlier submission, since a job runs once."""
    job = api.job(name)
    if job is None:
        return
    state = job.get("status", {}).get("jobDeploymentStatus", "")
    if state not in ENDED:
        raise LaunchError(
            f"rayjob/{name} already works on this ({state or 'not started yet'}). The same command "
            "with --follow follows it, with --stop stops it with a checkpoint. End it without one: "
            f"{api.words} delete rayjob {name}"
        )
    api.delete(job)


def check(work: Work, job: Object, cluster: Path) -> None:
    """Raise for problems that would only show on the cluster, after it has been paid for."""
    problems = [
        *(
            f"image: {image} is a name to be filled in; edit site/site.yaml of the overlay"
            for image in manifest.unedited_images(job)
        ),
        *_problems(work.config, manifest.shared_folders(job)),
    ]
    if problems:
        raise ConfigError("\n  ".join([f"this cannot run on {cluster}:", *problems]))
    groups = list(manifest.groups(job))
    demand = request_of(work.config, [resources for resources, _ in groups])
    pods = [node for node, most in groups for _ in range(min(most, demand.workers))]
    refuse_if_impossible(demand, pods, f"with `most` in its site.yaml, {cluster} has")


def _problems(config: RunConfig, shared: Sequence[str]) -> Iterator[str]:
    if config.launch.kind == "local":
        yield LOCAL
    there = f"one of {', '.join(shared)}" if shared else "a mount that the overlay does not have"
    for key, path in local_paths(config):
        if not manifest.is_below(path, list(shared)):
            yield f"{key}: no pod sees the folder {path}; use s3:// (gs://, az://) or {there}"


def _template(work: Work, cluster: Path) -> Object:
    folder = cluster / {"train": "train", "tune": "sweep"}[work.verb]
    return manifest.job_of(render(folder), str(folder))


class ExistsError(LaunchError):
    """An object of the name exists, or another one than expected."""


class Kubectl:
    """The cluster of kubectl's current context, or of a named one."""

    def __init__(self, namespace: str, context: str | None = None, overlay: str = "") -> None:
        """Use `namespace` only; `overlay` is named when that namespace is missing."""
        if not shutil.which("kubectl"):
            raise _absent()
        named = ["--context", context] if context else []
        self._command = ["kubectl", *named, "--namespace", namespace]
        self._namespace, self._overlay = namespace, overlay
        self.words = " ".join(self._command)
        """The command as it is typed in a shell."""

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
        """Create an object; return it as the cluster stored it.

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
        try:
            self._run("delete", "--raw", path, "--filename", "-", stdin=json.dumps(options))
        except LaunchError as error:
            if "(NotFound)" not in str(error):
                raise
        until = time.monotonic() + SECONDS
        while (found := self.job(name)) is not None and found["metadata"]["uid"] == uid:
            if time.monotonic() > until:
                raise LaunchError(f"rayjob/{name} is still being removed after {SECONDS} s")
            time.sleep(1.0)

    def delete_settings(self, settings: Object) -> None:
        """Remove a ConfigMap."""
        name = settings["metadata"]["name"]
        self._run("delete", "configmap", name, "--ignore-not-found", "--wait=false")

    def set_owner(self, settings: Object, job: Object) -> None:
        """Make a RayJob the owner of a ConfigMap: the cluster removes both together."""
        owner = {key: job["metadata"][key] for key in ("name", "uid")}
        owner |= {"apiVersion": job["apiVersion"], "kind": job["kind"]}
        patch = json.dumps({"metadata": {"ownerReferences": [owner]}})
        name = settings["metadata"]["name"]
        self._run("patch", "configmap", name, "--type", "merge", "--patch", patch)

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
        """Run a command in the first container of a pod; return its output."""
        return self._run("exec", pod, "--", *command)

    def _run(self, *arguments: str, stdin: str | None = None) -> str:
        try:
            return _run([*self._command, *arguments], stdin)
        except LaunchError as error:
            raise self._with_advice(str(error)) from None

    def _with_advice(self, message: str) -> LaunchError:
        """Return the error with the step of cluster/README.md that was left out."""
        if re.search(r"AlreadyExists|already exists|UID in precondition", message):
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
    """Return the line with the cause; a line of advice may follow it."""
    errors = [line for line in lines if line.startswith("error:") or "Error from server" in line]
    return (errors or lines or ["failed and printed nothing"])[-1]


def _absent() -> LaunchError:
    return LaunchError(
        "kubectl is not on the path, and --cluster needs it to render and create manifests. "
        "Install it, or submit to a running Ray cluster with --address http://HEAD:8265"
    )
