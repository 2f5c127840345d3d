"""The first signal is a request; the second one is not."""

import os
import pty
import signal
import subprocess
import sys
import threading
import time

import pytest

from aae_dist.launch import ending as signals
from aae_dist.launch.ending import StopReason, StopSignals, StopToken

STUBBORN = """
import time
from aae_dist.launch.ending import StopSignals
with StopSignals():
    print("ready", flush=True)
    time.sleep(60)
"""


def test_the_first_signal_sets_the_flag():
    with StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested


def test_handlers_are_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with StopSignals():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_an_echo_of_the_first_signal_is_not_a_second_one():
    with StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested


@pytest.mark.run
def test_a_second_signal_ends_the_process():
    with subprocess.Popen(
        [sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        time.sleep(signals.ECHO_SECONDS + 0.3)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == -signal.SIGTERM


def test_other_threads_leave_the_handlers_alone():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def enter():
        with StopSignals():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [before]


IN_C = """
import ctypes
from aae_dist.launch.ending import StopSignals
library = ctypes.CDLL(None)
with StopSignals():
    print("ready", flush=True)
    # Waits on in C whatever signal comes, as a collective does; the interpreter is released.
    while True:
        mutex = ctypes.create_string_buffer(64)
        library.pthread_mutex_lock(mutex)
        library.pthread_mutex_lock(mutex)
"""


@pytest.mark.run
def test_a_second_signal_ends_a_process_whose_main_thread_is_in_c():
    with subprocess.Popen([sys.executable, "-c", IN_C], stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout.readline() == "ready\n"
        os.kill(run.pid, signal.SIGTERM)
        time.sleep(signals.ECHO_SECONDS + 0.3)
        os.kill(run.pid, signal.SIGTERM)
        assert run.wait(timeout=10) == 128 + signal.SIGTERM


def test_the_first_reason_wins_and_a_child_follows_its_parent():
    sweep = StopToken()
    pruned, other = StopToken(parent=sweep), StopToken(parent=sweep)
    pruned.request(StopReason.PRUNED)
    pruned.request(StopReason.INTERRUPTED)
    assert (pruned.reason, other.reason, sweep.reason) == ("pruned", None, None)
    sweep.request()
    assert (pruned.reason, other.reason, sweep.reason) == ("pruned", "interrupted", "interrupted")
    other.request(StopReason.PRUNED)
    assert other.reason == "interrupted"


def test_threads_that_request_at_once_agree_on_one_reason():
    token, gate, seen = StopToken(), threading.Barrier(8), []

    def request(reason):
        gate.wait()
        token.request(reason)
        seen.append(token.reason)

    reasons = [StopReason.PRUNED, StopReason.INTERRUPTED] * 4
    threads = [threading.Thread(target=request, args=(reason,)) for reason in reasons]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(seen)) == 1


def test_a_closed_terminal_is_a_request_however_often_it_is_reported(monkeypatch):
    monkeypatch.setattr(signals, "ECHO_SECONDS", 0.0)
    with StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        assert stop.requested
        os.kill(os.getpid(), signal.SIGHUP)
        time.sleep(0.05)  # the thread that reads signals would end the process


def test_what_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.requested
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


PRINTING = """
import os, sys, time
from aae_dist.launch.ending import StopSignals
from aae_dist.utils.text import echo
with StopSignals() as stop:
    while not stop.requested:
        echo("step")
        time.sleep(0.01)
    for turn in range(50):
        echo("saving")
        print("result")
        sys.stderr.write("done")
        time.sleep(0.01)
    open(sys.argv[1], "w").write("saved")
"""


@pytest.mark.run
def test_a_process_whose_terminal_is_closed_saves_although_it_prints(tmp_path):
    process, terminal = pty.fork()
    if process == 0:
        os.execv(sys.executable, [sys.executable, "-c", PRINTING, str(tmp_path / "saved")])
    assert b"step" in os.read(terminal, 1000)
    os.close(terminal)  # the kernel sends SIGHUP, and every write fails from now on
    _, status = os.waitpid(process, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert (tmp_path / "saved").read_text() == "saved"
