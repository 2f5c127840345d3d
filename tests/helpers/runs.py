"""Start real runs of the command line, kill them, and compare what they leave."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from safetensors.torch import load

import aae_dist
from aae_dist.storage import open_storage

VALIDATION = (
    f"data.validation={Path(aae_dist.__file__).parent}/data/builtin/digits/validation/000.tar.gz"
)
"""Half of the digits' 2,000: an evaluation takes half the time."""
TINY = (
    "data.train=builtin://digits/train",
    VALIDATION,
    "model={latent_dim: 2, encoder_widths: [48], decoder_widths: [48], discriminator_widths: [48]}",
    "train.global_batch_size=48",
    "train.log_every_steps=10",
    "wandb.mode=disabled",
)
"""Overrides of a run whose steps take milliseconds."""


def command(*items: str, ranks: int = 1) -> list[str]:
    """Return the command of a local run: this Python, under torchrun for several ranks."""
    train = ["-m", "aae_dist", "train", *TINY, *items, "launch.kind=local"]
    if ranks == 1:
        return [sys.executable, *train]
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    return [sys.executable, *torchrun, "-m", "aae_dist", *train[2:]]


def start(arguments: list[str], log: Path, **more: str) -> subprocess.Popen[bytes]:
    """Start a command in a session of its own, so that all its processes can be killed at once."""
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", **more}
    with log.open("ab") as out:
        return subprocess.Popen(
            arguments, stdout=out, stderr=subprocess.STDOUT, start_new_session=True, env=environment
        )


def run(arguments: list[str], log: Path, timeout: float = 150) -> int:
    process = start(arguments, log)
    try:
        return process.wait(timeout)
    except subprocess.TimeoutExpired:
        kill_all(process)
        raise AssertionError(f"no end after {timeout} s:\n{log.read_text()[-3000:]}") from None


def kill_all(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL every process that `process` started, torchrun's workers included."""
    pids = [process.pid, *descendants(process.pid)]
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()


def descendants(pid: int) -> list[int]:
    # By parent, not by session: torchrun starts each worker in a session of its own.
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, ValueError):
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found, open_pids = [], [pid]
    while open_pids:
        below = children.get(open_pids.pop(), [])
        found += below
        open_pids += below
    return found


def wait_for_checkpoint(
    uri: str, process: subprocess.Popen[bytes], log: Path, seconds: float = 120
) -> None:
    """Return when the run has committed its first checkpoint."""
    storage, until = open_storage(uri), time.monotonic() + seconds
    while time.monotonic() < until:
        if any(e.key.endswith("MANIFEST.json") for e in storage.list("checkpoints")):
            return
        assert process.poll() is None, f"ended too early:\n{log.read_text()[-3000:]}"
        time.sleep(0.05)
    raise AssertionError(f"no checkpoint:\n{log.read_text()[-3000:]}")


def final_tensors(uri: str, step: int) -> dict[str, Any]:
    """Return every tensor and the state of a run's checkpoint."""
    storage, folder = open_storage(uri), f"checkpoints/step-{step:09d}"
    found: dict[str, Any] = {"state": json.loads(storage.read(f"{folder}/state.json"))}
    for entry in storage.list(folder):
        if entry.key.endswith(".safetensors"):
            name = entry.key.rpartition("/")[2]
            found |= {f"{name}/{k}": v for k, v in load(storage.read(entry.key)).items()}
    return found


def metrics(uri: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in open_storage(uri).read("metrics.jsonl").splitlines()]
