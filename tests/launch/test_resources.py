"""Arithmetic of what a run wants and what a cluster has."""

import pytest

from aae_dist.config import load_config
from aae_dist.errors import LaunchError
from aae_dist.launch.ray import cluster
from aae_dist.launch.ray.cluster import ResourceRequest, refuse_if_impossible


def test_a_worker_lies_on_one_node_only():
    demand = ResourceRequest(2, {"CPU": 3.0})
    assert not demand.fits([{"CPU": 2.0}, {"CPU": 2.0}, {"CPU": 2.0}])
    assert demand.fits([{"CPU": 3.0}, {"CPU": 4.0}])


def test_the_scarcest_resource_decides():
    demand = ResourceRequest(4, {"CPU": 1.0, "GPU": 1.0})
    assert demand.capacity_on({"CPU": 64.0, "GPU": 2.0}) == 2
    assert demand.capacity_on({"CPU": 64.0}) == 0


def test_gpus_can_be_shared():
    assert ResourceRequest(4, {"CPU": 1.0, "GPU": 0.25}).fits([{"CPU": 8.0, "GPU": 1.0}])


def test_what_can_never_start_is_refused_with_both_numbers():
    with pytest.raises(LaunchError) as refused:
        refuse_if_impossible(ResourceRequest(4, {"CPU": 1.0}), [{"CPU": 2.0}], "the cluster has")
    text = str(refused.value)
    assert "4 workers x (1 CPU)" in text
    assert "2 CPU on 1 node, room for 2" in text
    assert "launch.workers=2" in text
    assert refused.value.exit_code == 2


CPU_NODE, GPU_NODE = {"CPU": 8.0}, {"CPU": 8.0, "GPU": 4.0}


@pytest.mark.parametrize(
    ("nodes", "groups", "overrides", "gpus"),
    [
        ([CPU_NODE], [], [], None),
        ([CPU_NODE, GPU_NODE], [], [], 1.0),
        ([CPU_NODE], [(GPU_NODE, 3)], [], 1.0),
        ([CPU_NODE], [(CPU_NODE, 3)], [], None),
        ([GPU_NODE], [], ["launch.gpus_per_worker=0.5", "launch.workers=1"], 0.5),
        ([GPU_NODE], [], ["train.device=cpu"], None),
    ],
)
def test_gpus_per_worker_auto_is_one_where_a_node_or_a_group_has_gpus(
    monkeypatch, nodes, groups, overrides, gpus
):
    monkeypatch.setattr(cluster, "nodes", lambda: nodes)
    monkeypatch.setattr(cluster, "autoscaler_groups", lambda: groups)
    base = ["run.name=a", "data.train=x.tar", "train.steps=1"]
    demand = cluster.request_of(load_config([], [*base, *overrides]).config)
    assert demand.per_worker.get("GPU") == gpus


def test_the_groups_of_an_autoscaler_are_read_from_what_ray_keeps(monkeypatch):
    private = pytest.importorskip("ray._private.state")
    protocol = pytest.importorskip("ray.core.generated.autoscaler_pb2")
    groups = [
        protocol.NodeGroupConfig(resources={"CPU": 8, "GPU": 1}, max_count=2),
        protocol.NodeGroupConfig(resources={"CPU": 4}, max_count=-1),
    ]
    kept = protocol.ClusterConfig(node_group_configs=groups)
    monkeypatch.setattr(private.state, "get_cluster_config", lambda: kept)
    assert cluster.autoscaler_groups() == [({"CPU": 8, "GPU": 1}, 2), ({"CPU": 4}, 10**6)]
    monkeypatch.setattr(private.state, "get_cluster_config", lambda: None)
    assert cluster.autoscaler_groups() == []


def test_elastic_workers_start_with_as_few_as_are_enough():
    demand = ResourceRequest(4, {"CPU": 1.0}, fewest=2)
    assert str(demand) == "2 to 4 workers x (1 CPU)"
    assert demand.fits([{"CPU": 1.0}, {"CPU": 1.0}])
    assert not demand.fits([{"CPU": 1.0}])
    assert demand.capacity_on({"CPU": 9.0}) == 4


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, False),
        ({"RAY_enable_autoscaler_v2": "1"}, True),
        # What `ray start` sets on a head of KubeRay's, and what KubeRay sets with an autoscaler.
        ({"RAY_enable_autoscaler_v2": "1", "RAY_USAGE_STATS_KUBERAY_IN_USE": "1"}, False),
        ({"RAY_enable_autoscaler_v2": "true", "RAY_USAGE_STATS_KUBERAY_IN_USE": "1"}, True),
    ],
)
def test_a_cluster_of_kuberay_without_an_autoscaler_has_none(monkeypatch, variables, expected):
    for name in ("RAY_enable_autoscaler_v2", "RAY_USAGE_STATS_KUBERAY_IN_USE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cluster.has_autoscaler() == expected
