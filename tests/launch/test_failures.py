"""One line for what a worker group died of."""

import pickle
import traceback
from concurrent.futures import Future
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from aae_dist.errors import StorageError
from aae_dist.launch.ending import (
    MAX_CHARS,
    WorkerResult,
    WorkersFailedError,
    condensed,
    explain,
    last_line,
    root_cause,
)
from aae_dist.launch.ray.tasks import result_of


def test_the_rank_that_failed_of_itself_is_named():
    failures = {
        0: RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]"),
        1: ValueError("no such thing"),
    }
    assert root_cause(failures) == (1, "ValueError: no such thing")


def test_a_traceback_becomes_its_last_line():
    text = "Traceback (most recent call last):\n  File x\nKeyError: 'z'"
    assert root_cause({0: RuntimeError(text)}) == (0, "KeyError: 'z'")


class Settings(BaseModel):
    train_loop_config: dict[str, int]


def wrong_settings() -> ValidationError:
    with pytest.raises(ValidationError) as caught:
        Settings.model_validate({"train_loop_config": 7})
    return caught.value


DICT_EXPECTED = (
    "ValidationError: 1 validation error for Settings; train_loop_config; "
    "Input should be a valid dictionary [type=dict_type, input_value=7, input_type=int]"
)


def test_an_error_of_pydantic_says_which_field_is_wrong_and_why() -> None:
    error = wrong_settings()
    assert str(error).splitlines()[-1].strip().startswith("For further information visit https")
    assert last_line(error) == DICT_EXPECTED
    told = condensed("".join(traceback.format_exception(error)))
    assert told == f"pydantic_core._pydantic_core.{DICT_EXPECTED}"


def test_a_chain_of_tracebacks_becomes_what_its_last_one_says() -> None:
    try:
        try:
            raise KeyError("first")
        except KeyError as error:
            raise RuntimeError("cannot go on:\n  the disk is full\n\nFree some space.") from error
    except RuntimeError:
        text = traceback.format_exc()
    assert condensed(text) == "RuntimeError: cannot go on: the disk is full; Free some space."


def test_of_an_error_without_a_traceback_the_first_lines_count() -> None:
    error = RuntimeError("CUDA error: an assert\nKernel errors come late.\nCompile with X.")
    assert last_line(error) == (
        "RuntimeError: CUDA error: an assert; Kernel errors come late. Compile with X."
    )


@pytest.mark.parametrize("text", ["", " \n\t\n"])
def test_an_error_without_a_word_is_unknown_and_no_death(text: str) -> None:
    assert condensed(text) == "unknown"
    assert last_line(ValueError(text)) == "ValueError"


def test_a_long_error_is_cut() -> None:
    assert len(last_line(ValueError("x" * 9999))) == MAX_CHARS


@pytest.mark.ray
def test_of_a_process_that_could_not_begin_its_own_error_is_told() -> None:
    kinds = pytest.importorskip("ray.exceptions")
    text = 'ray::Trial.__init__() (pid=7)\n  File "trial.py", line 3, in setup\nOSError: no disk'
    cause = kinds.RayTaskError("Trial.__init__", text, OSError("no disk"))
    assert last_line(kinds.ActorDiedError()) == "its process died"
    cause._actor_id = b"\0" * 16
    assert last_line(kinds.ActorDiedError(cause)) == "OSError: no disk"


def test_used_up_restarts_are_not_the_users_fault():
    class Failed(Exception):
        worker_failures = {1: ValueError("again")}  # noqa: RUF012

    error = explain(Failed(), max_failures=8, logs="/tmp/logs")
    assert error.exit_code == 1
    assert "rank 1 failed, and launch.max_failures=8 restarts are used up: ValueError" in str(error)
    assert "/tmp/logs" in str(error)


def failed(error: Exception) -> "Future[Any]":
    """Return a task that ended so."""
    future = Future[Any]()
    future.set_exception(error)
    return future


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
        result_of(failed(getattr(kinds, name)(*arguments)))


@pytest.mark.ray
def test_what_a_task_itself_raised_stays_as_it_is() -> None:
    kinds = pytest.importorskip("ray.exceptions")
    error = kinds.RayTaskError("write", "traceback", KeyError("x")).as_instanceof_cause()
    with pytest.raises(KeyError):
        result_of(failed(error))


def test_a_result_is_a_value_or_a_users_error_over_processes_too() -> None:
    assert pickle.loads(pickle.dumps(WorkerResult(value=3))).unwrap() == 3
    error = StorageError("no such bucket", "forbidden")
    with pytest.raises(StorageError, match="no such bucket") as caught:
        pickle.loads(pickle.dumps(WorkerResult[int](error=error))).unwrap()
    assert caught.value.reason == "forbidden"
