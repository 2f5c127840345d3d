"""The actor between driver and workers, called without Ray: it is a plain class."""

from aae_dist.launch.ray.monitor import Monitor


def test_the_same_failure_counts_as_repeated_in_a_later_attempt_only():
    monitor = Monitor()
    monitor.set_workers_up(True)
    assert not monitor.note_failure("ValueError: x, after step 7")
    assert not monitor.note_failure("ValueError: x, after step 7")  # the other rank, alike
    monitor.set_workers_up(False)
    monitor.set_workers_up(True)
    assert not monitor.note_failure("ValueError: x, after step 8")
    assert monitor.note_failure("ValueError: x, after step 7")


def test_the_driver_learns_how_far_a_run_is():
    monitor = Monitor()
    monitor.set_plan(100, 20)
    monitor.set_step(30)
    monitor.add_line("x")
    update = monitor.poll()
    assert (update.plan, update.step, update.lines) == ((100, 20), 30, ["x"])
    update = monitor.poll()
    assert (update.plan, update.step, update.lines) == ((100, 20), 30, [])
