"""Rules that manifests must keep, each as a function from an object to the problems it finds."""

import copy
import functools
import json
import lzma
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import yaml

ROOT = Path(__file__).parents[2]
RENDERED = ROOT / "tests/cluster/rendered"
SCHEMAS = ROOT / "tests/cluster/schemas"
Manifest = dict[str, Any]


def rendered() -> dict[str, list[Manifest]]:
    """Return the objects of each rendered file."""
    return {p.stem: read(p.read_text()) for p in sorted(RENDERED.glob("*.yaml"))}


def read(text: str) -> list[Manifest]:
    return copy.deepcopy(_parsed(text))


@functools.cache
def _parsed(text: str) -> list[Manifest]:
    return [document for document in yaml.safe_load_all(text) if document]


def pod_specs(manifest: Manifest) -> dict[str, Manifest]:
    """Return the pods that KubeRay makes of an object, its own container added, by what they are.

    The autoscaler's container gets `autoscalerOptions` and nothing else (KubeRay 1.7.0,
    controllers/ray/common/pod.go).
    """
    found = {}
    if template := manifest["spec"].get("submitterPodTemplate"):
        found["submitter"] = template["spec"]
    cluster = cluster_of(manifest)
    head = cluster["headGroupSpec"]["template"]["spec"]
    if cluster.get("enableInTreeAutoscaling"):
        options = {k: v for k, v in cluster["autoscalerOptions"].items() if k != "version"}
        autoscaler = {"name": "autoscaler", "image": "as the head's", **options}
        head = {**head, "containers": [*head["containers"], autoscaler]}
    found["head"] = head
    groups = cluster["workerGroupSpecs"]
    return found | {group["groupName"]: group["template"]["spec"] for group in groups}


def cluster_of(manifest: Manifest) -> Manifest:
    spec = manifest["spec"]
    found: Manifest = spec if manifest["kind"] == "RayCluster" else spec["rayClusterSpec"]
    return found


# Schemas


def schema_problems(manifest: Manifest) -> list[str]:
    """Return where the object differs from its schema, an unknown key among the differences."""
    errors = validator(manifest["kind"]).iter_errors(manifest)
    return [f"{'/'.join(map(str, e.path))}: {e.message[:200]}" for e in errors]


@functools.cache
def validator(kind: str) -> Any:
    name = {"RayJob": "ray.io_rayjobs.v1", "RayCluster": "ray.io_rayclusters.v1"}.get(kind, "core")
    schema = json.loads(lzma.decompress((SCHEMAS / f"{name}.json.xz").read_bytes()))
    if name == "core":
        schema = {"definitions": schema, "$ref": f"#/definitions/V1{kind}"}
    else:
        metadata = schema["properties"].pop("metadata")
        schema = closed(schema)
        schema["properties"]["metadata"] = metadata  # the API server's own, open here
    return jsonschema.Draft7Validator(schema)


def closed(schema: Any) -> Any:
    """Return a CRD's schema as JSON schema in which an object has no keys but those named."""
    if not isinstance(schema, dict):
        return schema
    found = dict(schema)
    found.pop("x-kubernetes-validations", None)
    found.pop("format", None)
    if found.pop("x-kubernetes-int-or-string", False):
        found.pop("type", None)
        found["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    if found.pop("nullable", False) and "type" in found:
        found["type"] = [found["type"], "null"]
    if properties := found.get("properties"):
        found["properties"] = {key: closed(value) for key, value in properties.items()}
        if not found.get("x-kubernetes-preserve-unknown-fields"):
            found.setdefault("additionalProperties", False)
    for key in ("items", "additionalProperties"):
        if isinstance(found.get(key), dict):
            found[key] = closed(found[key])
    return found


# What KubeRay 1.7.0 refuses beyond its schemas (controllers/ray/utils/validation.go)

DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
LABEL = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
LABEL_KEY = re.compile(
    r"([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
)
LONGEST = {"RayJob": 47, "RayCluster": 53}


def operator_problems(manifest: Manifest) -> Iterator[str]:
    name, kind = manifest["metadata"]["name"], manifest["kind"]
    if len(name) > LONGEST[kind] or not DNS_1035.fullmatch(name):
        yield f"name {name}: DNS-1035 and at most {LONGEST[kind]} characters"
    if kind == "RayJob":
        yield from _job_problems(manifest["spec"])
    yield from _cluster_problems(cluster_of(manifest))


def _job_problems(job: Manifest) -> Iterator[str]:
    mode = job.get("submissionMode", "K8sJobMode")
    if mode == "SidecarMode" and ("submitterPodTemplate" in job or "submitterConfig" in job):
        yield "SidecarMode has no submitterPodTemplate and no submitterConfig"
    if mode == "SidecarMode":
        head = job["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
        if "clusterSelector" in job or head.get("restartPolicy", "Never") != "Never":
            yield "SidecarMode has no clusterSelector, and a head with restartPolicy Never"
    for key in ("backoffLimit", "ttlSecondsAfterFinished"):
        if job.get(key, 0) < 0:
            yield f"{key} must not be negative"
    if job.get("suspend") and "clusterSelector" in job:
        yield "suspend not with clusterSelector"
    if job.get("backoffLimit") and (mode == "InteractiveMode" or "clusterSelector" in job):
        yield "backoffLimit not with clusterSelector or InteractiveMode"
    shutdown = job.get("shutdownAfterJobFinishes")
    if job.get("suspend") and not shutdown:
        yield "suspend needs shutdownAfterJobFinishes"
    if job.get("ttlSecondsAfterFinished") and not shutdown:
        yield "ttlSecondsAfterFinished needs shutdownAfterJobFinishes"
    rules = job.get("deletionStrategy", {}).get("deletionRules")
    if rules and (shutdown or job.get("ttlSecondsAfterFinished")):
        yield "deletionRules exclude shutdownAfterJobFinishes and ttlSecondsAfterFinished"
    for key in ("activeDeadlineSeconds", "preRunningDeadlineSeconds"):
        if key in job and job[key] <= 0:
            yield f"{key} must be positive"
    if not isinstance(yaml.safe_load(job.get("runtimeEnvYAML", "{}")), dict):
        yield "runtimeEnvYAML must be a map"


def _cluster_problems(cluster: Manifest) -> Iterator[str]:
    version = tuple(map(int, cluster.get("rayVersion", "0.0").split(".")[:2]))
    head, groups = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    autoscaled = cluster.get("enableInTreeAutoscaling", False)
    v2 = autoscaled and cluster.get("autoscalerOptions", {}).get("version") == "v2"
    if cluster.get("authOptions", {}).get("mode") == "token" and version < (2, 52):
        yield "authOptions.mode token needs rayVersion >= 2.52"
    for group in [head, *groups]:
        yield from _group_problems(group, v2, version)
    for group in groups:
        low, high = group.get("minReplicas"), group.get("maxReplicas")
        if not autoscaled and (low is None or high is None):
            yield "minReplicas and maxReplicas are needed without the autoscaler"
        if low is not None and high is not None and not 0 <= low <= high:
            yield "0 <= minReplicas <= maxReplicas"
    names = [e["name"] for e in head["template"]["spec"]["containers"][0].get("env", [])]
    if "RAY_enable_autoscaler_v2" in names:
        yield "the autoscaler's version stands in autoscalerOptions alone"
    if {"RAY_REDIS_ADDRESS", "REDIS_USERNAME"} & set(names):
        yield "Redis is set by gcsFaultToleranceOptions alone"


def _group_problems(group: Manifest, v2: bool, version: tuple[int, ...]) -> Iterator[str]:
    parameters, spec = group.get("rayStartParams", {}), group["template"]["spec"]
    if not spec.get("containers"):
        yield "a group needs a container"
    own = {"num-cpus", "num-gpus", "memory", "resources"} & set(parameters)
    if own and group.get("resources"):
        yield "resources stand in rayStartParams or in the group, not in both"
    for key, value in group.get("labels", {}).items():
        if not LABEL_KEY.fullmatch(key) or not LABEL.fullmatch(value):
            yield f"label {key}: {value} has no legal syntax"
    if "labels" in parameters:
        yield "labels do not stand in rayStartParams"
    if v2 and spec.get("restartPolicy", "Never") != "Never":
        yield "autoscaler v2 needs restartPolicy Never"
    if (group.get("priority") or group.get("idleTimeoutSeconds") is not None) and not v2:
        yield "priority and idleTimeoutSeconds need autoscaler v2"
    if group.get("priority") and version < (2, 56):
        yield "priority needs rayVersion >= 2.56"


# Pod Security `restricted` (kubernetes.io/docs/concepts/security/pod-security-standards)

VOLUMES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim",
    "projected", "secret",
}  # fmt: skip


def security_problems(pod: Manifest) -> Iterator[str]:
    if any(pod.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")):
        yield "no namespace of the host"
    for volume in pod.get("volumes", []):
        if kinds := set(volume) - {"name"} - VOLUMES:
            yield f"volume {volume['name']} of kind {kinds}"
    context = pod.get("securityContext", {})
    if context.get("sysctls"):
        yield "no sysctls"
    for container in [*pod.get("containers", []), *pod.get("initContainers", [])]:
        merged = {**context, **container.get("securityContext", {})}
        for problem in _container_problems(container, merged):
            yield f"container {container['name']}: {problem}"


def _container_problems(container: Manifest, context: Manifest) -> Iterator[str]:
    if context.get("privileged") or context.get("procMount", "Default") != "Default":
        yield "not privileged, procMount Default"
    if context.get("allowPrivilegeEscalation") is not False:
        yield "allowPrivilegeEscalation must be false"
    if context.get("runAsNonRoot") is not True or context.get("runAsUser", 1) == 0:
        yield "must run as non-root"
    if context.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
        yield "seccompProfile RuntimeDefault"
    capabilities = context.get("capabilities", {})
    if "ALL" not in capabilities.get("drop", []):
        yield "drops ALL capabilities"
    if set(capabilities.get("add", [])) - {"NET_BIND_SERVICE"}:
        yield "adds no capability"
    if any(port.get("hostPort") for port in container.get("ports", [])):
        yield "no hostPort"
