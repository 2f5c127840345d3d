"""Run every step of the Dockerfile in a clean Debian, where no Docker engine is at hand.

As root, with debootstrap, a network and 12 GB of disk (10 to 20 minutes on two cores):

python tools/check_image.py FOLDER [cpu|cuda ...]

Debian bookworm with its own Python 3.11 stands in for python:3.11-slim-bookworm. Each stage is an
overlay over the one it is built from. At the end each image is tried as Kubernetes runs it: user
10001, no capability, a root file system that cannot be written, and `ray start` as KubeRay writes
it, with a token; its health must be told to a probe without one.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from helpers.dockerfile import Stage, parse  # noqa: E402

PASSED_ON = (
    "PIP_CERT",
    "PIP_DEFAULT_TIMEOUT",
    "SSL_CERT_FILE",
    "UV_DEFAULT_INDEX",
    "PIP_INDEX_URL",
)
TRIAL = """
set -eo pipefail
trap 'echo FAILED at line $LINENO; tail -20 /tmp/ray.log' ERR
whoami
! touch /written 2>/dev/null
aae-dist --version
python3 -c 'import torch, torchvision, ray, webdataset, wandb; print(torch.__version__)'
python3 /usr/local/lib/aae-dist/healthcheck.py
aae-dist train run.name=x run.storage=/tmp/runs data.train=builtin://digits/train \
  model.latent_dim=2 \
  train.steps=20 train.global_batch_size=32 launch.kind=local wandb.mode=disabled | tail -2
ulimit -n 65536 || true; ray start --head --block --num-cpus=0 --dashboard-host=127.0.0.1 \
  --metrics-export-port=8080 --dashboard-agent-listen-port=52365 --node-ip-address=127.0.0.1 \
  --object-store-memory=100000000 --disable-usage-stats > /tmp/ray.log 2>&1 &
node=$!
for i in $(seq 90); do sleep 2; python3 - <<'P' && break
import sys, urllib.request as u
try:
    sys.exit(u.urlopen("http://127.0.0.1:52365/api/healthz", timeout=5).status != 200)
except OSError:
    sys.exit(1)
P
done
python3 /usr/local/lib/aae-dist/healthcheck.py
ray health-check --address 127.0.0.1:6379
kill $node; wait $node || true
echo TRIAL PASSED
"""


class Builder:
    """Builds stages below one folder."""

    def __init__(self, folder: Path, stages: dict[str, Stage]) -> None:
        """Make the base file system, unless it is there from an earlier run."""
        self.folder, self.stages = folder, stages
        self.args = {"BASE": "debian", "BASE_DIGEST": "sha256:0", "LOCK": "requirements/main.lock"}
        self.env: dict[str, dict[str, str]] = {}
        self.layers: dict[str, list[Path]] = {}
        self.base = folder / "debian"
        if not (self.base / "usr/bin/python3").exists():
            packages = "--include=python3,python3-venv,python3-dev,ca-certificates"
            run("debootstrap", "--variant=minbase", packages, "bookworm", str(self.base))
        shutil.copy("/etc/resolv.conf", self.base / "etc/resolv.conf")
        shutil.copy("/etc/ssl/certs/ca-certificates.crt", self.base / "etc/ssl/certs/")

    def build(self, name: str) -> Path:
        """Build a stage and those it needs; return its mounted root."""
        merged = self.folder / name / "root"
        if name in self.layers:
            return merged
        stage = self.stages[name]
        parent = stage.parent
        if parent in self.stages:
            self.build(parent)
        lower = self.layers.get(parent, [self.base])
        self.env[name] = dict(self.env.get(parent, {"PATH": "/usr/local/bin:/usr/bin:/bin:/sbin"}))
        upper, work = self.folder / name / "upper", self.folder / name / "work"
        for path in (merged, upper, work):
            path.mkdir(parents=True, exist_ok=True)
        options = f"lowerdir={':'.join(map(str, lower))},upperdir={upper},workdir={work}"
        run("mount", "-t", "overlay", "overlay", "-o", options, str(merged))
        self.layers[name] = [upper, *lower]
        directory = "/"
        for instruction, rest in stage.steps:
            print(f"[{name}] {instruction} {rest[:100]}", flush=True)
            if instruction == "WORKDIR":
                directory = rest
                (merged / rest.lstrip("/")).mkdir(parents=True, exist_ok=True)
            elif instruction == "ENV":
                for key, value in re.findall(r"(\w+)=(\S+)", rest):
                    self.env[name][key] = value.replace("$PATH", self.env[name]["PATH"])
            elif instruction == "ARG":
                key, _, default = rest.partition("=")
                self.args.setdefault(key, default.strip('"'))
            elif instruction == "COPY":
                self.copy(merged, directory, rest)
            elif instruction == "RUN":
                self.chroot(name, directory, rest)
        return merged

    def copy(self, root: Path, directory: str, rest: str) -> None:
        """Copy files of the context, or a folder of another stage."""
        *sources, target = rest.replace("${LOCK}", self.args["LOCK"]).split()
        context = ROOT
        if sources[0].startswith("--from="):
            context = self.build(sources.pop(0)[7:])
        into = root / os.path.join(directory, target).lstrip("/")
        for source in sources:
            path = context / source.lstrip("/")
            place = into / path.name if target.endswith("/") else into
            place.parent.mkdir(parents=True, exist_ok=True)
            run("cp", "-a", "--no-preserve=ownership", *(["-T"] if path.is_dir() else []),
                str(path), str(place))  # fmt: skip

    def chroot(self, name: str, directory: str, command: str) -> None:
        """Run a step as root."""
        passed = {key: os.environ[key] for key in PASSED_ON if key in os.environ}
        env = {**passed, **self.args, **self.env[name]}
        script = f"cd {shlex.quote(directory)} && {command}"
        root = self.folder / name / "root"
        private = f"mount -t proc proc {root}/proc && mount --bind /dev {root}/dev && "
        inner = f"exec chroot {root} /bin/sh -c {shlex.quote(script)}"
        run("unshare", "-m", "sh", "-c", private + inner, env=env)

    def trial(self, name: str) -> None:
        """Try an image as a restricted pod would run it."""
        root = self.folder / name / "root"
        mounts = [
            "ip link set lo up",  # a network of its own: fixed ports, as in a pod
            f"mount --bind {root} {root}",
            f"mount -o remount,ro,bind {root}",
            f"mount -t proc proc {root}/proc",
            f"mount --rbind /dev {root}/dev",
            f"mount -t tmpfs -o size=2g,mode=1777 tmp {root}/tmp",
            f"mount -t tmpfs -o size=1g,uid=10001,gid=10001 home {root}/home/aae",
            f"mount -t tmpfs -o size=1g,mode=1777 shm {root}/dev/shm",
        ]
        drop = "--bounding-set=-all --inh-caps=-all --no-new-privs --reuid=10001 --regid=10001"
        inner = f"setpriv {drop} --clear-groups /bin/bash -c -- {shlex.quote(TRIAL)}"
        mounts.append(f"exec chroot {root} /bin/sh -c {shlex.quote('cd /home/aae && ' + inner)}")
        env = {**self.env[name], "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": os.urandom(16).hex()}
        env |= {"USER": "aae", "OMP_NUM_THREADS": "1"}
        own = ("--mount", "--pid", "--net", "--fork", "--kill-child")
        run("unshare", *own, "sh", "-c", " && ".join(mounts), env=env)

    def close(self) -> None:
        """Unmount."""
        for name in reversed(self.layers):
            subprocess.run(["umount", str(self.folder / name / "root")], check=False)


def run(*command: str, env: dict[str, str] | None = None) -> None:
    """Run a command to its end; its output is ours."""
    environment = None if env is None else {"PATH": os.environ["PATH"], **env}
    subprocess.run(command, check=True, env=environment)


def main(folder: str, *images: str) -> None:
    """Build and try the images."""
    started = time.monotonic()
    builder = Builder(Path(folder), parse(ROOT / "Dockerfile"))
    try:
        for image in images or ("cpu", "cuda"):
            root = builder.build(image)
            builder.trial(image)
            size = subprocess.run(["du", "-sm", root / "opt"], capture_output=True, text=True)
            print(f"{image}: passed; /opt holds {size.stdout.split()[0]} MB", flush=True)
    finally:
        builder.close()
    print(f"{time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main(*sys.argv[1:])
