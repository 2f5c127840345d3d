"""A stopped job ends when its driver has: Ray's own supervisor, under a pod's first process.

Ray asks every process of the entrypoint to end and waits for each. `ray start`, which KubeRay makes
the first process of a pod, waits for its own children only. A driver that loses its shell becomes
such an orphan: a zombie, for which Ray waits until its time is up.
"""

import subprocess
import sys
from pathlib import Path

import pytest
from helpers.manifests import rendered

from aae_dist.launch.submit.jobs import entrypoint

pytestmark = pytest.mark.ray

WAIT_SECONDS = 8
SAVE_SECONDS = 1
JOBS = {
    f"{name}: {found['spec']['entrypoint']}": found["spec"]["entrypoint"]
    for name, objects in rendered().items()
    for found in objects
    if found["kind"] == "RayJob"
}
ENTRYPOINTS = sorted({*JOBS.values(), entrypoint("train"), entrypoint("tune")})
OWN_PROCESSES = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
FIRST = "import subprocess, sys; sys.exit(subprocess.call(sys.argv[1:]))"
"""Waits for its own child and for no other process, as `ray start --block` does."""
DRIVER = f"""#!{sys.executable} -S
import signal, time
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
print("trains", flush=True)
while not asked: time.sleep(0.05)
time.sleep({SAVE_SECONDS})
"""
SUPERVISOR = """
import asyncio, os, pathlib, signal, sys, time
from ray.dashboard.modules.job.job_supervisor import JobSupervisor, psutil
entrypoint, log, limit = sys.argv[1:]
supervisor = object.__new__(JobSupervisor)
supervisor._job_id, supervisor._entrypoint = "job", entrypoint
child = supervisor._exec_entrypoint(dict(os.environ), log)
while "trains" not in pathlib.Path(log).read_text():
    assert child.poll() is None, pathlib.Path(log).read_text()
    time.sleep(0.05)
job = psutil.Process(child.pid)
processes = [job, *job.children(recursive=True)]
started = time.monotonic()
supervisor._kill_processes(processes, signal.SIGTERM)
try:
    asyncio.run(asyncio.wait_for(supervisor._poll_all(processes), float(limit)))
except asyncio.TimeoutError:
    states = {p.name(): p.status() for p in processes if p.is_running()}
    sys.exit(f"after {limit} s Ray still waits for {states}")
print(time.monotonic() - started)
"""


def seconds_to_stop(command: str, folder: Path) -> float:
    """Return how long Ray waits for an entrypoint that saves for `SAVE_SECONDS`."""
    program = folder / "aae-dist"
    program.write_text(DRIVER)
    program.chmod(0o755)
    supervisor = (sys.executable, "-c", SUPERVISOR, command, folder / "log.txt", str(WAIT_SECONDS))
    done = subprocess.run(
        [*OWN_PROCESSES, sys.executable, "-Sc", FIRST, *supervisor],
        env={"PATH": f"{folder}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return float(done.stdout)


def why_not() -> str | None:
    """Return why no process can be the first of a namespace here, or None."""
    try:
        subprocess.run([*OWN_PROCESSES, "true"], check=True, capture_output=True)
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        return f"needs root and PID namespaces: {error}"
    return None


@pytest.mark.parametrize("command", ENTRYPOINTS)
def test_ray_waits_for_the_save_and_not_for_a_zombie(command, tmp_path):
    if reason := why_not():
        pytest.skip(reason)
    assert SAVE_SECONDS <= seconds_to_stop(command, tmp_path) < SAVE_SECONDS + 2
