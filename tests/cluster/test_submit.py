"""`aae-dist submit --cluster`: what is sent, what is refused. kubectl is a recording fake here."""

import json
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from helpers.manifests import (
    RENDERED,
    ROOT,
    operator_problems,
    pod_specs,
    read,
    schema_problems,
    security_problems,
)

from aae_dist.cli import main
from aae_dist.config import config_from_tree
from aae_dist.config.sweep_plan import load_sweep
from aae_dist.launch import manifest

FAKE = """#!{python}
# kubectl as a recorder: renders from the committed files, keeps what is applied.
import os, pathlib, sys
home, words = pathlib.Path({home!r}), sys.argv[1:]
with open(home / "calls", "a") as calls:
    print(*words, file=calls)
if words[0] == "kustomize":
    folder = pathlib.Path(words[1])
    text = (pathlib.Path({rendered!r}) / f"{{folder.parent.name}}-{{folder.name}}.yaml").read_text()
    if not (home / "unedited").exists():
        text = text.replace("REGION", "europe-west4").replace("PROJECT", "mine")
    print(text)
elif "get" in words:
    state = home / "state"
    print(state.read_text() if state.exists() else "", end="")
elif "apply" in words:
    (home / "applied").write_text(sys.stdin.read())
    print("rayjob created")
"""
GKE, KIND = str(ROOT / "cluster/overlays/gke"), str(ROOT / "cluster/overlays/kind-cpu")
QUICK = str(ROOT / "configs/quickstart.yaml")
BUCKET = "run.storage=gs://bucket/runs"


@pytest.fixture
def kubectl(tmp_path, monkeypatch):
    """Put the fake on the path; return its folder."""
    program = tmp_path / "bin/kubectl"
    program.parent.mkdir()
    text = FAKE.format(python=sys.executable, home=str(tmp_path), rendered=str(RENDERED))
    program.write_text(text)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


def test_a_dry_run_prints_what_kuberay_takes(kubectl, capsys):
    assert main(["submit", QUICK, BUCKET, "launch.workers=4", "--cluster", GKE, "--dry-run"]) == 0
    settings, job = read(capsys.readouterr().out)
    name = job["metadata"]["name"]
    assert re.fullmatch(r"aae-quickstart-[0-9a-f]{6}", name)
    assert settings["metadata"]["name"] == name
    assert schema_problems(job) == schema_problems(settings) == list(operator_problems(job)) == []
    for pod in pod_specs(job).values():
        assert not list(security_problems(pod))
    volumes = {v["name"]: v for v in pod_specs(job)["head"]["volumes"]}
    assert volumes["config"]["configMap"] == {"name": name}
    config = config_from_tree(yaml.safe_load(settings["data"]["config.yaml"]))
    assert (config.run.storage, config.launch.workers) == ("gs://bucket/runs", 4)
    assert "apply" not in (kubectl / "calls").read_text()


def test_it_applies_and_says_how_to_watch(kubectl, capsys):
    assert main(["submit", QUICK, BUCKET, "--cluster", GKE, "--context", "there"]) == 0
    [settings, job] = read((kubectl / "applied").read_text())
    out = capsys.readouterr().out
    assert (
        f"kubectl --context there --namespace aae-dist logs --follow job/{job['metadata']['name']}"
        in out
    )
    assert "gs://bucket/runs/quickstart" in out
    assert settings["metadata"]["namespace"] == "aae-dist"


@pytest.mark.parametrize(
    ("state", "code"),
    [("Running", 2), ("Complete", 0), ("Failed", 0), ("ValidationFailed", 0), ("", 2)],
)
def test_a_run_has_one_job_and_an_ended_one_makes_room(kubectl, capsys, state, code):
    (kubectl / "state").write_text(json.dumps({"status": {"jobDeploymentStatus": state}}))
    assert main(["submit", QUICK, BUCKET, "--cluster", GKE]) == code
    calls = (kubectl / "calls").read_text()
    assert ("delete rayjob" in calls) == ("apply" in calls) == (code == 0)
    if code:
        assert "already works on this" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("items", "words"),
    [
        ([], r"run\.storage: no pod sees the folder .*; use s3://"),
        ([BUCKET, "data.train=/data/x"], r"data\.train: no pod sees the folder /data/x"),
        ([BUCKET, "launch.kind=local"], r"launch\.kind=local trains on one machine"),
        ([BUCKET, "launch.workers=17"], r"can never start: .*room for 16"),
        ([BUCKET, "launch.cpus_per_worker=13"], r"can never start"),
        ([BUCKET, "train.setps=3"], r"unknown key.*train\.steps"),
    ],
)
def test_what_cannot_run_there_is_refused_here(kubectl, capsys, items, words):
    assert main(["submit", QUICK, *items, "--cluster", GKE]) == 2
    assert re.search(words, capsys.readouterr().err)
    calls = kubectl / "calls"
    assert not calls.exists() or "apply" not in calls.read_text()


def test_an_overlay_that_nobody_edited_is_refused(kubectl, capsys):
    (kubectl / "unedited").touch()
    assert main(["submit", QUICK, BUCKET, "--cluster", GKE, "--dry-run"]) == 2
    assert re.search(
        r"image: REGION\S+ is a name to be filled in; edit site", capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("image", "is_possible"),
    [
        ("REGION-docker.pkg.dev/p/a:1", False),
        ("e.pkg.dev/PROJECT/a:1", False),
        ("REGISTRY/a", False),
        ("Harbor.Example.com/ml/aae:1", True),
        ("localhost:5000/aae-dist:0.1.0-CUDA", True),
        ("aae-dist:TAG", True),
        ("e.pkg.dev/p/a@sha256:ABC", True),
    ],
)
def test_images_that_nobody_filled_in(image, is_possible):
    pod = {"template": {"spec": {"containers": [{"image": image}]}}}
    job = {"spec": {"rayClusterSpec": {"headGroupSpec": pod, "workerGroupSpecs": []}}}
    assert manifest.unedited_images(job) == ([] if is_possible else [image])


def test_a_ray_cluster_is_told_no_nonsense_either(capsys):
    there = ["submit", QUICK, BUCKET, "--dry-run", "--address"]
    assert main([*there, "localhost:8265"]) == 2
    assert "http://HOST:8265" in capsys.readouterr().err
    assert main([*there, "http://head:8265", "launch.kind=local"]) == 2
    assert "launch.kind=local trains on one machine" in capsys.readouterr().err
    assert main([*there, "http://head:8265", "--env", "A=secret"]) == 0
    out = capsys.readouterr().out
    assert "aae-dist train" in out
    assert "variable A" in out
    assert "secret" not in out


def test_a_secret_is_not_put_into_a_config_map(kubectl, capsys):
    signed = "data.train=https://host/x.tar?X-Amz-Signature=0123456789abcdef"
    assert main(["submit", QUICK, BUCKET, signed, "--cluster", GKE, "--dry-run"]) == 2
    out, err = capsys.readouterr()
    assert "holds a secret" in err
    assert "0123456789abcdef" not in out + err


def test_a_shared_mount_will_do(kubectl, capsys):
    assert main(["submit", QUICK, "run.storage=/runs", "--cluster", KIND, "--dry-run"]) == 0


def test_a_sweep_is_sent_with_its_verb_and_means_the_same_there(kubectl, capsys, tmp_path):
    quick = str(ROOT / "configs/sweep/quick.yaml")
    assert main(["submit", quick, BUCKET, "--cluster", GKE, "--dry-run"]) == 0
    settings, job = read(capsys.readouterr().out)
    assert job["spec"]["entrypoint"] == "aae-dist tune /etc/aae-dist/config.yaml"
    assert job["metadata"]["name"].startswith("aae-quick-")
    sent = tmp_path / "sent.yaml"
    sent.write_text(settings["data"]["config.yaml"])
    here, there = (load_sweep([Path(f)], more) for f, more in ((quick, [BUCKET]), (sent, [])))
    assert there.uri == here.uri == "gs://bucket/runs/quick"
    assert [(t.id, t.config) for t in there.trials] == [(t.id, t.config) for t in here.trials]


def test_a_doctor_job_trains_nothing_and_is_not_tried_again(kubectl, capsys):
    assert main(["submit", QUICK, BUCKET, "--cluster", GKE, "--doctor", "--dry-run"]) == 0
    _, job = read(capsys.readouterr().out)
    assert job["spec"]["entrypoint"] == "aae-dist doctor /etc/aae-dist/config.yaml"
    assert job["spec"]["backoffLimit"] == 0
    assert [g["replicas"] for g in job["spec"]["rayClusterSpec"]["workerGroupSpecs"]] == [1, 1]
    assert "-doctor-" in job["metadata"]["name"]
    assert schema_problems(job) == list(operator_problems(job)) == []


def test_an_overlay_that_is_none(kubectl, capsys, tmp_path):
    assert main(["submit", QUICK, BUCKET, "--cluster", str(tmp_path)]) == 2
    assert "no kustomization.yaml there" in capsys.readouterr().err


def test_without_kubectl_it_says_what_to_do(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["submit", QUICK, BUCKET, "--cluster", GKE]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "kubectl is not on the path" in line
    assert "--address" in line


@pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl is not installed")
def test_what_it_prints_kubectl_can_read(tmp_path, capsys):
    assert main(["submit", QUICK, "run.storage=/runs", "--cluster", KIND, "--dry-run"]) == 0
    (tmp_path / "all.yaml").write_text(capsys.readouterr().out)
    (tmp_path / "kustomization.yaml").write_text("resources: [all.yaml]\n")
    done = subprocess.run(["kubectl", "kustomize", tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {o["kind"] for o in read(done.stdout)} == {"ConfigMap", "RayJob"}


@pytest.mark.parametrize(
    "name",
    ["a", "Faces.Z32", "x" * 120, "9-lives", "___", "über".encode("ascii", "ignore").decode()],
)
def test_names_are_legal_and_tell_runs_apart(name):
    found = manifest.job_name(name, "s3://b/runs")
    assert len(found) <= 47
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", found)
    assert found == manifest.job_name(name, "s3://b/runs")
    assert found != manifest.job_name(name, "s3://other/runs")
    assert found != manifest.job_name(name + "-", "s3://b/runs")


@pytest.mark.parametrize(
    ("text", "value"), [("500m", 0.5), ("4", 4), ("16Gi", 2**34), (2, 2), ("1.5", 1.5)]
)
def test_quantities(text, value):
    assert manifest.quantity(text) == value
