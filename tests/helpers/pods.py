"""The containers of the pods that KubeRay makes of a rendered manifest, ready to be started.

Command, environment, user, working folder and volumes come from the rendering and the Dockerfile,
so that tests cannot differ from what is deployed.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from helpers.dockerfile import lineage, parse
from helpers.manifests import (
    DASHBOARD_PORT,
    RENDERED,
    ROOT,
    Manifest,
    cluster_of,
    container_command,
    group_of,
    head_service,
    pod_environment,
    read,
    submitter_command,
    submitter_environment,
)

from aae_dist.launch.submit.kubernetes import quantity

# What python:3.11-slim sets: the Dockerfile's PATH refers to it.
BASE_ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"}


@dataclass(frozen=True)
class Volume:
    """A volume of one pod: memory, a folder on disk, or something of this machine."""

    size: int | None = None
    """Bytes of a volume in memory; None for one on disk, whose size the kubelet only watches."""
    source: Path | None = None
    """File or folder of this machine, seen read-only."""


@dataclass(frozen=True)
class Container:
    """A container as a runtime starts it."""

    command: tuple[str, ...]
    environment: Mapping[str, str]
    volumes: Mapping[str, Volume]
    """By the path they are mounted at."""
    user: int
    group: int
    directory: str
    read_only: bool
    """Whether the root file system is."""
    shares_processes: bool
    """Whether a process of the pod, which reaps, comes before the container's own."""


def manifest(name: str) -> Manifest:
    """Return the RayJob or RayCluster of a rendering, say 'kind-cpu-train'."""
    objects = read((RENDERED / f"{name}.yaml").read_text())
    [found] = [o for o in objects if o["kind"] in ("RayJob", "RayCluster")]
    return found


def site_environment(name: str) -> dict[str, str]:
    """Return the ConfigMap from which all Ray pods of a rendering take variables."""
    overlay = name.rpartition("-")[0]
    objects = read((RENDERED / f"{overlay}-platform.yaml").read_text())
    maps = [o for o in objects if o["kind"] == "ConfigMap"]
    [found] = [o["data"] for o in maps if o["metadata"]["name"] == "aae-dist-environment"]
    return dict(found)


def template_environment(name: str, group: str) -> dict[str, str]:
    """Return the variables that the template of a rendering's pods states."""
    container = group_of(manifest(name), group)["template"]["spec"]["containers"][0]
    return {variable["name"]: variable["value"] for variable in container["env"]}


def fitted(found: Manifest) -> Manifest:
    """Take the GPUs off all workers and leave them one CPU, for a machine that has no more.

    A Ray node starts a process per CPU, even before there is anything to do.
    """
    for group in cluster_of(found)["workerGroupSpecs"]:
        for amounts in group["template"]["spec"]["containers"][0]["resources"].values():
            amounts.pop("nvidia.com/gpu", None)
            amounts["cpu"] = "1"
    return found


def ray_container(
    found: Manifest, group: str, pod: str, token: str | None, settings: Mapping[str, str]
) -> Container:
    """Return the Ray container of a pod.

    Args:
        found: a rendered RayJob or RayCluster.
        group: `head`, or the name of a group of workers.
        pod: the pod's name.
        token: what Ray's APIs want; None where they want none.
        settings: variables of the site.
    """
    environment = pod_environment(found, group, settings=settings, token=token or "", pod=pod)
    pod_spec = group_of(found, group)["template"]["spec"]
    # A node takes 30 % of its memory for objects; no cgroup bounds the memory of a played one.
    limit = quantity(pod_spec["containers"][0]["resources"]["limits"]["memory"])
    environment["RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES"] = str(int(0.3 * limit))
    return _container(pod_spec, container_command(found, group), environment, token)


def init_container(ray: Container) -> Container:
    """Return the container in which a worker's pod waits until the head's GCS answers."""
    check = f"ray health-check --address {ray.environment['RAY_ADDRESS']}"
    script = f"until {check} > /dev/null 2>&1; do sleep 5; done"
    return replace(ray, command=("/bin/bash", "-c", "--", script))


def submitter(job: Manifest, job_id: str, token: str | None) -> Container:
    """Return the container that submits a RayJob's entrypoint and follows its log."""
    dashboard = f"{head_service(job)}:{DASHBOARD_PORT}"
    environment = submitter_environment(job, dashboard, job_id, token or "")
    pod = job["spec"]["submitterPodTemplate"]["spec"]
    return _container(pod, submitter_command(job, dashboard, job_id), environment, token)


def _container(
    pod: Manifest, command: list[str], environment: Mapping[str, str], token: str | None
) -> Container:
    first = pod["containers"][0]
    image, directory = _image(first["image"])
    context = {**pod["securityContext"], **first["securityContext"]}
    merged = {**image, **environment}
    if token is None:
        del merged["RAY_AUTH_TOKEN"]
        merged["RAY_AUTH_MODE"] = "disabled"
    return Container(
        command=tuple(command),
        environment=merged,
        volumes=_volumes(pod, first),
        user=context["runAsUser"],
        group=context["runAsGroup"],
        directory=first.get("workingDir", directory),
        read_only=context["readOnlyRootFilesystem"],
        shares_processes=pod.get("shareProcessNamespace", False),
    )


def _volumes(pod: Manifest, container: Manifest) -> dict[str, Volume]:
    """Return an empty volume per mount; as by the kubelet, memory bounds one in memory."""
    kinds = {volume["name"]: volume for volume in pod["volumes"]}
    limit = quantity(container["resources"]["limits"]["memory"])
    found = {}
    for mount in container["volumeMounts"]:
        empty = kinds[mount["name"]].get("emptyDir", {})
        in_memory = empty.get("medium") == "Memory"
        size = int(min(quantity(empty.get("sizeLimit", limit)), limit)) if in_memory else None
        found[mount["mountPath"]] = Volume(size)
    return found


def _image(tag: str) -> tuple[dict[str, str], str]:
    """Return (environment, working folder) of the image whose tag ends with its stage's name."""
    environment, directory = dict(BASE_ENVIRONMENT), "/"
    for stage in lineage(parse(ROOT / "Dockerfile"), tag.rpartition("-")[2]):
        for line in stage.all("ENV"):
            for name, value in re.findall(r"(\w+)=(\S+)", line):
                environment[name] = value.replace("$PATH", environment["PATH"])
        directory = [directory, *stage.all("WORKDIR")][-1]
    return environment, directory
