"""`aae-dist submit --follow/--stop --cluster`, on recorded answers of a cluster."""

import json

import pytest
from helpers.manifests import ROOT

from aae_dist.cli import main
from aae_dist.launch.submit import follow as job_follower, kubernetes
from aae_dist.launch.submit.follow import JobLog, report_end, waiting_for

pytestmark = pytest.mark.run  # kubectl is another program here, too

ITEMS = [str(ROOT / "configs/quickstart.yaml"), "run.storage=gs://bucket/runs"]
WHERE = ["--cluster", str(ROOT / "cluster/overlays/gke"), *ITEMS]
NAME = kubernetes.legal_name("quickstart", "gs://bucket/runs")
SUBMITTED = "Job 'j-1' submitted successfully\n"
NO_ROOM = "0/3 nodes are available: 3 Insufficient cpu."
TRACEBACK = """\
Traceback (most recent call last):
  File "/opt/aae-dist/bin/ray", line 8, in <module>
RuntimeError: WebSocket connection closed unexpectedly with close code 1006
"""


def pod(name, phase="Running", group=None, **status):
    ready = {"type": "Ready", "status": "True" if phase == "Running" else "False"}
    labels = {"batch.kubernetes.io/job-name": NAME}
    if group:
        labels = {"ray.io/cluster": name[:2], "ray.io/group": group}
        labels["ray.io/node-type"] = "head" if group == "headgroup" else "worker"
    metadata = {"name": name, "labels": labels, "creationTimestamp": name[-1]}
    return {"metadata": metadata, "status": {"phase": phase, "conditions": [ready], **status}}


def pending(name, why=NO_ROOM, group="headgroup"):
    conditions = [{"type": "PodScheduled", "status": "False", "message": why}]
    return pod(name, "Pending", group, conditions=conditions)


def frame(state="Running", cluster="c1", job="RUNNING", pods=(), logs=None, cut=(), **status):
    status |= {"jobDeploymentStatus": state, "rayClusterName": cluster, "jobStatus": job}
    return {
        "job": {
            "metadata": {"name": NAME, "uid": "u-1"},
            "spec": {"backoffLimit": 3},
            "status": {"jobId": "j-1", "failed": 0, **status},
        },
        "pods": list(pods),
        "logs": logs or {},
        "cut": list(cut),
    }


@pytest.fixture
def play(kubectl, monkeypatch):
    """Return a function that follows a story and returns (exit code, lines)."""
    monkeypatch.setattr(job_follower, "POLL_SECONDS", 0.1)

    def follow(frames, capsys, *options):
        logs = {}
        for found in frames:  # a log stays until its pod goes
            found["logs"] = logs = {**logs, **found["logs"]}
        (kubectl / "frames").write_text(json.dumps(frames))
        code = main(["submit", *(options or ["--follow"]), *WHERE])
        return code, capsys.readouterr().out.splitlines()

    return follow


def steps(first, last, more=""):
    return SUBMITTED + "".join(f"step {n}\n" for n in range(first, last + 1)) + more


def shown(lines):
    return [int(line.split()[1]) for line in lines if line.startswith("step ")]


def told(lines):
    return [line.removeprefix("aae-dist: ") for line in lines if line.startswith("aae-dist: ")]


def test_pods_that_wait_are_told_once_with_the_reason(play, capsys):
    spot = pending("c1-w1", group="spot"), pending("c1-w2", group="spot")
    pulling = {"state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}}
    head = pod("c1-head1", group="headgroup")
    code, lines = play(
        [
            frame("", ""),
            frame("Initializing"),
            *[frame("Initializing", pods=[pending("c1-head1")])] * 3,
            frame("Initializing", pods=[pending("c1-head1"), *spot]),
            frame("Initializing", pods=[
                pod("c1-head1", "Pending", "headgroup", containerStatuses=[pulling])
            ]),
            frame(pods=[head, pod("s1")], logs={"s1": steps(1, 2)}),
            frame("Complete", job="SUCCEEDED", pods=[head, pod("s1", "Succeeded")]),
        ],
        capsys,
    )  # fmt: skip
    assert (code, shown(lines)) == (0, [1, 2])
    assert told(lines) == [
        "waiting for the operator to make the Ray cluster",
        "Ray cluster c1",
        "waiting for the operator to make the Ray cluster",
        f"waiting for pods: head: {NO_ROOM}",
        f"waiting for pods: head: {NO_ROOM}; 2 spot: {NO_ROOM}",
        "waiting for pods: head: ImagePullBackOff: no such image",
        "the cluster is ready; the run is submitted to it",
        "finished",
    ]


def test_a_lost_head_is_told_and_the_run_followed_on_the_next_one(play, capsys):
    lost = {"jobStatusCheckFailureStartTime": "2026-11-29T20:00:00Z"}
    head, first = pod("c1-head1", group="headgroup"), pod("s1", "Failed")
    waits = "Waiting for Ray Dashboard GCS to become healthy at http://c1 ...\n" * 3
    code, lines = play(
        [
            frame(pods=[head, pod("s1")], logs={"s1": steps(1, 5)}),
            frame(
                pods=[first, pod("s2")], logs={"s1": steps(1, 5, TRACEBACK), "s2": waits}, **lost
            ),
            frame(pods=[pending("c1-head2"), first, pod("s2")], **lost),
            *[frame(pods=[head, first, pod("s2")], logs={"s2": waits + steps(4, 6)})] * 3,
            frame("Complete", job="SUCCEEDED", pods=[head, first, pod("s2", "Succeeded")]),
        ],
        capsys,
    )
    # The run repeats what came after its last checkpoint: steps 4 and 5 are new lines.
    assert (code, shown(lines)) == (0, [1, 2, 3, 4, 5, 4, 5, 6])
    assert not any("Traceback" in line or "Waiting for Ray" in line for line in lines)
    story = "\n".join(told(lines))
    assert "KubeRay replaces it in the same cluster" in story
    assert f"waiting for pods: head: {NO_ROOM}" in story
    assert "s1 lost the head: RuntimeError: WebSocket connection closed" in story
    assert "the head answers again" in story


def test_no_line_is_shown_twice_when_connections_break(play, capsys):
    again = steps(1, 7).removeprefix(SUBMITTED)
    first = pod("s1", "Failed")
    code, lines = play(
        [
            frame(pods=[pod("s1")], logs={"s1": steps(1, 2)}),
            # kubectl's own connection.
            *[frame(pods=[pod("s1")], logs={"s1": steps(1, 3)}, cut=["s1"])] * 2,
            frame(pods=[pod("s1")], logs={"s1": steps(1, 5)}),
            # The submitter's: the next pod finds the job submitted, and prints its log again.
            frame(pods=[first, pod("s2")], logs={"s1": steps(1, 5, TRACEBACK), "s2": again}),
            *[frame(pods=[first, pod("s2")])] * 3,
            frame("Complete", job="SUCCEEDED", pods=[first, pod("s2", "Succeeded")]),
        ],
        capsys,
    )
    assert (code, shown(lines)) == (0, [1, 2, 3, 4, 5, 6, 7])


def test_a_failed_job_is_followed_to_its_new_cluster(play, capsys):
    failed = {
        "failed": 1,
        "reason": "AppFailed",
        "message": "Job entrypoint command failed with exit code 1, last available logs",
    }
    code, lines = play(
        [
            frame(pods=[pod("s1")], logs={"s1": steps(1, 3)}),
            *[frame(pods=[pod("s1", "Succeeded")])] * 2,
            frame("Retrying", job="FAILED", **failed),
            frame("Initializing", "c2", "", pods=[pending("c2-head1")], failed=1),
            frame(cluster="c2", pods=[pod("s2")], logs={"s2": steps(3, 4)}, failed=1),
            frame("Complete", "c2", "SUCCEEDED", pods=[pod("s2", "Succeeded")], failed=1),
        ],
        capsys,
    )
    assert (code, shown(lines)) == (0, [1, 2, 3, 3, 4])
    assert "try 1 of 4 failed with exit code 1; KubeRay starts a new cluster" in told(lines)
    assert told(lines)[-3:-1] == [
        f"waiting for pods: head: {NO_ROOM}",
        "the cluster is ready; the run is submitted to it",
    ]


def test_a_job_that_failed_for_good_returns_the_exit_code_of_the_run_as_often_as_asked(
    play, capsys
):
    message = "Job entrypoint command failed with exit code 2, last available logs"
    end = frame("Failed", job="FAILED", reason="AppFailed", message=message, failed=4,
                pods=[pod("s1", "Succeeded")], logs={"s1": steps(1, 2)})  # fmt: skip
    found = play([end], capsys)
    assert (found[0], shown(found[1])) == (2, [1, 2])
    assert "the job failed with exit code 2" in told(found[1])
    assert play([end], capsys) == found


@pytest.mark.parametrize(
    ("state", "status", "line", "code", "words"),
    [
        ("Complete", {"job": "SUCCEEDED"}, "", 0, "finished"),
        # The operator's own message hides the code, which the log then tells.
        (
            "Failed", {"job": "FAILED", "message": "does not transition to Complete"},
            "Status message: Job entrypoint command failed with exit code 3, last logs:",
            3, "does not transition",
        ),
        ("Complete", {"job": "STOPPED"}, "stopped, with a checkpoint of that step", 4, ""),
        ("Complete", {"job": "STOPPED"}, "", 2, "before it logged a saved checkpoint"),
        (
            "Failed", {"reason": "JobStatusCheckTimeoutExceeded", "message": "exceeded"},
            "", 1, "RAYJOB_STATUS_CHECK_TIMEOUT_SECONDS",
        ),
        (
            "Failed", {"reason": "PreRunningDeadlineExceeded", "message": "an hour"},
            "", 1, "PreRunningDeadlineExceeded: an hour",
        ),
        (
            "ValidationFailed", {"job": "", "message": "The RayJob spec is invalid"},
            "", 2, "The RayJob spec is invalid",
        ),
    ],
)  # fmt: skip
def test_the_exit_code_is_that_of_the_run(capsys, state, status, line, code, words):
    log = JobLog()
    log.open("s1")
    log.take(line)
    assert report_end(frame(state, **status)["job"], log) == code
    assert words in capsys.readouterr().out


def test_a_submitter_that_waits_for_ever_does_not_keep_one_waiting(play, capsys, monkeypatch):
    monkeypatch.setattr(job_follower, "LAST_LOG_SECONDS", 0.3)
    end = frame("Failed", reason="JobStatusCheckTimeoutExceeded", pods=[pod("s2")])
    assert play([end], capsys)[0] == 1


def test_the_runs_own_traceback_is_shown(play, capsys):
    logs = {"s1": steps(1, 2, TRACEBACK)}
    _, lines = play([frame("Complete", pods=[pod("s1", "Succeeded")], logs=logs)], capsys)
    assert "\n".join(lines).count(TRACEBACK.strip()) == 1


def test_a_stop_is_passed_on_by_the_head_and_followed_to_the_checkpoint(kubectl, play, capsys):
    head, saved = pod("c1-head1", group="headgroup"), "stopped at step 3, with a checkpoint\n"
    code, lines = play(
        [
            frame(pods=[head, pod("s1")], logs={"s1": steps(1, 2)}),
            frame(pods=[head, pod("s1")]),
            frame("Complete", job="STOPPED", pods=[head, pod("s1", "Succeeded")],
                  logs={"s1": steps(1, 3, saved)}),
        ],
        capsys,
        "--stop",
    )  # fmt: skip
    command = "ray job stop --no-wait --address http://127.0.0.1:8265 j-1"
    assert (kubectl / "executed").read_text() == command
    assert (code, shown(lines)) == (4, [1, 2, 3])
    assert " exec c1-head1 -- ray job stop" in (kubectl / "calls").read_text()


def test_what_has_ended_is_not_stopped(kubectl, play, capsys):
    end = frame("Complete", job="SUCCEEDED", pods=[pod("s1", "Succeeded")])
    assert play([end], capsys, "--stop")[0] == 0
    assert not (kubectl / "executed").exists()


def test_without_a_head_there_is_nothing_to_save(play, capsys):
    assert play([frame("Initializing", pods=[pending("c1-head1")])], capsys, "--stop")[0] == 2


def test_a_job_that_is_not_there(kubectl, play, capsys):
    (kubectl / "frames").write_text(json.dumps([{"job": None, "pods": [], "logs": {}, "cut": []}]))
    for option in ("--follow", "--stop"):
        assert main(["submit", option, *WHERE]) == 2
        assert f"there is no rayjob/{NAME}" in capsys.readouterr().err


def test_ctrl_c_leaves_the_job_alone_unless_asked_to_stop_it(kubectl, play, capsys, monkeypatch):
    follow, calls = job_follower.follow, []

    def interrupted_once(api, name):
        calls.append(name)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return follow(api, name)

    monkeypatch.setattr(job_follower, "follow", interrupted_once)
    head = pod("c1-head1", group="headgroup")
    frames = [
        frame(pods=[head, pod("s1")]),
        frame("Complete", job="STOPPED", pods=[pod("s1", "Succeeded")],
              logs={"s1": "stopped, with a checkpoint\n"}),
    ]  # fmt: skip
    code, lines = play(frames, capsys)
    assert code == 130
    assert "the same command with --stop stops it" in lines[-1]
    assert not (kubectl / "executed").exists()
    calls.clear()
    assert play(frames, capsys, "--follow", "--stop-on-interrupt")[0] == 4
    assert (kubectl / "executed").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--follow", "--stop"], "give one of them"),
        (["--follow", "--dry-run"], "nothing to follow"),
        (["--stop-on-interrupt"], "goes with --follow"),
        (["--follow", "--no-wait"], "go with --address"),
    ],
)
def test_options_that_contradict_each_other(capsys, options, words):
    assert main(["submit", *options, *WHERE]) == 2
    assert words in capsys.readouterr().err


def test_lines_that_are_equal_are_kept_apart(capsys):
    log = JobLog()
    for name in ("s1", "s1", "s2"):
        log.open(name)
        for line in (SUBMITTED, "a", "a", "b", "a"):
            log.take(line.strip())
        if name == "s1":
            continue
        log.take("a")
    assert capsys.readouterr().out.split("\n").count("a") == 3 + 3 + 1


def test_pods_that_run_are_not_waited_for():
    assert waiting_for([pod("c1-head1", group="headgroup")]) == ""
    assert "Evicted" in waiting_for([pod("c1-w1", "Failed", "spot", reason="Evicted")])
