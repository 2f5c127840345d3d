"""Follow a RayJob to its end: report its states, print each log line once, return its exit code."""

import queue
import re
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from aae_dist.errors import LaunchError
from aae_dist.launch.submit.jobs import SAVED, exit_code
from aae_dist.launch.submit.kubernetes import ENDED, Kubectl, Object
from aae_dist.utils.text import echo

POLL_SECONDS = 3.0
LOST_SECONDS = 600.0
"""How long the Kubernetes API may be silent: an upgrade of a control plane takes minutes."""
HELD_SECONDS = 10.0  # how long a traceback waits for the end of its pod, which tells whose it is
LAST_LOG_SECONDS = 10.0
"""How long the last lines may take after the job's end; a submitter whose head never returned would
wait without end."""
UNSEEN_SECONDS = 30.0  # when a job that no operator has noticed is reported
STOP_COMMAND = "ray job stop --no-wait --address http://127.0.0.1:8265"
_OVER = ("Succeeded", "Failed")
_SUBMITTED = re.compile(r"Job '\S+' submitted successfully")
_EXIT_CODE = re.compile(r"Job entrypoint command failed with exit code (-?\d+)")
_NOISE = "Waiting for Ray Dashboard GCS to become healthy"
_TRACEBACK = "Traceback (most recent call last)"


def follow(api: Kubectl, name: str) -> int:
    """Print the job's states and log until it ends; return the run's exit code.

    LaunchError when there is no such job, or the cluster is silent for `LOST_SECONDS`. The job
    continues after Ctrl-C.
    """
    log, states = JobLog(), StateReporter()
    logs = SubmitterLogs(api, log)
    silent_since = ended_at = None
    try:
        while True:
            try:
                job = _poll(api, name, states, logs)
                silent_since = None
            except GoneError:
                raise
            except LaunchError as error:
                silent_since = silent_since or time.monotonic()
                if time.monotonic() - silent_since > LOST_SECONDS:
                    raise
                states.report(f"no answer from the cluster ({error}); retrying")
            else:
                if _status(job).get("jobDeploymentStatus") in ENDED:
                    ended_at = ended_at or time.monotonic()
                    if logs.complete or time.monotonic() - ended_at > LAST_LOG_SECONDS:
                        return report_end(job, log)
            time.sleep(POLL_SECONDS)
    finally:
        logs.close()


def _poll(api: Kubectl, name: str, states: "StateReporter", logs: "SubmitterLogs") -> Object:
    job = api.job(name)
    if job is None:
        raise GoneError(name)
    cluster = _status(job).get("rayClusterName")
    states.update(job, api.pods(f"ray.io/cluster={cluster}") if cluster else [])
    logs.pump(api.pods(f"batch.kubernetes.io/job-name={name}"))
    return job


def stop(api: Kubectl, name: str) -> None:
    """Request a checkpoint and the end of the run; do nothing for a job that has ended."""
    job = api.job(name)
    if job is None:
        raise GoneError(name)
    status = _status(job)
    if status.get("jobDeploymentStatus") in ENDED:
        return
    cluster = status.get("rayClusterName", "")
    heads = api.pods(f"ray.io/cluster={cluster},ray.io/node-type=head") if cluster else []
    running = [pod for pod in heads if pod["status"].get("phase") == "Running"]
    if not running or status.get("jobDeploymentStatus") != "Running":
        raise LaunchError(
            f"rayjob/{name} has no running head, so there is nothing to save. To delete it: "
            f"{api.words} delete rayjob {name}"
        )
    api.execute(running[0]["metadata"]["name"], [*STOP_COMMAND.split(), status["jobId"]])
    echo("aae-dist: stopping: the run saves a checkpoint first")


class GoneError(LaunchError):
    """There is no RayJob of the name."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"there is no rayjob/{name}: it was not submitted, or it was deleted. The same command "
            "without --follow and --stop submits it; the run resumes from its last checkpoint"
        )


class JobLog:
    """The log of a job that several pods print; each line is shown once.

    A submitter pod that finds the job submitted prints its whole log again, and so does `kubectl
    logs` that starts again. A pod that submits the job to a new head prints a new log.
    """

    def __init__(self) -> None:
        self.saved = False  # whether the job logged that it saved a checkpoint
        self.driver: int | None = None  # the job's exit code, when its log names one
        self._lines: list[int] = []
        self._attempt = 0  # where the log of the present head starts
        self._starts: dict[str, int] = {}  # where lines of each pod may stand
        self._firsts: dict[str, int] = {}
        self._submitters: set[str] = set()
        self._pod, self._position, self._is_repeating = "", 0, False

    def open(self, pod: str) -> None:
        self._firsts.setdefault(pod, len(self._lines))
        self._pod, self._is_repeating = pod, False
        self._position = self._starts.setdefault(pod, self._attempt)

    def take(self, line: str) -> None:
        if _NOISE in line:
            return
        if _SUBMITTED.search(line) and self._pod not in self._submitters:
            self._submitters.add(self._pod)
            self._attempt = self._starts[self._pod] = self._firsts[self._pod]
            self._position = len(self._lines)
        if self._is_known(hash(line)):
            return
        print(line, flush=True)
        self.saved = self.saved or SAVED in line
        if code := _EXIT_CODE.search(line):
            self.driver = int(code[1])

    def _is_known(self, line: int) -> bool:
        try:
            self._position = self._lines.index(line, self._position) + 1
        except ValueError:
            # Lines of an attached pod before the repetition are not part of the job's log.
            if self._is_repeating or self._position == len(self._lines):
                self._lines.append(line)
                self._position = len(self._lines)
            return False
        self._is_repeating = True
        return True


class SubmitterLogs:
    """The logs of the pods that submit the job, one after another."""

    def __init__(self, api: Kubectl, log: JobLog) -> None:
        self._api, self._log = api, log
        self._stream: _Stream | None = None
        self._done: set[str] = set()
        self._held: list[str] = []
        self._held_since = 0.0
        self.complete = False  # whether all pods have ended and all of their lines are shown

    def pump(self, pods: Sequence[Object]) -> None:
        if self._stream is None:
            self._open_next(pods)
        if self._stream is not None:
            self._drain(self._stream)
        over = {_name(pod) for pod in pods if pod["status"].get("phase") in _OVER}
        self.complete = self._stream is None and over == {_name(pod) for pod in pods} <= self._done

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()

    def _open_next(self, pods: Sequence[Object]) -> None:
        for pod in sorted(pods, key=lambda pod: str(pod["metadata"]["creationTimestamp"])):
            phase = pod["status"].get("phase")
            if _name(pod) not in self._done and phase in ("Running", *_OVER):
                self._log.open(_name(pod))
                self._stream = _Stream(self._api.follow_log(_name(pod)), _name(pod), phase)
                return

    def _drain(self, stream: "_Stream") -> None:
        is_at_end = not stream.is_alive()  # asked first: lines of before then are in the queue
        for line in stream.lines():
            if self._held or line.startswith(_TRACEBACK):
                self._held_since = self._held_since or time.monotonic()
                self._held.append(line)
            else:
                self._log.take(line)
        if is_at_end:
            self._finish(stream)
        elif self._held and time.monotonic() - self._held_since > HELD_SECONDS:
            self._release()

    def _finish(self, stream: "_Stream") -> None:
        """Read the pod again unless it had ended before: the connection may have been cut."""
        if stream.phase in _OVER:
            self._done.add(stream.pod)
            if stream.phase == "Failed" and self._held:
                # The traceback is that of `ray job logs`, which lost the head: when the job itself
                # fails, the pod succeeds.
                echo(f"aae-dist: {stream.pod} lost the head: {self._held[-1].strip()[:200]}")
                self._held.clear()
            self._release()
        self._held, self._held_since = [], 0.0
        stream.close()
        self._stream = None

    def _release(self) -> None:
        for line in self._held:
            self._log.take(line)
        self._held, self._held_since = [], 0.0


class _Stream:
    """One `kubectl logs --follow`, read by a thread."""

    def __init__(self, process: "subprocess.Popen[str]", pod: str, phase: str) -> None:
        self.pod, self.phase = pod, phase
        self._process = process
        self._queue: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._queue.put(line.rstrip("\n"))

    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def lines(self) -> Iterator[str]:
        while not self._queue.empty():
            yield self._queue.get()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._thread.join()
        assert self._process.stdout is not None
        self._process.stdout.close()


class StateReporter:
    """Reports the states of a job, each once."""

    def __init__(self) -> None:
        self._last, self._cluster, self._failed = "", "", 0
        self._is_ready = self._is_head_lost = False
        self._started = time.monotonic()

    def report(self, line: str) -> None:
        if line != self._last:
            echo(f"aae-dist: {line}")
        self._last = line

    def update(self, job: Object, pods: Sequence[Object]) -> None:
        status = _status(job)
        state = status.get("jobDeploymentStatus", "")
        failed = int(status.get("failed", 0))
        if failed > self._failed and state not in ENDED:
            self._failed, tries = failed, int(job["spec"].get("backoffLimit", 0)) + 1
            text = f"try {failed} of {tries} {_failure(status)}; KubeRay starts a new cluster"
            self.report(text)
        if (cluster := status.get("rayClusterName", "")) and cluster != self._cluster:
            self._cluster, self._is_ready, self._is_head_lost = cluster, False, False
            self.report(f"Ray cluster {cluster}")
        if state in ("", "Initializing"):
            self._waiting(state, pods)
        elif state in ("Suspending", "Suspended"):
            self.report("suspended: queued until its cluster fits")
        elif state == "Running":
            self._running(status, pods)

    def _waiting(self, state: str, pods: Sequence[Object]) -> None:
        if not state and time.monotonic() - self._started > UNSEEN_SECONDS:
            self.report("no operator has noticed the job yet; is KubeRay's operator running?")
        elif pods:
            self.report(f"waiting for pods: {waiting_for(pods) or 'all are running; Ray starts'}")
        else:
            self.report("waiting for the operator to make the Ray cluster")

    def _running(self, status: Object, pods: Sequence[Object]) -> None:
        if not self._is_ready:
            self._is_ready = True
            self.report("the cluster is ready; the run is submitted to it")
        if status.get("jobStatusCheckFailureStartTime"):
            if not self._is_head_lost:
                text = "the head does not answer; KubeRay replaces it in the same cluster"
                self.report(f"{text}, and the run resumes from its last checkpoint")
            self._is_head_lost = True
            heads = [pod for pod in pods if _labels(pod).get("ray.io/node-type") == "head"]
            if waiting := waiting_for(heads):
                self.report(f"waiting for pods: {waiting}")
        elif self._is_head_lost:
            self._is_head_lost = False
            self.report("the head answers again")


def waiting_for(pods: Sequence[Object]) -> str:
    """Return the pods that are not running yet and why, '' when all are."""
    named = ((_labels(pod).get("ray.io/group", "pod"), _missing(pod)) for pod in pods)
    reasons = Counter((group, reason) for group, reason in named if reason)
    return "; ".join(
        f"{'head' if group == 'headgroup' else f'{count} {group}'}: {reason}"
        for (group, reason), count in sorted(reasons.items())
    )


def _missing(pod: Object) -> str:
    status = pod["status"]
    if status.get("phase") in _OVER:
        return f"ended ({status.get('reason') or status['phase']})"
    conditions = {found["type"]: found for found in status.get("conditions", [])}
    scheduled = conditions.get("PodScheduled", {})
    if scheduled.get("status") == "False":
        return str(scheduled.get("message") or "no node yet")[:200]
    for kind in ("initContainerStatuses", "containerStatuses"):
        for container in status.get(kind, []):
            if (waiting := container["state"].get("waiting")) and waiting.get("reason"):
                message = str(waiting.get("message", ""))[:200]
                return f"{waiting['reason']}{f': {message}' if message else ''}"
    return "" if conditions.get("Ready", {}).get("status") == "True" else "starting"


def _failure(status: Object) -> str:
    if (code := _EXIT_CODE.search(status.get("message", ""))) is not None:
        return f"failed with exit code {code[1]}"
    reason, message = status.get("reason", ""), status.get("message", "").strip()
    first = message.splitlines()[0][:200] if message else ""
    return f"failed ({': '.join(part for part in (reason, first) if part) or 'see its log'})"


def report_end(job: Object, log: JobLog) -> int:
    """Report how the job ended; return its exit code."""
    status = _status(job)
    reached = status.get("jobStatus", "")
    if status.get("reason") == "JobStatusCheckTimeoutExceeded":
        echo(
            "aae-dist: the head stayed away for longer than the operator waits, which then makes "
            "no new cluster (300 s; RAYJOB_STATUS_CHECK_TIMEOUT_SECONDS of the operator raises it: "
            "cluster/README.md, section 1). Submit again: the run resumes from its last checkpoint"
        )
    elif reached == "SUCCEEDED":
        echo("aae-dist: finished")
    elif reached != "STOPPED":
        echo(f"aae-dist: the job {_failure(status)}")
    if status.get("jobDeploymentStatus") == "ValidationFailed":
        return 2
    found = _EXIT_CODE.search(status.get("message", ""))
    driver = int(found[1]) if found else log.driver
    return exit_code(reached, driver if reached == "FAILED" else None, log.saved)


def _status(job: Object) -> Any:
    return job.get("status", {})


def _labels(pod: Object) -> Any:
    return pod["metadata"].get("labels", {})


def _name(pod: Object) -> str:
    return str(pod["metadata"]["name"])
