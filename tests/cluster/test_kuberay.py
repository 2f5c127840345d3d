"""What KubeRay 1.7.0 makes of the manifests: commands, variables and containers of the pods."""

import shlex

import pytest
from helpers.manifests import (
    container_command,
    job_environment,
    pod_environment,
    pod_specs,
    ray_start_command,
    rendered,
    submitter_command,
    submitter_environment,
)

FILES = rendered()
[GKE] = FILES["gke-train"]
[KIND] = FILES["kind-cpu-train"]


def flags(command):
    """Return the options of a `ray start` by name."""
    words = shlex.split(command)
    return dict(word.removeprefix("--").partition("=")[::2] for word in words[2:])


def test_the_head_starts_without_processors_and_with_drivers():
    found = flags(ray_start_command(GKE, "head"))
    assert found["num-cpus"] == "0"
    assert found["resources"] == '{"driver":32}'
    assert found["memory"] == str(16 * 2**30)
    assert found["object-store-memory"] == "1000000000"
    assert found["dashboard-host"] == "0.0.0.0"
    assert {"head", "block", "no-monitor"} <= set(found)
    assert "no-monitor" not in flags(ray_start_command(KIND, "head"))


@pytest.mark.parametrize("group", ["on-demand", "spot"])
def test_a_worker_has_the_pods_processors_memory_and_gpus(group):
    found = flags(ray_start_command(GKE, group))
    assert found["num-gpus"] == "1"
    assert int(found["num-cpus"]) > 0
    assert int(found["memory"]) > 2**30
    assert found["labels"] == f"aae-dist/capacity={group}"
    assert found["address"].endswith("-head-svc.aae-dist.svc.cluster.local:6379")
    assert flags(ray_start_command(GKE, group, head="10.0.0.1"))["address"] == "10.0.0.1:6379"


def test_the_pods_run_ray_start_behind_a_limit_of_open_files():
    for group in ("head", "on-demand"):
        *_, script = container_command(KIND, group)
        assert "ulimit -n" in script
        assert ray_start_command(KIND, group) in script


def test_the_pods_have_the_templates_variables_and_kuberays():
    found = pod_environment(GKE, "head", token="t", settings={"GLOO_SOCKET_IFNAME": "eth0"})
    assert found["RAY_TRAIN_ENABLE_STATE_TRACKING"] == "1"
    assert found["RAY_ADDRESS"] == "127.0.0.1:6379"
    assert (found["RAY_AUTH_MODE"], found["RAY_AUTH_TOKEN"]) == ("token", "t")
    assert found["GLOO_SOCKET_IFNAME"] == "eth0"
    assert found["RAY_enable_autoscaler_v2"] == "true"
    worker = pod_environment(GKE, "spot", head="10.0.0.1")
    assert worker["RAY_ADDRESS"] == "10.0.0.1:6379"
    assert worker["RAY_NODE_TYPE_NAME"] == "spot"
    assert worker["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] == "100"
    assert job_environment(GKE) == {"RAY_JOB_STOP_WAIT_TIME_S": "60"}


def test_workers_wait_for_the_head_in_a_container_that_pod_security_lets_in():
    for name, pod in pod_specs(GKE).items():
        inits = [container["name"] for container in pod.get("initContainers", [])]
        assert inits == ([] if name in ("head", "submitter") else ["wait-gcs-ready"])


def test_the_submitter_submits_once_and_follows():
    *shell, script = submitter_command(GKE, "head:8265", "job-1")
    assert shell[1] == "-ce"
    submit, follow = script.split(" ; fi ; ")
    assert "ray job submit --address http://head:8265 --no-wait" in submit
    assert submit.endswith("-- exec aae-dist train /etc/aae-dist/config.yaml")
    assert follow == "ray job logs --address http://head:8265 --follow job-1"
    assert submitter_environment(GKE, "head:8265", "job-1")["RAY_JOB_SUBMISSION_ID"] == "job-1"
