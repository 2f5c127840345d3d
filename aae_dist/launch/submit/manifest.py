"""The RayJob of one run or sweep, made from a rendered template: pure functions on objects."""

import copy
import hashlib
import math
import re
import secrets
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from aae_dist.errors import LaunchError
from aae_dist.launch.ray.resources import Resources

Object = dict[str, Any]
MAX_NAME = 47
"""KubeRay adds six characters for the cluster's name, and as much for that of its service."""
MAX_CONFIG_BYTES = 1_000_000
"""A ConfigMap may hold 1 MiB."""
CONFIG_VOLUME = "config"
OF_THE_POD = {"emptyDir", "configMap", "secret", "projected", "downwardAPI"}
"""Kinds of volumes that other pods do not see."""
PLACEHOLDERS = {"ACCOUNT", "PROJECT", "REGION", "REGISTRY"}
"""Placeholders of the shipped overlays for names of the user."""
_FACTORS = {
    **{"m": 1e-3, "": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12},
    **{"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40},
}


def job_name(name: str, storage: str) -> str:
    """Return the name of the RayJob of one run or sweep: legal, and always the same for it.

    A hash of the whole address keeps apart what letters and length alone would confuse.
    """
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    tail = hashlib.sha256(f"{storage}/{name}".encode()).hexdigest()[:6]
    head = f"aae-{slug}"[: MAX_NAME - 1 - len(tail)].rstrip("-")
    return f"{head}-{tail}"


def job_of(rendered: list[Object], place: str) -> Object:
    """Return the one RayJob among rendered objects; LaunchError when there is not one."""
    jobs = [found for found in rendered if found.get("kind") == "RayJob"]
    if len(jobs) != 1:
        raise LaunchError(
            f"{place} renders {len(jobs)} RayJobs, and submit fills in exactly one; copy one of "
            "cluster/overlays"
        )
    return jobs[0]


def fill(template: Object, name: str, address: str, config: str) -> list[Object]:
    """Return the ConfigMap and the RayJob to apply.

    Args:
        template: a rendered RayJob.
        name: of the job; that of the ConfigMap starts with it.
        address: of the run's or sweep's folder, for people who look at the job.
        config: YAML text.

    Raises:
        LaunchError: the configuration is too large, or the template has no place for it.
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
        yield (
            {"CPU": math.ceil(quantity(limits.get("cpu", "0"))), "GPU": gpus},
            group["maxReplicas"],
        )


def unedited_images(job: Object) -> list[str]:
    """Return images that still have a placeholder of the overlays in their name."""
    cluster = job["spec"]["rayClusterSpec"]
    pods = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    containers = [c for pod in pods for c in pod["template"]["spec"]["containers"]]
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
    cluster = job["spec"]["rayClusterSpec"]
    pods = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    seen = [_lasting_mounts(pod["template"]["spec"]) for pod in pods]
    return sorted(set.intersection(*seen))


def _lasting_mounts(pod: Object) -> set[str]:
    lasting = {v["name"] for v in pod.get("volumes", []) if not OF_THE_POD & set(v)}
    mounts = pod["containers"][0].get("volumeMounts", [])
    return {mount["mountPath"] for mount in mounts if mount["name"] in lasting}


def is_below(path: str, folders: list[str]) -> bool:
    """Return whether a local path lies in one of the folders, or is one."""
    return any(PurePosixPath(path).is_relative_to(folder) for folder in folders)
