"""The lock of a run, with real processes that are killed for real."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from aae_dist.errors import LaunchError
from aae_dist.storage import Storage, open_storage
from aae_dist.training.lock import KEY, LockOwner, RunLock, this_process

pytestmark = pytest.mark.run

# Another host is played by a process that believes in another host name.
HOLD = """
import socket, sys, time
uri, launch_id, host = sys.argv[1:]
if host:
    socket.gethostname = lambda: host
from aae_dist.storage import open_storage
from aae_dist.training.lock import RunLock
lock = RunLock.acquire(open_storage(uri), launch_id, heartbeat_seconds=0.05)
print(lock.attempt, flush=True)
time.sleep(60)
"""


@contextmanager
def another_process(
    storage: Storage, launch_id: str = "other", host: str = ""
) -> Iterator[subprocess.Popen[str]]:
    """Run a process that holds the lock until it is killed."""
    command = [sys.executable, "-c", HOLD, storage.uri, launch_id, host]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip().isdigit()
        yield process
        process.kill()


@pytest.fixture(params=["local", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "local":
        return open_storage(str(tmp_path / "runs" / "one"))
    make_bucket: Callable[[], str] = request.getfixturevalue("s3")
    return open_storage(make_bucket() + "/runs/one")


@pytest.fixture
def local(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path))


def acquire(storage: Storage, launch_id: str = "ours", stale_seconds: float = 0.5) -> RunLock:
    return RunLock.acquire(storage, launch_id, 0.05, stale_seconds)


def owner_in(storage: Storage) -> LockOwner:
    return LockOwner.model_validate_json(storage.read(KEY))


def test_attempts_grow_from_one_holder_to_the_next(storage: Storage) -> None:
    for attempt in (1, 2, 3):
        with acquire(storage) as lock:
            assert lock.attempt == attempt
            lock.check()


def test_a_second_writer_on_this_host_is_refused_at_once(local: Storage) -> None:
    with another_process(local) as process:
        expected = rf"is being written by process {process.pid} on host \S+, since \d{{4}}-.* UTC"
        with pytest.raises(LaunchError, match=expected):
            acquire(local, stale_seconds=60)


def test_a_killed_writer_on_this_host_is_replaced_at_once(storage: Storage) -> None:
    with another_process(storage) as process:
        process.send_signal(signal.SIGKILL)
        # Not waited for: a process that its parent has not reaped yet is dead all the same.
        while Path(f"/proc/{process.pid}/stat").read_text().split()[2] != "Z":
            time.sleep(0.01)
        started = time.monotonic()
        with acquire(storage, stale_seconds=60) as lock:
            assert lock.attempt == 2
        assert time.monotonic() - started < 30


def test_the_same_process_is_a_second_writer_too(local: Storage) -> None:
    with acquire(local), pytest.raises(LaunchError, match=f"process {os.getpid()} on host"):
        acquire(local, "another command")


def test_a_restart_of_the_same_launch_takes_over_and_fences_the_old_one(storage: Storage) -> None:
    old = acquire(storage)
    with acquire(storage) as new:
        assert new.attempt == 2
        new.check()
        with pytest.raises(LaunchError, match="was taken over by process"):
            old.check()
        old.release()
        new.check()
        assert owner_in(storage).released is False


def test_a_live_writer_on_another_host_is_noticed(
    local: Storage, caplog: pytest.LogCaptureFixture
) -> None:
    with another_process(local, host="node-7") as process:
        expected = f"is being written by process {process.pid} on host node-7"
        with caplog.at_level(logging.WARNING), pytest.raises(LaunchError, match=expected):
            acquire(local, stale_seconds=20)
    assert "is locked by process" in caplog.text
    assert "waiting up to 20 s for a heartbeat" in caplog.text


def test_a_silent_writer_on_another_host_is_replaced_after_a_while(storage: Storage) -> None:
    with another_process(storage, host="node-7") as process:
        process.kill()
        process.wait()
        started = time.monotonic()
        with acquire(storage) as lock:
            assert lock.attempt == 2
        assert time.monotonic() - started >= 0.5


def test_a_writer_that_slept_through_its_replacement_is_fenced_off(local: Storage) -> None:
    # Asleep, as under SIGSTOP: no heartbeat, and it does not know.
    lock = RunLock.acquire(local, "launch", heartbeat_seconds=3600.0)
    silent = owner_in(local).model_copy(update={"host": "node-7"})
    local.write(KEY, silent.encoded())
    with acquire(local, "newcomer"), pytest.raises(LaunchError, match="taken over by process"):
        lock.check()
    lock.release()


def test_a_pid_that_is_used_again_is_another_process(local: Storage) -> None:
    past = this_process(7, "before").model_copy(update={"started": "1"})
    local.write(KEY, past.encoded())
    with acquire(local) as lock:
        assert lock.attempt == 8


def test_a_process_of_another_boot_or_container_is_watched_not_looked_up(local: Storage) -> None:
    elsewhere = this_process(1, "x").model_copy(update={"boot_id": "another kernel", "pid": 1})
    local.write(KEY, elsewhere.encoded())
    started = time.monotonic()
    with acquire(local) as lock:
        assert lock.attempt == 2
    assert time.monotonic() - started >= 0.5


def test_a_damaged_lock_is_waited_for_and_replaced(local: Storage) -> None:
    local.write(KEY, b'{"pid": "half a lo')
    with acquire(local) as lock:
        lock.check()


def test_a_lock_released_while_one_waits_is_taken(local: Storage) -> None:
    with another_process(local, host="node-7"):
        last = owner_in(local)
    released = last.model_copy(update={"heartbeat": 99, "released": True})
    local.write(KEY, released.encoded())
    with acquire(local) as lock:
        assert lock.attempt == 2


def test_a_removed_lock_is_noticed_by_the_fence(local: Storage) -> None:
    with acquire(local) as lock:
        local.delete(KEY)
        with pytest.raises(LaunchError, match="removed the lock"):
            lock.check()


def test_the_heartbeat_grows_while_the_lock_is_held_and_stops_after(local: Storage) -> None:
    with acquire(local):
        first = owner_in(local).heartbeat
        give_up = time.monotonic() + 10
        while owner_in(local).heartbeat < first + 2:
            assert time.monotonic() < give_up
            time.sleep(0.02)
    last = local.read(KEY)
    time.sleep(0.15)
    assert local.read(KEY) == last


def test_a_failing_heartbeat_is_reported_once_and_survived(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "run"
    with acquire(open_storage(str(folder))) as lock:
        folder.rename(tmp_path / "away")
        folder.write_text("a file where the folder was")
        time.sleep(0.3)
        assert caplog.text.count("no heartbeat was written") == 1
        folder.unlink()
        (tmp_path / "away").rename(folder)
        before = owner_in(open_storage(str(folder))).heartbeat
        time.sleep(0.3)
        assert owner_in(open_storage(str(folder))).heartbeat > before
        lock.check()
