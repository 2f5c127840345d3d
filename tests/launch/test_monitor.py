"""The actor between driver and workers, called without Ray: it is a plain class."""

from aae_dist.launch.ray_monitor import Monitor


def test_the_same_failure_counts_as_repeated_in_a_later_attempt_only():
    monitor = Monitor()
    monitor.set_workers_up(True)
    assert not monitor.note_failure("ValueError: x, after step 7")
    assert not monitor.note_failure("ValueError: x, after step 7")  # the other rank, alike
    monitor.set_workers_up(False)
    monitor.set_workers_up(True)
    assert not monitor.note_failure("ValueError: x, after step 8")
    assert monitor.note_failure("ValueError: x, after step 7")
