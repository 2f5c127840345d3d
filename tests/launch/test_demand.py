"""Arithmetic of what a run wants and what a cluster has."""

import pytest

from aae_dist.errors import LaunchError
from aae_dist.launch.ray_cluster import refuse_if_impossible
from aae_dist.launch.ray_demand import Demand


def test_a_worker_lies_on_one_node_only():
    demand = Demand(2, {"CPU": 3.0})
    assert not demand.fits([{"CPU": 2.0}, {"CPU": 2.0}, {"CPU": 2.0}])
    assert demand.fits([{"CPU": 3.0}, {"CPU": 4.0}])


def test_the_scarcest_resource_decides():
    demand = Demand(4, {"CPU": 1.0, "GPU": 1.0})
    assert demand.room_on({"CPU": 64.0, "GPU": 2.0}) == 2
    assert demand.room_on({"CPU": 64.0}) == 0


def test_gpus_can_be_shared():
    assert Demand(4, {"CPU": 1.0, "GPU": 0.25}).fits([{"CPU": 8.0, "GPU": 1.0}])


def test_what_can_never_start_is_refused_with_both_numbers():
    with pytest.raises(LaunchError) as refused:
        refuse_if_impossible(Demand(4, {"CPU": 1.0}), [{"CPU": 2.0}], "the cluster has")
    text = str(refused.value)
    assert "4 workers x (1 CPU)" in text
    assert "2 CPU on 1 node, room for 2" in text
    assert "launch.workers=2" in text
    assert refused.value.exit_code == 2


def test_elastic_workers_start_with_as_few_as_are_enough():
    demand = Demand(4, {"CPU": 1.0}, fewest=2)
    assert str(demand) == "2 to 4 workers x (1 CPU)"
    assert demand.fits([{"CPU": 1.0}, {"CPU": 1.0}])
    assert not demand.fits([{"CPU": 1.0}])
    assert demand.room_on({"CPU": 9.0}) == 4
