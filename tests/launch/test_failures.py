"""One line for what a worker group died of."""

from aae_dist.launch.failures import explain, root_cause


def test_the_rank_that_failed_of_itself_is_named():
    failures = {
        0: RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]"),
        1: ValueError("no such thing"),
    }
    assert root_cause(failures) == (1, "ValueError: no such thing")


def test_a_traceback_becomes_its_last_line():
    text = "Traceback (most recent call last):\n  File x\nKeyError: 'z'"
    assert root_cause({0: RuntimeError(text)}) == (0, "KeyError: 'z'")


def test_used_up_restarts_are_not_the_users_fault():
    class Failed(Exception):
        worker_failures = {1: ValueError("again")}  # noqa: RUF012

    error = explain(Failed(), max_failures=8, logs="/tmp/logs")
    assert error.exit_code == 1
    assert "rank 1 failed, and launch.max_failures=8 restarts are used up: ValueError" in str(error)
    assert "/tmp/logs" in str(error)
