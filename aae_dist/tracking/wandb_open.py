"""Whether and how a run is shown in Weights & Biases."""

import hashlib
import importlib.util
import netrc
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from aae_dist.config import RunConfig
from aae_dist.config.redaction import redacted
from aae_dist.storage import Storage
from aae_dist.tracking.wandb_sink import CLOSE_SECONDS, WandbSink

INIT_SECONDS = 30.0
MARGIN_SECONDS = 6.0
"""Time that closing leaves for everything but the upload."""
DEFAULT_SERVER = "https://api.wandb.ai"
SAME_MODES = {"run": "online", "dryrun": "offline", "shared": "online"}


def open_wandb(
    config: RunConfig, storage: Storage, folder: Path, write: Callable[[str], None]
) -> WandbSink | None:
    """Return the sink, or None where W&B is off; `write` gets one line that says why.

    Args:
        config: The run's configuration; what W&B shows of it holds no credentials.
        storage: The run's folder; W&B's files are copied to `wandb/` in it at the end.
        folder: Node-local folder for them until then.
        write: Shows one line.
    """
    installed = importlib.util.find_spec("wandb") is not None
    mode, line = decide_mode(config.wandb.mode, os.environ, installed, Path.home())
    if line:
        write(line)
    if mode == "disabled":
        return None
    keep_files = partial(copy_files, storage=storage)
    return WandbSink(start_request(config, mode, folder), folder, write, keep_files)


def decide_mode(
    wanted: str, environment: Mapping[str, str], installed: bool, home: Path
) -> tuple[str, str]:
    """Return online, offline or disabled, and a line for the user or nothing.

    WANDB_MODE, which belongs to whoever runs the job, wins over the configuration.
    """
    override = environment.get("WANDB_MODE", "")
    mode = SAME_MODES.get(override, override) or wanted
    if mode == "disabled":
        return "disabled", "W&B is off (WANDB_MODE)" if override else ""
    if not installed:
        return "disabled", "W&B is off: not installed (pip install 'aae_dist[wandb]')"
    if mode == "offline" or has_key(environment, home):
        return ("offline" if mode == "offline" else "online"), ""
    if mode == "auto":
        return "disabled", "W&B is off: no API key (set WANDB_API_KEY or run `wandb login`)"
    return "offline", (
        "W&B has no API key (WANDB_API_KEY or `wandb login`): writing offline; "
        "`wandb sync` uploads the run's wandb folder later"
    )


def has_key(environment: Mapping[str, str], home: Path) -> bool:
    """Return whether W&B will find credentials for its server."""
    if environment.get("WANDB_API_KEY") or environment.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(environment.get("WANDB_BASE_URL") or DEFAULT_SERVER).hostname or ""
    named = environment.get("NETRC")
    for path in [Path(named).expanduser()] if named else [home / ".netrc", home / "_netrc"]:
        try:
            if netrc.netrc(str(path)).authenticators(host):
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False


def run_id(config: RunConfig) -> str:
    """Return the id that stays the same however often the run is resumed."""
    text = f"{config.run.storage}\n{config.run.name}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def start_request(config: RunConfig, mode: str, folder: Path) -> dict[str, Any]:
    """Return what opens the run in the W&B process."""
    return {
        "mode": mode,
        "project": config.wandb.project,
        "entity": config.wandb.entity,
        "group": config.wandb.group,
        "tags": list(config.wandb.tags),
        "name": config.run.name,
        "id": run_id(config),
        "config": redacted(config.model_dump(mode="json")),
        "dir": str(folder),
        "init_seconds": INIT_SECONDS,
        "finish_seconds": CLOSE_SECONDS - MARGIN_SECONDS,
    }


def copy_files(folder: Path, storage: Storage) -> None:
    """Copy W&B's run folders to `wandb/` of the run, links and debug logs left out."""
    root = folder / "wandb"
    for path in sorted(root.rglob("*")):
        inside = path.relative_to(root)
        links = any(
            (root / Path(*inside.parts[: i + 1])).is_symlink() for i in range(len(inside.parts))
        )
        if path.is_file() and not links and "logs" not in inside.parts:
            storage.upload(f"wandb/{inside.as_posix()}", path)
