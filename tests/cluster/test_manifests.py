"""The rendered manifests keep KubeRay's rules, Pod Security's and our own."""

import copy
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import yaml
from helpers.manifests import (
    ROOT,
    cluster_of,
    operator_problems,
    pod_specs,
    rendered,
    schema_problems,
    security_problems,
    submitter_environment,
)

from aae_dist.launch.submit.kubernetes import quantity

FILES = rendered()
OBJECTS = [(name, found) for name, objects in FILES.items() for found in objects]
RAY = [(n, o) for n, o in OBJECTS if o["apiVersion"] == "ray.io/v1"]
# Their schemas belong to other projects; each has three fields.
FOREIGN = ("LocalQueue", "PodMonitor")


def named(pairs):
    return [pytest.param(o, id=f"{name}-{o['kind']}-{o['metadata']['name']}") for name, o in pairs]


def test_each_overlay_has_its_four_parts():
    kinds = {name: sorted({o["kind"] for o in objects}) for name, objects in FILES.items()}
    for overlay in ("gke", "eks", "kind-cpu"):
        assert {"NetworkPolicy", "ServiceAccount", "Namespace"} <= set(kinds[f"{overlay}-platform"])
        assert kinds[f"{overlay}-train"] == kinds[f"{overlay}-sweep"] == ["RayJob"]
        assert kinds[f"{overlay}-interactive"] == ["RayCluster"]


@pytest.mark.parametrize("manifest", named((n, o) for n, o in OBJECTS if o["kind"] not in FOREIGN))
def test_fits_its_schema_with_no_unknown_key(manifest):
    assert schema_problems(manifest) == []


@pytest.mark.parametrize("manifest", named(RAY))
def test_kuberay_accepts_it(manifest):
    assert list(operator_problems(manifest)) == []


@pytest.mark.parametrize("manifest", named(RAY))
def test_pods_are_restricted_and_write_only_to_volumes(manifest):
    for name, pod in pod_specs(manifest).items():
        assert list(security_problems(pod)) == [], name
        volumes = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            mounts = {m["mountPath"]: m["name"] for m in container["volumeMounts"]}
            assert {"/tmp", "/home/aae"} <= set(mounts)
            assert set(mounts.values()) <= volumes
        assert pod["securityContext"]["runAsUser"] >= 10000


@pytest.mark.parametrize(("name", "manifest"), RAY, ids=[name for name, _ in RAY])
def test_containers_ask_for_what_they_may_use(name, manifest):
    for role, pod in pod_specs(manifest).items():
        for container in pod["containers"]:
            limits, requests = (container["resources"][key] for key in ("limits", "requests"))
            assert set(limits) == set(requests)
            assert {"cpu", "memory"} <= set(limits)
            if role != "submitter":
                # Ray counts limits. On one machine pods share CPUs that others do not use.
                shared = {"cpu"} if name.startswith("kind") else set()
                kept = set(limits) - shared
                assert {k: limits[k] for k in kept} == {k: requests[k] for k in kept}


@pytest.mark.parametrize("manifest", named(RAY))
def test_only_the_autoscaler_gets_a_token_of_the_kubernetes_api(manifest):
    for name, pod in pod_specs(manifest).items():
        assert pod["automountServiceAccountToken"] is False
        tokens = {v["name"] for v in pod["volumes"] if "serviceAccountToken" in str(v)}
        holders = {
            container["name"]
            for container in pod["containers"]
            for mount in container["volumeMounts"]
            if mount["name"] in tokens
        }
        scales = cluster_of(manifest).get("enableInTreeAutoscaling", False)
        assert holders == ({"autoscaler"} if scales and name == "head" else set())
        assert pod["serviceAccountName"] == {"head": "aae-dist-head"}.get(
            name, "aae-dist-submitter" if name == "submitter" else "aae-dist-worker"
        )


@pytest.mark.parametrize("manifest", named(RAY))
def test_the_grace_period_is_longer_than_the_checkpoint_and_the_drain(manifest):
    pods = pod_specs(manifest)
    if manifest["kind"] == "RayJob":
        env = yaml.safe_load(manifest["spec"]["runtimeEnvYAML"])["env_vars"]
        wait = int(env["RAY_JOB_STOP_WAIT_TIME_S"])
        assert wait == 60
        assert pods["head"]["terminationGracePeriodSeconds"] >= wait + 30
    for group in cluster_of(manifest)["workerGroupSpecs"]:
        pod = group["template"]["spec"]
        env = {e["name"]: e["value"] for e in pod["containers"][0]["env"]}
        drain = int(env["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
        assert pod["terminationGracePeriodSeconds"] >= drain + 20


@pytest.mark.parametrize("manifest", named(RAY))
def test_a_token_is_asked_for_and_ray_is_the_locked_one(manifest):
    cluster = cluster_of(manifest)
    assert cluster["authOptions"] == {"mode": "token"}
    lock = (ROOT / "requirements/main.lock").read_text()
    assert cluster["rayVersion"] == re.search(r"^ray==(\S+)", lock, re.M).group(1)


@pytest.mark.parametrize(("name", "manifest"), [p for p in RAY if p[1]["kind"] == "RayJob"])
def test_a_job_resumes_on_a_new_cluster_and_leaves_none_behind(name, manifest):
    job = manifest["spec"]
    verb = "tune" if name.endswith("sweep") else "train"
    assert job["entrypoint"] == f"exec aae-dist {verb} /etc/aae-dist/config.yaml"
    assert job["shutdownAfterJobFinishes"]
    groups = cluster_of(manifest)["workerGroupSpecs"]
    if cluster_of(manifest).get("enableInTreeAutoscaling"):
        # An answer from the summary, or a refusal, costs a head and no GPU.
        assert job["backoffLimit"] == 3
        assert all(g["replicas"] == g["minReplicas"] == 0 < g["maxReplicas"] for g in groups)
        priorities = {g["groupName"]: g.get("priority", 0) for g in groups}
        assert priorities["spot"] > priorities["on-demand"]
    else:
        assert job["backoffLimit"] == 1
        assert all(g["replicas"] == g["minReplicas"] == g["maxReplicas"] for g in groups)


def test_kueue_gets_jobs_of_a_fixed_size():
    [job] = [o for o in FILES["kueue"] if o["kind"] == "RayJob"]
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "aae-dist"
    assert "enableInTreeAutoscaling" not in cluster_of(job)
    assert {o["metadata"]["namespace"] for o in FILES["kueue"]} == {"aae-dist"}


@pytest.mark.parametrize("overlay", ["gke", "eks", "kind-cpu"])
def test_names_are_resolved_by_all_pods_wherever_the_cloud_answers(overlay):
    policies = [o for o in FILES[f"{overlay}-platform"] if o["kind"] == "NetworkPolicy"]
    for policy in policies:
        if policy["metadata"]["name"] == "deny-all":
            continue
        answering = [
            target.get("ipBlock", {}).get("cidr")
            for rule in policy["spec"]["egress"]
            for target in rule["to"]
            if {p["port"] for p in rule.get("ports", [])} == {53}
        ]
        assert "169.254.20.10/32" in answering
        assert ("169.254.169.254/32" in answering) is (overlay == "gke")  # Cloud DNS


@pytest.mark.parametrize("overlay", ["gke", "eks", "kind-cpu"])
def test_the_network_is_closed_but_for_what_ray_needs(overlay):
    policies = {
        o["metadata"]["name"]: o["spec"]
        for o in FILES[f"{overlay}-platform"]
        if o["kind"] == "NetworkPolicy"
    }
    assert policies["deny-all"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for rule in policies["ray"]["ingress"]:
        # Only Ray's own pods reach all ports; nobody from anywhere.
        own = {"podSelector": {"matchLabels": {"ray.io/is-ray-node": "yes"}}}
        assert rule["from"]
        assert "ports" in rule or rule["from"] == [own]
        assert all("ipBlock" not in source for source in rule["from"])
    for rule in policies["ray"]["egress"]:
        world = [t for t in rule["to"] if t.get("ipBlock", {}).get("cidr") == "0.0.0.0/0"]
        if world:
            assert {p["port"] for p in rule["ports"]} == {443, 6443}
            assert "169.254.0.0/16" in world[0]["ipBlock"]["except"]


def test_the_submitter_carries_the_label_that_its_policy_selects():
    for _, manifest in RAY:
        if manifest["kind"] == "RayJob":
            labels = manifest["spec"]["submitterPodTemplate"]["metadata"]["labels"]
            assert labels == {"aae-dist/role": "submitter"}


README = (ROOT / "cluster/README.md").read_text()
SECTIONS = dict(re.findall(r"^## (?:\d\. )?(.+?)\n(.*?)(?=^## |\Z)", README, re.M | re.S))


@pytest.mark.parametrize("job", named((n, o) for n, o in RAY if o["kind"] == "RayJob"))
def test_a_submitter_waits_for_its_head_as_long_as_the_operator_and_no_longer(job):
    [container] = pod_specs(job)["submitter"]["containers"]
    assert "command" not in container, "KubeRay's own command, which waits without end"
    probe = container["livenessProbe"]
    waits = probe["periodSeconds"] * probe["failureThreshold"]
    [operator] = re.findall(
        r"--set-string 'env\[0\].name=RAYJOB_STATUS_CHECK_TIMEOUT_SECONDS,env\[0\].value=(\d+)'",
        SECTIONS["Once per cluster"],
    )
    assert waits == int(operator) > 300, "KubeRay's default"
    assert f"{waits // 60} min" in SECTIONS["Once per cluster"]
    # A bound of the pod's whole time would end a long training.
    assert "activeDeadlineSeconds" not in yaml.safe_dump(job)


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1), (None, 1)])
def test_the_submitters_probe_asks_the_head(status, code):
    class Head(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status if self.path == "/api/gcs_healthz" else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments):
            return None

    [job] = FILES["gke-train"]
    [container] = pod_specs(job)["submitter"]["containers"]
    _, *command = container["livenessProbe"]["exec"]["command"]
    with HTTPServer(("127.0.0.1", 0), Head) as head:
        if status:
            threading.Thread(target=head.serve_forever, args=(0.01,), daemon=True).start()
        else:
            head.server_close()
        environment = submitter_environment(job, f"127.0.0.1:{head.server_port}", "job-1")
        done = subprocess.run([sys.executable, *command], env=environment, capture_output=True)
        if status:
            head.shutdown()
    assert done.returncode == code, done.stderr


@pytest.mark.parametrize("name", ["gke-train", "eks-sweep", "kind-cpu-train"])
def test_the_readme_tells_who_replaces_a_lost_head_and_how_often(name):
    """In K8sJobMode a lost head comes back in the same cluster; a failed job gets a new one."""
    [job] = FILES[name]
    spec, table = job["spec"], SECTIONS["When something dies"]
    rows = {row.split("|")[1].strip(): row for row in table.splitlines() if row.startswith("|")}
    assert spec["submissionMode"] == "K8sJobMode"
    tries = spec["submitterConfig"]["backoffLimit"]
    assert f"one of {tries} tries (`submitterConfig.backoffLimit`)" in rows["the head"]
    assert "in the same Ray cluster" in rows["the head"]
    assert "backoffLimit`)" not in rows["the head"].replace("`submitterConfig.backoffLimit`)", "")
    [failed] = [row for key, row in rows.items() if key.startswith("the job fails")]
    assert (
        "new Ray cluster, up to 3 times (`backoffLimit`; once with the component `fixed`)" in failed
    )
    assert spec["backoffLimit"] == (1 if name.startswith("kind") else 3)
    [away] = [row for key, row in rows.items() if key.startswith("the head, for longer")]
    assert "JobStatusCheckTimeoutExceeded" in away
    assert "submit again" in away


def test_kinds_pods_fit_a_laptop_with_four_cores_and_eight_gib():
    [job] = FILES["kind-cpu-train"]
    pods, cluster = pod_specs(job), cluster_of(job)
    counts = {"head": 1, "submitter": 1}
    counts |= {group["groupName"]: group["maxReplicas"] for group in cluster["workerGroupSpecs"]}
    totals = {"cpu": 0.0, "memory": 0.0}
    for name, count in counts.items():
        for key in totals:
            main = sum(
                quantity(container["resources"]["requests"][key])
                for container in pods[name]["containers"]
            )
            initial = [
                c["resources"]["requests"][key] for c in pods[name].get("initContainers", [])
            ]
            totals[key] += count * max(main, *map(quantity, initial), 0.0)
    gib = totals["memory"] / 2**30
    assert f"ask for {totals['cpu']:g} CPUs and {gib:g} GiB" in " ".join(README.split())
    # The operator's limits, which are its requests, and the requests of kind's pods: API server
    # 250m, controllers 200m, scheduler, etcd, network and two DNS pods 100m each; 290 MiB.
    assert totals["cpu"] + 0.1 + 0.95 <= 4 * 0.75, "the laptop has other work, too"
    assert gib + 0.5 + 0.3 <= 8 * 0.92, "an 8 GiB machine has some 7.5 GiB for pods"


SECRET = re.compile(r"(password|secret|token|api_?key|credential)", re.I)


def test_no_secret_stands_in_any_manifest():
    assert not [o for _, o in OBJECTS if o["kind"] == "Secret"]
    sources = [p.read_text() for p in (ROOT / "cluster").rglob("*.yaml")]
    for text in [yaml.safe_dump(o) for _, o in OBJECTS] + sources:
        assert not re.search(r"AKIA[0-9A-Z]{16}|BEGIN [A-Z ]*PRIVATE KEY|\bAIza", text)
    for _, manifest in RAY:
        for pod in pod_specs(manifest).values():
            for container in pod["containers"]:
                for variable in container.get("env", []):
                    assert not SECRET.search(variable["name"]) or "valueFrom" in variable


def broken(change):
    [job] = FILES["gke-train"]
    found = copy.deepcopy(job)
    change(found["spec"], found["spec"]["rayClusterSpec"], found)
    return found


@pytest.mark.parametrize(
    "change",
    [
        lambda job, cluster, o: cluster["workerGroupSpecs"][0].update(bogus=1),
        lambda job, cluster, o: cluster["headGroupSpec"]["template"]["spec"].update(hostNet=True),
        lambda job, cluster, o: job.update(backoffLimit="three"),
        lambda job, cluster, o: job.pop("rayClusterSpec") and job.update(rayCluster={}),
    ],
)
def test_the_schema_finds_a_mistake(change):
    assert schema_problems(broken(change))


@pytest.mark.parametrize(
    "change",
    [
        lambda job, cluster, o: o["metadata"].update(name="a" * 48),
        lambda job, cluster, o: o["metadata"].update(name="1run"),
        lambda job, cluster, o: job.update(submissionMode="SidecarMode"),
        lambda job, cluster, o: job.update(submissionMode="InteractiveMode"),
        lambda job, cluster, o: job.update(shutdownAfterJobFinishes=False),
        lambda job, cluster, o: job.update(preRunningDeadlineSeconds=0),
        lambda job, cluster, o: job.update(backoffLimit=-1),
        lambda job, cluster, o: job.update(clusterSelector={"ray.io/cluster": "x"}),
        lambda job, cluster, o: job.update(suspend=True, shutdownAfterJobFinishes=False),
        lambda job, cluster, o: job.update(deletionStrategy={"deletionRules": [{}]}),
        lambda job, cluster, o: job.update(runtimeEnvYAML="[]"),
        lambda job, cluster, o: cluster["headGroupSpec"].update(labels={"a b": "c"}),
        lambda job, cluster, o: cluster["headGroupSpec"]["rayStartParams"].update(labels="a=b"),
        lambda job, cluster, o: cluster["workerGroupSpecs"][0]["template"]["spec"].update(
            restartPolicy="Always"
        ),
        lambda job, cluster, o: cluster.update(enableInTreeAutoscaling=False),
        lambda job, cluster, o: cluster.update(rayVersion="2.55.0"),
        lambda job, cluster, o: cluster.update(rayVersion="2.51.0"),
        lambda job, cluster, o: cluster["autoscalerOptions"].update(version="v1"),
        lambda job, cluster, o: cluster["workerGroupSpecs"][0].update(minReplicas=99),
        lambda job, cluster, o: cluster["headGroupSpec"]["rayStartParams"].update(memory="1"),
        lambda job, cluster, o: cluster["headGroupSpec"]["template"]["spec"].update(
            restartPolicy="Always"
        ),
        lambda job, cluster, o: cluster["headGroupSpec"]["template"]["spec"]["containers"][0][
            "env"
        ].append({"name": "RAY_enable_autoscaler_v2", "value": "true"}),
    ],
)
def test_the_operators_rules_find_a_mistake(change):
    assert list(operator_problems(broken(change)))


@pytest.mark.parametrize(
    "change",
    [
        lambda pod: pod.update(hostNetwork=True),
        lambda pod: pod["volumes"].append({"name": "x", "hostPath": {"path": "/"}}),
        lambda pod: pod["securityContext"].pop("runAsNonRoot"),
        lambda pod: pod["securityContext"].pop("seccompProfile"),
        lambda pod: pod["containers"][0]["securityContext"].update(privileged=True),
        lambda pod: pod["containers"][0]["securityContext"].pop("allowPrivilegeEscalation"),
        lambda pod: pod["containers"][0]["securityContext"].update(capabilities={}),
        lambda pod: pod["containers"][0]["ports"].append({"containerPort": 1, "hostPort": 1}),
        lambda pod: pod["containers"].append({"name": "as KubeRay's sidecar submitter"}),
    ],
)
def test_pod_security_finds_a_mistake(change):
    pod = copy.deepcopy(pod_specs(FILES["gke-train"][0])["head"])
    change(pod)
    assert list(security_problems(pod))
