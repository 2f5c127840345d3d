"""Containers of pods: what manifests and the Dockerfile say, and nothing of this machine."""

from helpers import pods
from helpers.manifests import group_of

KIND = pods.manifest("kind-cpu-train")
SITE = pods.site_environment("kind-cpu-train")


def test_a_node_runs_as_the_manifests_say():
    head = pods.ray_container(KIND, "head", "head-0", "secret", SITE)
    worker = pods.ray_container(KIND, "on-demand", "worker-0", "secret", SITE)
    for container in (head, worker):
        assert (container.user, container.group) == (10001, 10001)
        assert container.read_only
        assert container.directory == container.environment["HOME"] == "/home/aae"
        assert container.environment["GLOO_SOCKET_IFNAME"] == "eth0"
        assert container.environment["RAY_AUTH_TOKEN"] == "secret"
        assert container.environment["PATH"].startswith("/opt/aae-dist/bin:")
        assert {"/tmp", "/home/aae", "/dev/shm"} < set(container.volumes)
    assert head.environment["RAY_TRAIN_ENABLE_STATE_TRACKING"] == "1"
    assert "ray start --head" in head.command[-1]
    assert "PWD" not in head.environment


def test_shared_memory_has_its_size_and_no_more_than_the_pods_memory():
    found = pods.manifest("gke-train")
    spec = group_of(found, "head")["template"]["spec"]
    [volume] = [v for v in spec["volumes"] if v["name"] == "dshm"]
    volume["emptyDir"]["sizeLimit"] = "2Gi"
    for memory, size in (("1Gi", 2**30), ("16Gi", 2 * 2**30)):
        spec["containers"][0]["resources"]["limits"]["memory"] = memory
        volumes = pods.ray_container(found, "head", "head-0", "secret", {}).volumes
        assert volumes["/dev/shm"] == pods.Volume(size=size)
        assert volumes["/tmp"] == pods.Volume()


def test_a_cluster_without_a_token_is_told_so():
    found = pods.ray_container(KIND, "head", "head-0", None, SITE).environment
    assert found["RAY_AUTH_MODE"] == "disabled"
    assert "RAY_AUTH_TOKEN" not in found
