"""Rules of the Dockerfile. `tools/check_image.py` runs its steps for real, where root may."""

import fnmatch
import http.server
import re
import runpy
import shutil
import socket
import subprocess
import threading

import pytest
from helpers.dockerfile import lineage, parse
from helpers.manifests import ROOT, pod_specs, rendered

DOCKERFILE = ROOT / "Dockerfile"
STAGES = parse(DOCKERFILE)
IMAGES = ("cpu", "cuda")


def steps(image, instruction):
    return [rest for stage in lineage(STAGES, image) for rest in stage.all(instruction)]


@pytest.mark.skipif(not shutil.which("hadolint"), reason="hadolint is not installed")
def test_hadolint_finds_nothing():
    subprocess.run(["hadolint", "--config", ROOT / ".hadolint.yaml", DOCKERFILE], check=True)


def test_the_base_is_pinned_by_a_digest_that_must_be_given():
    assert STAGES["base"].parent == "${BASE}@${BASE_DIGEST}"
    assert "BASE_DIGEST" in STAGES[""].all("ARG"), "a default would go stale in silence"
    outside = {s.parent for s in STAGES.values()} - set(STAGES) - {"${BASE}@${BASE_DIGEST}"}
    assert not outside


def test_everything_from_an_index_is_checked_by_hash():
    installs = [r for s in STAGES.values() for r in s.all("RUN") if " install " in r]
    pip = [i for part in installs for i in part.split("&&") if re.search(r"\bpip install", i)]
    assert len(pip) == 3
    assert all("--require-hashes" in i or "--no-deps dist/*.whl" in i for i in pip)


@pytest.mark.parametrize("image", IMAGES)
def test_the_user_is_a_number_that_the_manifests_name(image):
    assert steps(image, "USER") == ["10001:10001"]
    assert STAGES[image].steps[-1] == ("USER", "10001:10001")
    for objects in rendered().values():
        for manifest in objects:
            if manifest["apiVersion"] == "ray.io/v1":
                users = {p["securityContext"]["runAsUser"] for p in pod_specs(manifest).values()}
                assert users == {10001}


@pytest.mark.parametrize("image", IMAGES)
def test_what_is_written_is_declared_and_is_a_volume_of_the_pods(image):
    volumes = re.findall(r'"([^"]+)"', " ".join(steps(image, "VOLUME")))
    assert volumes == ["/tmp", "/home/aae"]
    env = dict(re.findall(r"(\w+)=(\S+)", " ".join(steps(image, "ENV"))))
    caches = {"HOME", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "MPLCONFIGDIR"}
    assert caches <= set(env)
    assert all(env[name].startswith(tuple(volumes)) for name in caches)


def test_only_the_image_that_compiles_has_a_compiler():
    assert "g++" in " ".join(steps("cuda", "RUN"))
    assert "apt-get" not in " ".join(steps("cpu", "RUN"))
    for image in IMAGES:
        final = [s.name for s in lineage(STAGES, image)]
        assert "build" not in final, "the tools of the build stay behind"


@pytest.mark.parametrize("image", IMAGES)
def test_labels_a_health_check_and_ray_on_the_path(image):
    assert steps(image, "HEALTHCHECK")
    assert "org.opencontainers.image.licenses" in " ".join(steps(image, "LABEL"))
    assert "PATH=/opt/aae-dist/bin:$PATH" in " ".join(steps(image, "ENV"))
    assert any(step.endswith("/opt/aae-dist /opt/aae-dist") for step in STAGES[image].all("COPY"))


def test_the_build_context_holds_what_is_copied_and_nothing_else():
    rules = (ROOT / ".dockerignore").read_text().split("\n")
    kept = [rule[1:] for rule in rules if rule.startswith("!")]
    assert "*" in rules
    copied = [r for s in STAGES.values() for r in s.all("COPY") if not r.startswith("--from")]
    sources = {path for rest in copied for path in rest.split()[:-1]} - {"${LOCK}"}
    for source in sources | {"requirements/main.lock"}:
        assert (ROOT / source).exists()
        assert any(fnmatch.fnmatch(source, k) or source.startswith(f"{k}/") for k in kept), source
    assert not any(word in k for k in kept for word in (".git", ".env", "tests", "runs"))


class Handler(http.server.BaseHTTPRequestHandler):
    status = 200

    def do_GET(self):
        self.send_response(self.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format, *args):
        return None


@pytest.mark.parametrize(("status", "expected"), [(200, 0), (503, 1)])
def test_the_health_check_believes_the_node(status, expected):
    check = runpy.run_path(str(ROOT / "cluster/image/healthcheck.py"))["main"]
    handler = type("Answer", (Handler,), {"status": status})
    with http.server.HTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        assert check(f"http://127.0.0.1:{server.server_port}/api/healthz") == expected
        server.shutdown()


def test_the_health_check_is_content_where_no_node_runs():
    check = runpy.run_path(str(ROOT / "cluster/image/healthcheck.py"))["main"]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert check(f"http://127.0.0.1:{port}/") == 0
