"""Names under which metrics are served; tests/played reads them from a running job."""

import re

import pytest

pytestmark = pytest.mark.ray


@pytest.mark.parametrize(
    ("metric", "name"),
    [
        ("throughput/samples_per_second", "aae_dist_throughput_samples_per_second"),
        ("step_seconds/reconstruction", "aae_dist_step_seconds_reconstruction"),
        ("step", "aae_dist_step"),
        ("prior_match/c2st-low.er", "aae_dist_prior_match_c2st_low_er"),
    ],
)
def test_names_are_those_that_prometheus_takes(metric, name):
    from aae_dist.launch.ray.worker import gauge_name

    assert gauge_name(metric) == name
    assert re.fullmatch(r"[a-zA-Z_:][a-zA-Z0-9_:]*", gauge_name(metric))
