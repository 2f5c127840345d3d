"""One line for what a worker group died of."""

from concurrent.futures import Future
from typing import Any

import pytest

from aae_dist.launch.failures import WorkersFailedError, explain, root_cause
from aae_dist.launch.ray_executor import _pass_on
from aae_dist.launch.ray_tasks import _value


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


class Cluster:
    """As much of Ray as `_value` looks at: what `get` raises."""

    def __init__(self, error: Exception) -> None:
        self.exceptions, self._error = pytest.importorskip("ray.exceptions"), error

    def get(self, reference: object) -> Any:
        raise self._error


@pytest.mark.ray
@pytest.mark.parametrize(
    ("name", "arguments", "cause"),
    [
        (
            "OutOfMemoryError",
            ("Task was killed.\nTo disable worker killing, set RAY_x",),
            "its process was ended, since its node ran out of memory",
        ),
        ("WorkerCrashedError", (), "its process died"),
        ("NodeDiedError", ("the node is gone",), "NodeDiedError: the node is gone"),
        ("TaskUnschedulableError", ("no room",), "TaskUnschedulableError: "),
    ],
)
def test_what_ends_a_task_from_outside_is_no_fault_of_ours(
    name: str, arguments: tuple[str, ...], cause: str
) -> None:
    kinds = pytest.importorskip("ray.exceptions")
    with pytest.raises(WorkersFailedError, match="launch.max_failures allows: " + cause):
        _value(Cluster(getattr(kinds, name)(*arguments)), None)


@pytest.mark.ray
def test_what_a_task_itself_raised_stays_as_it_is() -> None:
    kinds = pytest.importorskip("ray.exceptions")
    error = kinds.RayTaskError("write", "traceback", KeyError("x")).as_instanceof_cause()
    with pytest.raises(KeyError):
        _value(Cluster(error), None)


@pytest.mark.ray
def test_what_ends_a_task_of_data_index_is_told_by_its_cause() -> None:
    kinds = pytest.importorskip("ray.exceptions")
    inner, done = Future[tuple[Any, Exception | None]](), Future[Any]()
    inner.set_exception(kinds.OutOfMemoryError("Task was killed.\nTo disable worker killing, ..."))
    _pass_on(inner, done)
    with pytest.raises(WorkersFailedError, match="since its node ran out of memory"):
        done.result()
