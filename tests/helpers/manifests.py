"""Rules that manifests must keep, each as a function from an object to the problems it finds."""

import copy
import functools
import json
import lzma
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from aae_dist.launch.submit.kubernetes import quantity

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
    # libyaml, where PyYAML has it: a tenth of the time.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return [document for document in yaml.load_all(text, loader) if document]


def pod_specs(manifest: Manifest) -> dict[str, Manifest]:
    """Return the pods that KubeRay makes of an object, by what they are.

    KubeRay's own containers are added: the autoscaler's with `autoscalerOptions` and nothing else,
    and the workers' init container, which waits for the head.
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
    for group in cluster["workerGroupSpecs"]:
        pod = group["template"]["spec"]
        init = [*pod.get("initContainers", []), init_container(pod["containers"][0])]
        found[group["groupName"]] = {**pod, "initContainers": init}
    return found


def cluster_of(manifest: Manifest) -> Manifest:
    spec = manifest["spec"]
    found: Manifest = spec if manifest["kind"] == "RayCluster" else spec["rayClusterSpec"]
    return found


def group_of(manifest: Manifest, group: str) -> Manifest:
    """Return the spec of a group: `head`, or workers by the group's name."""
    cluster = cluster_of(manifest)
    workers = {found["groupName"]: found for found in cluster["workerGroupSpecs"]}
    found: Manifest = cluster["headGroupSpec"] if group == "head" else workers[group]
    return found


# What KubeRay 1.7.0 makes of a manifest (controllers/ray/common/pod.go and job.go)

GCS_PORT = 6379
DASHBOARD_PORT = 8265
CLUSTER = "aae-dist-abcde"
"""A name as KubeRay makes it: the RayJob's, and five characters at random."""


def head_service(manifest: Manifest, cluster: str = CLUSTER) -> str:
    namespace = manifest["metadata"]["namespace"]
    return f"{cluster}-head-svc.{namespace}.svc.cluster.local"


def ray_start_command(manifest: Manifest, group: str, head: str | None = None) -> str:
    """Return the `ray start` of the head's pod or of a worker's; `head` is the head's address."""
    spec, is_head = group_of(manifest, group), group == "head"
    parameters = dict(spec.get("rayStartParams", {}))
    _add_group_resources(parameters, spec.get("resources", {}))
    if labels := spec.get("labels"):
        parameters["labels"] = ",".join(f"{key}={labels[key]}" for key in sorted(labels))
    if is_head:
        parameters.setdefault("dashboard-host", "0.0.0.0")
        if cluster_of(manifest).get("enableInTreeAutoscaling"):
            parameters["no-monitor"] = "true"
    else:
        parameters.setdefault("address", f"{head or head_service(manifest)}:{GCS_PORT}")
    parameters.setdefault("metrics-export-port", "8080")
    parameters["block"] = "true"
    parameters.setdefault("dashboard-agent-listen-port", "52365")
    limits = spec["template"]["spec"]["containers"][0]["resources"].get("limits", {})
    _add_limits(parameters, limits)
    start = "ray start --head " if is_head else "ray start "
    return start + "".join(_flag(key, parameters[key]) for key in sorted(parameters))


def _add_group_resources(parameters: dict[str, str], resources: Manifest) -> None:
    rest = {}
    for name, value in resources.items():
        count = math.ceil(quantity(value))
        if name.lower() == "cpu":
            parameters["num-cpus"] = str(count)
        elif name.lower() == "memory":
            parameters["memory"] = str(count)
        elif name.lower().endswith("gpu"):
            parameters["num-gpus"] = str(count)
        else:
            rest[name] = count
    if rest:
        parameters["resources"] = f"'{json.dumps(rest, separators=(',', ':'))}'"


def _add_limits(parameters: dict[str, str], limits: Manifest) -> None:
    for key, name in (("cpu", "num-cpus"), ("memory", "memory")):
        if key in limits:
            parameters.setdefault(name, str(math.ceil(quantity(limits[key]))))
    for key in sorted(limits):
        if key.endswith("gpu"):
            parameters.setdefault("num-gpus", str(math.ceil(quantity(limits[key]))))


def _flag(key: str, value: str) -> str:
    if value.lower() not in ("true", "false") or key in ("log-color", "include-dashboard"):
        return f" --{key}={value} "
    return f" --{key} " if value.lower() == "true" else ""


def container_command(manifest: Manifest, group: str, head: str | None = None) -> list[str]:
    """Return what the Ray container executes in place of the image's entrypoint."""
    container = group_of(manifest, group)["template"]["spec"]["containers"][0]
    own = [*container.get("command", []), *container.get("args", [])]
    annotations = manifest["metadata"].get("annotations", {})
    text = "".join(f" {word} " for word in own)
    if annotations.get("ray.io/overwrite-container-cmd") == "true" or "ray start" in text:
        return own
    start = "ulimit -n ${RAY_START_ULIMIT_OPEN_FILES:-65536}; "
    start += ray_start_command(manifest, group, head)
    return ["/bin/bash", "-c", "--", f"{text} && {start}" if text else start]


def pod_environment(
    manifest: Manifest,
    group: str,
    *,
    settings: Mapping[str, str] | None = None,
    token: str = "token",
    cluster: str = CLUSTER,
    head: str | None = None,
    pod: str = "pod",
) -> dict[str, str]:
    """Return the variables of the Ray container of the head's pod or of a worker's.

    Args:
        manifest: a rendered RayJob or RayCluster.
        group: `head`, or the name of a group of workers.
        settings: of the ConfigMap and the Secret in `envFrom`.
        token: what KubeRay's secret holds.
        cluster: name of the RayCluster.
        head: address of the head; by default the name of its service.
        pod: name of the pod.
    """
    container = group_of(manifest, group)["template"]["spec"]["containers"][0]
    found = dict(settings or {}) if container.get("envFrom") else {}
    found |= {variable["name"]: variable["value"] for variable in container.get("env", [])}
    is_head = group == "head"
    address = "127.0.0.1" if is_head else head or head_service(manifest, cluster)
    if is_head and cluster_of(manifest).get("enableInTreeAutoscaling"):
        found["RAY_enable_autoscaler_v2"] = "true"
    if cluster_of(manifest).get("authOptions", {}).get("mode") == "token":
        found.setdefault("RAY_AUTH_MODE", "token")
        found.setdefault("RAY_AUTH_TOKEN", token)
    if is_head:
        kind = manifest["kind"]
        found["RAY_USAGE_STATS_EXTRA_TAGS"] = f"kuberay_version=v1.7.0;kuberay_crd={kind}"
    else:
        found |= {"FQ_RAY_IP": address, "RAY_IP": address.split(".")[0]}
    found |= {
        "RAY_CLUSTER_NAME": cluster,
        "RAY_CLUSTER_NAMESPACE": manifest["metadata"]["namespace"],
        "RAY_CLOUD_INSTANCE_ID": pod,
        "RAY_NODE_TYPE_NAME": "headgroup" if is_head else group,
        "KUBERAY_GEN_RAY_START_CMD": ray_start_command(manifest, group, head),
    }
    added = {
        "RAY_PORT": str(GCS_PORT),
        "RAY_ADDRESS": f"{address}:{GCS_PORT}",
        "RAY_USAGE_STATS_KUBERAY_IN_USE": "1",
        "RAY_DASHBOARD_ENABLE_K8S_DISK_USAGE": "1",
    }
    return added | found


def job_environment(job: Manifest) -> dict[str, str]:
    """Return the variables that the RayJob gives its driver and all its workers."""
    found: dict[str, str] = yaml.safe_load(job["spec"]["runtimeEnvYAML"])["env_vars"]
    return found


def init_container(container: Manifest) -> Manifest:
    """Return the container that waits for the head before a worker's Ray container starts."""
    resources = {"cpu": "200m", "memory": "256Mi"}
    kept = ("image", "imagePullPolicy", "securityContext", "env", "volumeMounts")
    return {
        "name": "wait-gcs-ready",
        **{key: container[key] for key in kept if key in container},
        "command": ["/bin/bash", "-c", "--"],
        "resources": {"limits": resources, "requests": resources},
    }


def submitter_command(job: Manifest, dashboard: str, job_id: str) -> list[str]:
    """Return what the submitter's container executes, `bash -ce`: it ends at the first error."""
    spec = job["spec"]
    container = spec["submitterPodTemplate"]["spec"]["containers"][0]
    if container.get("command"):
        return [*container["command"], *container.get("args", [])]
    address = dashboard if dashboard.startswith("http://") else f"http://{dashboard}"
    health = (
        'python -c "import urllib.request; '
        f"r=urllib.request.urlopen('{address}/api/gcs_healthz', timeout=10); "
        "exit(0 if b'success' in r.read() else 1)\""
    )
    environment = json.dumps(yaml.safe_load(spec["runtimeEnvYAML"]), separators=(",", ":"))
    script = (
        f"until {health} >/dev/null 2>&1 ; do echo "
        f'"Waiting for Ray Dashboard GCS to become healthy at {address} ..." ; sleep 2 ; done ; '
        f"if ! ray job status --address {address} {job_id} >/dev/null 2>&1 ; then "
        f"ray job submit --address {address} --no-wait --runtime-env-json "
        f"{json.dumps(environment)} --submission-id {job_id} -- {spec['entrypoint'].strip()} ; "
        f"fi ; ray job logs --address {address} --follow {job_id}"
    )
    return ["/bin/bash", "-ce", "--", script]


def submitter_environment(
    job: Manifest, dashboard: str, job_id: str, token: str = "token"
) -> dict[str, str]:
    """Return the variables of the submitter's container."""
    container = job["spec"]["submitterPodTemplate"]["spec"]["containers"][0]
    return {variable["name"]: variable["value"] for variable in container.get("env", [])} | {
        "PYTHONUNBUFFERED": "1",
        "RAY_DASHBOARD_ADDRESS": dashboard,
        "RAY_JOB_SUBMISSION_ID": job_id,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,
    }


# Schemas


def schema_problems(manifest: Manifest) -> list[str]:
    """Return where the object differs from its schema, an unknown key among the differences."""
    errors = validator(manifest["kind"]).iter_errors(manifest)
    return [f"{'/'.join(map(str, e.path))}: {e.message[:200]}" for e in errors]


@functools.cache
def validator(kind: str) -> Any:
    import jsonschema  # pods need this module, too, and nearly all tests need them

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
