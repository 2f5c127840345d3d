"""What a rank tells Ray Train, without a cluster."""

import pytest
from helpers.ranks import single_world

pytestmark = pytest.mark.ray


class Remote:
    """A method of an actor that is not there."""

    def remote(self, *values):
        return None


class NoMonitor:
    """As much of the monitor's handle as a reporter uses."""

    add_metrics = add_line = stop_requested = Remote()


def test_the_last_metrics_reach_ray_although_no_report_was_due(monkeypatch):
    ray_train = pytest.importorskip("ray.train")
    from aae_dist.launch.ray.worker import RayReporter

    reported = []
    monkeypatch.setattr(ray_train, "report", reported.append)
    reporter = RayReporter(NoMonitor(), single_world())
    reporter.report({"step": 1, "loss/reconstruction": 3.0})
    reporter.report({"step": 2, "prior_match/c2st": 0.5})
    assert not reported  # within five seconds of the start
    reporter.flush()
    reporter.flush()
    assert reported == [{"step": 2, "loss/reconstruction": 3.0, "prior_match/c2st": 0.5}]
    reporter.close()
