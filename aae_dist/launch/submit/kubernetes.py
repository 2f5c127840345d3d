"""A RayJob on Kubernetes, made from a kustomize overlay, through the program kubectl."""

import copy
import hashlib
import json
import math
import re
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from aae_dist.errors import ConfigError, LaunchError
from aae_dist.launch.ray.cluster import Resources, refuse_if_impossible, request_on
from aae_dist.launch.submit.jobs import LOCAL, Work, local_paths
from aae_dist.utils.text import SHORTEST, redact

Object = dict[str, Any]
MAX_NAME = 47
"""KubeRay adds six characters for the cluster's name, and as much for that of its service."""
MAX_CONFIG_BYTES = 1_000_000  # a ConfigMap may hold 1 MiB
CONFIG_VOLUME = "config"
OF_THE_POD = {"emptyDir", "configMap", "secret", "projected", "downwardAPI"}
"""Kinds of volumes that other pods do not see."""
PLACEHOLDERS = {"ACCOUNT", "PROJECT", "REGION", "REGISTRY"}
"""Placeholders of the shipped overlays for names of the user."""
_FACTORS = {
    **{"m": 1e-3, "": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12},
    **{"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40},
}
ENDED = ("Complete", "Failed", "ValidationFailed")
"""Final values of a RayJob's `status.jobDeploymentStatus`."""
SECONDS = 120
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""400 lines take 0.3 s with the loader that is written in Python."""


def legal_name(name: str, storage: str) -> str:
    """Return the name of the RayJob of one run or sweep: legal, and always the same for it.

    A hash of the whole address keeps apart what letters and length alone would confuse.
    """
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    tail = hashlib.sha256(f"{storage}/{name}".encode()).hexdigest()[:6]
    head = f"aae-{slug}"[: MAX_NAME - 1 - len(tail)].rstrip("-")
    return f"{head}-{tail}"


def fill(template: Object, name: str, address: str, config: str) -> list[Object]:
    """Return the ConfigMap and the RayJob `name` to apply, made from a rendered RayJob.

    People who look at the job see the `address` of the run's or sweep's folder. LaunchError when
    the configuration (YAML) is too large, or the template has no place for it.
    """
    size = len(config.encode())
    if size > MAX_CONFIG_BYTES:
        raise LaunchError(
            f"the configuration has {size:,} bytes, and a ConfigMap {MAX_CONFIG_BYTES:,}; name "
            "data by a pattern or a manifest instead of a list"
        )
    job = copy.deepcopy(template)
    metadata = job["metadata"]
    metadata["name"] = name
    metadata.setdefault("annotations", {})["aae-dist/address"] = address
    pod = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    volumes = [v for v in pod.get("volumes", []) if v["name"] == CONFIG_VOLUME]
    if not volumes:
        raise LaunchError(f"the head's template has no volume called {CONFIG_VOLUME!r}")
    # A unique name: the ConfigMap of an earlier submission may still be about to be removed.
    settings_name = f"{name}-{secrets.token_hex(3)}"
    volumes[0]["configMap"] = {"name": settings_name}
    kept = {key: metadata[key] for key in ("namespace", "annotations") if key in metadata}
    settings = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": settings_name, **kept},
        "data": {"config.yaml": config},
    }
    return [settings, job]


def examine(job: Object) -> None:
    """Turn a job into one check of its cluster: `aae-dist doctor` with the same configuration.

    Each group of workers gets a pod; one that scales from zero would not be checked otherwise.
    """
    *_, config = job["spec"]["entrypoint"].split()
    job["spec"] |= {"entrypoint": f"exec aae-dist doctor {config}", "backoffLimit": 0}
    for group in job["spec"]["rayClusterSpec"]["workerGroupSpecs"]:
        group["replicas"] = group["minReplicas"] = max(1, group["minReplicas"])


def groups(job: Object) -> Iterator[tuple[Resources, int]]:
    """Yield (what Ray counts on a pod, most pods) of each group of workers."""
    for group in job["spec"]["rayClusterSpec"]["workerGroupSpecs"]:
        limits = group["template"]["spec"]["containers"][0]["resources"].get("limits", {})
        gpus = sum(int(value) for key, value in limits.items() if key.endswith("gpu"))
        cpus = math.ceil(quantity(limits.get("cpu", "0")))
        yield {"CPU": cpus, "GPU": gpus}, group["maxReplicas"]


def unedited_images(job: Object) -> list[str]:
    """Return images that still have a placeholder of the overlays in their name."""
    containers = [container for pod in _pods(job) for container in pod["containers"]]
    images = {str(container.get("image", "")) for container in containers}
    return sorted(image for image in images if PLACEHOLDERS & set(re.split("[^A-Z]+", image)))


def quantity(text: str | float) -> float:
    """Return a Kubernetes quantity, say '500m' or '16Gi', as a number."""
    found = re.fullmatch(r"([0-9.]+)([a-zA-Z]*)", str(text))
    if found is None or found[2] not in _FACTORS:
        raise LaunchError(f"{text!r} is not a quantity such as 500m, 4 or 16Gi")
    return float(found[1]) * _FACTORS[found[2]]


def shared_folders(job: Object) -> list[str]:
    """Return the paths at which the head and all workers see a volume that outlives them."""
    seen = []
    for pod in _pods(job):
        lasting = {v["name"] for v in pod.get("volumes", []) if not OF_THE_POD & set(v)}
        mounts = pod["containers"][0].get("volumeMounts", [])
        seen.append({mount["mountPath"] for mount in mounts if mount["name"] in lasting})
    return sorted(set.intersection(*seen))


def _pods(job: Object) -> list[Object]:
    cluster = job["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


def render(folder: Path) -> list[Object]:
    """Return the objects that a kustomize folder gives; no cluster is asked."""
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

    `cluster` is the folder of an overlay, such as cluster/overlays/gke. With `doctor` the job
    checks the cluster, once, and trains nothing. ConfigError when the configuration holds a secret,
    or names folders that no pod has.
    """
    if redact(work.text, shortest=SHORTEST) != work.text:
        raise ConfigError(
            "the configuration holds a secret (a signed URL, a password in one, or the value of a "
            "variable such as WANDB_API_KEY), and the cluster shows it to everybody who may read "
            "ConfigMaps; use the pods' own identity (s3://, gs://, az://) or a Kubernetes secret"
        )
    template = _template(work, cluster)
    check(work, template, cluster)
    settings, job = fill(template, job_name(work, doctor), work.address, work.text)
    if doctor:
        examine(job)
    return settings, job


def job_name(work: Work, doctor: bool = False) -> str:
    """Return the name of the RayJob of a run or sweep, or of the one that checks its cluster."""
    return legal_name(work.name + "-doctor" * doctor, work.storage)


def connect(work: Work, cluster: Path, context: str | None = None) -> "Kubectl":
    """Return the cluster where the overlay's namespace is."""
    namespace = _template(work, cluster)["metadata"].get("namespace", "default")
    return Kubectl(namespace, context, str(cluster))


def create(api: "Kubectl", settings: Object, job: Object) -> None:
    """Create a configuration and its job, in place of an ended one.

    The job decides between two submissions at the same moment, and the second one takes its
    configuration back. The job becomes the owner of its own, which is removed together with it.
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
        text = f"another submission was first: rayjob/{name} works on this now"
        raise LaunchError(text) from None
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
    advice = "is a name to be filled in; edit site/site.yaml of the overlay"
    problems = [f"image: {image} {advice}" for image in unedited_images(job)]
    shared = shared_folders(job)
    there = f"one of {', '.join(shared)}" if shared else "a mount that the overlay does not have"
    problems += [LOCAL] if work.config.launch.kind == "local" else []
    for key, path in local_paths(work.config):
        if not any(PurePosixPath(path).is_relative_to(folder) for folder in shared):
            text = f"no pod sees the folder {path}; use s3:// (gs://, az://) or {there}"
            problems.append(f"{key}: {text}")
    if problems:
        raise ConfigError("\n  ".join([f"this cannot run on {cluster}:", *problems]))
    kinds = list(groups(job))
    demand = request_on(work.config, [resources for resources, _ in kinds])
    pods = [node for node, most in kinds for _ in range(min(most, demand.workers))]
    refuse_if_impossible(demand, pods, f"with `most` in its site.yaml, {cluster} has")


def _template(work: Work, cluster: Path) -> Object:
    folder = cluster / {"train": "train", "tune": "sweep"}[work.verb]
    jobs = [found for found in render(folder) if found.get("kind") == "RayJob"]
    if len(jobs) != 1:
        raise LaunchError(
            f"{folder} renders {len(jobs)} RayJobs, and submit fills in exactly one; copy one of "
            "cluster/overlays"
        )
    return jobs[0]


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
        self.words = " ".join(self._command)  # the command as it is typed in a shell

    def job(self, name: str) -> Object | None:
        text = self._run("get", "rayjob", name, "--ignore-not-found", "--output", "json")
        return json.loads(text) if text.strip() else None

    def pods(self, selector: str) -> list[Object]:
        text = self._run("get", "pods", "--selector", selector, "--output", "json")
        return list(json.loads(text)["items"])

    def create(self, wanted: Object) -> Object:
        """Create an object; return it as the cluster stored it. ExistsError if there is one."""
        text = self._run("create", "--filename", "-", "--output", "json", stdin=dump([wanted]))
        return dict(json.loads(text))

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
        return subprocess.Popen(
            [*self._command, "logs", "--follow", pod],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            errors="replace",
        )

    def execute(self, pod: str, command: Sequence[str]) -> str:
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
        text = f"`{' '.join(command[:4])} ...` gave no answer in {SECONDS} s; is the cluster there?"
        raise LaunchError(text) from None
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
        # A line of advice may follow the one with the cause.
        causes = [each for each in lines if re.match(r"error:|.*Error from server", each)]
        raise LaunchError(f"kubectl: {(causes or lines or ['failed and printed nothing'])[-1]}")
    return done.stdout


def _absent() -> LaunchError:
    return LaunchError(
        "kubectl is not on the path, and --cluster needs it to render and create manifests. "
        "Install it, or submit to a running Ray cluster with --address http://HEAD:8265"
    )
