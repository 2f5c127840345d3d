"""Checks of this machine, and probes of storage, web servers and the network."""

import os
import secrets
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from aae_dist.config import RunConfig
from aae_dist.doctor import rules
from aae_dist.doctor.rules import Finding, bad, collect_facts, good
from aae_dist.errors import LaunchError
from aae_dist.storage import Storage, open_storage
from aae_dist.tracking.wandb_sink import DEFAULT_SERVER, decide_mode

SIZES = tuple(2**k for k in (10, 13, 16, 18, 20, 22, 24, 26))
"""Bytes of the all-reduces: 1 KB to 64 MB."""
WEB_SECONDS = 10.0
FOLDER = ".doctor"
NO_WANDB = good("wandb", "not used: no key here, offline or disabled")


def check_machine(config: RunConfig | None) -> Iterator[Finding]:
    """Yield the findings about this machine; those of storage and W&B need a configuration."""
    machine = collect_facts()
    needs_gpu = config is not None and config.train.device == "cuda"
    yield from rules.same_versions([machine])
    yield from rules.gpus([machine], float(needs_gpu))
    yield from rules.shared_memory([machine])
    yield from rules.disk([machine])
    if config is None:
        return
    if failure := storage(config.run.storage, machine.host):
        yield bad("storage", failure, "name a folder or bucket that you may write")
    else:
        hosts_seen(config.run.storage)
        yield good("storage", f"{config.run.storage}: written, read, listed, written conditionally")
    url = wandb_server(config)
    yield from wandb(url) if url else [NO_WANDB]


def storage(uri: str, host: str) -> str:
    """Use the folder `uri` as a run does; return '' when all went well, else what failed."""
    try:
        return _use(open_storage(uri).child(FOLDER), host)
    except (LaunchError, OSError) as error:
        return str(error)


def _use(folder: Storage, host: str) -> str:
    folder.check_writable()
    # Two nodes of one host may probe at the same moment.
    key = f"{host}-{secrets.token_hex(4)}-probe"
    folder.delete(key)
    if not folder.create(key, b"one"):
        return "a file that was deleted is still there"
    if folder.create(key, b"two"):
        return "no conditional writes: a second writer of the same file was not refused"
    if folder.read(key) != b"one":
        return "reads something other than what was written"
    if folder.replace(key, b"two", expected=b"other"):
        return "no conditional writes: a file was replaced though it had changed"
    if not folder.replace(key, b"two", expected=b"one"):
        return "a conditional write of an unchanged file was refused"
    if key not in {entry.key for entry in folder.list()}:
        return "a file that was written is not listed"
    folder.delete(key)
    folder.write(f"{host}-here", b"")
    return ""


def hosts_seen(uri: str) -> set[str]:
    """Return the hosts whose `storage` probe this machine sees, and remove what it sees."""
    folder = open_storage(uri).child(FOLDER)
    keys = [entry.key for entry in folder.list()]
    for key in keys:
        folder.delete(key)
    return {key.removesuffix("-here") for key in keys if key.endswith("-here")}


def wandb_server(config: RunConfig) -> str | None:
    """Return the address of the W&B server that this process would use, None without one."""
    installed = find_spec("wandb") is not None
    mode, _ = decide_mode(config.wandb.mode, os.environ, installed, Path.home())
    if mode != "online":
        return None
    return os.environ.get("WANDB_BASE_URL") or DEFAULT_SERVER


def _ask(url: str) -> Any:
    """Return the HTTP status of the answer, or the reason why there is none."""
    try:
        urllib.request.urlopen(url, timeout=WEB_SECONDS).close()
    except urllib.error.HTTPError as error:
        return error.code
    except OSError as error:
        return getattr(error, "reason", error)
    return 200


def wandb(url: str) -> Iterator[Finding]:
    """Ask the W&B server for anything."""
    answer = _ask(url)
    if not isinstance(answer, int):
        advice = "open the network for it, or set wandb.mode=offline (training continues)"
        yield bad("wandb", f"{url} does not answer: {answer}", advice)
    elif answer >= 500:
        yield bad("wandb", f"{url} answers {answer}", "wait, or set wandb.mode=offline")
    else:
        yield good("wandb", f"{url} answers")


def dashboard(url: str) -> Iterator[Finding]:
    """Ask a Ray dashboard for its jobs, without a token."""
    match _ask(f"{url}/api/jobs/"):
        case 200:
            advice = "set RAY_AUTH_MODE=token (KubeRay: authOptions.mode: token) and close its port"
            yield bad("dashboard", f"{url} lets everyone run code on the cluster", advice)
        case 401 | 403:
            yield good("dashboard", f"{url} refuses requests without a token")
        case ConnectionRefusedError():
            yield good("dashboard", f"none answers at {url}")
        case int(code):
            yield bad("dashboard", f"{url} answers {code}", "look into the head's log")
        case reason:
            advice = "look into the head's log, and at what closes the port"
            yield bad("dashboard", f"{url} does not answer: {reason}", advice)


def all_reduce_seconds(device: torch.device) -> dict[int, float]:
    """Return the seconds of an all-reduce by its bytes; every rank of the group calls this."""
    found = {}
    for number in SIZES:
        tensor = torch.ones(number // 4, device=device)
        rounds = 5 if number <= 2**20 else 2
        torch.distributed.all_reduce(tensor)
        _wait(device)
        started = time.perf_counter()
        for _ in range(rounds):
            torch.distributed.all_reduce(tensor)
        _wait(device)
        found[number] = (time.perf_counter() - started) / rounds
    return found


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
