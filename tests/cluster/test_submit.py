"""`aae-dist submit --cluster`: what is sent, what is refused. kubectl is a recording fake here."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from helpers.manifests import (
    ROOT,
    operator_problems,
    pod_specs,
    read,
    schema_problems,
    security_problems,
)

from aae_dist.cli import main
from aae_dist.config import config_from_tree
from aae_dist.launch.submit import kubernetes
from aae_dist.sweeps.plan import load_sweep

GKE, KIND = str(ROOT / "cluster/overlays/gke"), str(ROOT / "cluster/overlays/kind-cpu")
QUICK = str(ROOT / "configs/quickstart.yaml")
BUCKET = "run.storage=gs://bucket/runs"


def test_a_dry_run_prints_what_kuberay_takes(kubectl, capsys):
    assert main(["submit", QUICK, BUCKET, "launch.workers=4", "--cluster", GKE, "--dry-run"]) == 0
    settings, job = read(capsys.readouterr().out)
    name = job["metadata"]["name"]
    assert re.fullmatch(r"aae-quickstart-[0-9a-f]{6}", name)
    assert re.fullmatch(f"{name}-[0-9a-f]{{6}}", settings["metadata"]["name"])
    assert schema_problems(job) == schema_problems(settings) == list(operator_problems(job)) == []
    for pod in pod_specs(job).values():
        assert not list(security_problems(pod))
    volumes = {v["name"]: v for v in pod_specs(job)["head"]["volumes"]}
    assert volumes["config"]["configMap"] == {"name": settings["metadata"]["name"]}
    config = config_from_tree(yaml.safe_load(settings["data"]["config.yaml"]))
    assert (config.run.storage, config.launch.workers) == ("gs://bucket/runs", 4)
    assert "create" not in (kubectl / "calls").read_text()


def test_it_creates_a_job_that_owns_its_configuration_and_says_how_to_watch(kubectl, capsys):
    assert main(["submit", QUICK, BUCKET, "--cluster", GKE, "--context", "there"]) == 0
    settings, job = read((kubectl / "created").read_text())
    out = capsys.readouterr().out
    assert f"aae-dist submit --follow --cluster {GKE} --context there {QUICK} {BUCKET}" in out
    assert f"aae-dist submit --stop --cluster {GKE} --context there {QUICK} {BUCKET}" in out
    assert "gs://bucket/runs/quickstart" in out
    assert settings["metadata"]["namespace"] == "aae-dist"
    name = settings["metadata"]["name"]
    volumes = {v["name"]: v for v in pod_specs(job)["head"]["volumes"]}
    assert volumes["config"]["configMap"] == {"name": name}
    assert f"patch configmap {name}" in (kubectl / "calls").read_text()
    [owner] = json.loads((kubectl / "patch").read_text())["metadata"]["ownerReferences"]
    assert (owner["apiVersion"], owner["kind"]) == ("ray.io/v1", "RayJob")
    assert (owner["name"], owner["uid"]) == (job["metadata"]["name"], "u-1")


@pytest.mark.parametrize(
    ("state", "code"),
    [("Running", 2), ("Complete", 0), ("Failed", 0), ("ValidationFailed", 0), ("", 2)],
)
def test_a_run_has_one_job_and_an_ended_one_makes_room(kubectl, capsys, state, code):
    job = {
        "metadata": {"name": "x", "uid": "u-0"},
        "status": {"jobDeploymentStatus": state},
    }
    (kubectl / "existing").write_text(json.dumps(job))
    assert main(["submit", QUICK, BUCKET, "--cluster", GKE]) == code
    assert (kubectl / "created").exists() == (code == 0)
    if code:
        assert not (kubectl / "deletion").exists()
        assert "already works on this" in capsys.readouterr().err
    else:
        # That job and no other: one that somebody else has submitted meanwhile stays.
        asked = json.loads((kubectl / "deletion").read_text())
        assert asked["preconditions"] == {"uid": "u-0"}
        assert "/apis/ray.io/v1/namespaces/aae-dist/rayjobs/x" in (kubectl / "calls").read_text()


def test_of_two_submissions_at_the_same_moment_one_wins_and_the_other_leaves_nothing(
    kubectl, capsys
):
    refusal = 'Error from server (AlreadyExists): error when creating "STDIN": rayjobs.ray.io "x" '
    (kubectl / "refuse-RayJob").write_text(refusal + "already exists")
    assert main(["submit", QUICK, BUCKET, "--cluster", GKE]) == 2
    assert "another submission was first" in capsys.readouterr().err
    [settings] = read((kubectl / "created").read_text())
    removal = f"delete configmap {settings['metadata']['name']}"
    assert removal in (kubectl / "calls").read_text()


def test_a_job_that_another_submission_has_replaced_is_not_removed(kubectl, capsys):
    job = {"metadata": {"name": "x", "uid": "u-0"}, "status": {"jobDeploymentStatus": "Complete"}}
    (kubectl / "existing").write_text(json.dumps(job))
    refusal = "Error from server (Conflict): Precondition failed: UID in precondition: u-0, UID in "
    (kubectl / "refuse-delete").write_text(refusal + "object meta: u-1")
    assert main(["submit", QUICK, BUCKET, "--cluster", GKE]) == 2
    assert "another submission was first" in capsys.readouterr().err
    assert not (kubectl / "created").exists()


def test_a_configuration_that_is_refused_starts_no_job(kubectl, capsys):
    (kubectl / "refuse-ConfigMap").write_text("Error from server (Forbidden): exceeded quota")
    assert main(["submit", QUICK, BUCKET, "--cluster", GKE]) == 2
    assert "exceeded quota" in capsys.readouterr().err
    assert not (kubectl / "created").exists()


@pytest.mark.parametrize(
    ("refusal", "words"),
    [
        (
            'error: the server doesn\'t have a resource type "rayjob"',
            "installs its operator, once per cluster (cluster/README.md, section 1",
        ),
        (
            'error: resource mapping not found for name: "x" namespace: "n" from "STDIN": no '
            'matches for kind "RayJob" in version "ray.io/v1"\nensure CRDs are installed first',
            "installs its operator, once per cluster (cluster/README.md, section 1",
        ),
        (
            'Error from server (NotFound): error when creating "STDIN": namespaces "other" not '
            "found",
            f"kubectl apply -k {GKE} (cluster/README.md, section 3",
        ),
    ],
)
def test_a_step_of_the_readme_that_was_left_out_is_named(kubectl, capsys, refusal, words):
    (kubectl / "refusal").write_text(refusal)
    assert main(["submit", QUICK, BUCKET, "--cluster", GKE]) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert words in line


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
    assert not calls.exists() or "create" not in calls.read_text()


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
    assert kubernetes.unedited_images(job) == ([] if is_possible else [image])


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
    assert job["spec"]["entrypoint"] == "exec aae-dist tune /etc/aae-dist/config.yaml"
    assert job["metadata"]["name"].startswith("aae-quick-")
    sent = tmp_path / "sent.yaml"
    sent.write_text(settings["data"]["config.yaml"])
    here, there = (load_sweep([Path(f)], more) for f, more in ((quick, [BUCKET]), (sent, [])))
    assert there.uri == here.uri == "gs://bucket/runs/quick"
    assert [(t.id, t.config) for t in there.trials] == [(t.id, t.config) for t in here.trials]


def test_a_doctor_job_trains_nothing_and_is_not_tried_again(kubectl, capsys):
    assert main(["submit", QUICK, BUCKET, "--cluster", GKE, "--doctor", "--dry-run"]) == 0
    _, job = read(capsys.readouterr().out)
    assert job["spec"]["entrypoint"] == "exec aae-dist doctor /etc/aae-dist/config.yaml"
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
    found = kubernetes.legal_name(name, "s3://b/runs")
    assert len(found) <= 47
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", found)
    assert found == kubernetes.legal_name(name, "s3://b/runs")
    assert found != kubernetes.legal_name(name, "s3://other/runs")
    assert found != kubernetes.legal_name(name + "-", "s3://b/runs")


@pytest.mark.parametrize(
    ("text", "value"), [("500m", 0.5), ("4", 4), ("16Gi", 2**34), (2, 2), ("1.5", 1.5)]
)
def test_quantities(text, value):
    assert kubernetes.quantity(text) == value
