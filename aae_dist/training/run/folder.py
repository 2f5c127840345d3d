"""The run's folder: `<run.storage>/<run.name>/`, the same layout for every launcher."""

import json
import math
import secrets
from collections.abc import Mapping
from typing import Any

from aae_dist.config import RunConfig, dump_yaml
from aae_dist.config.redaction import redacted
from aae_dist.errors import LaunchError
from aae_dist.storage import Storage, join, open_storage, read_or_none
from aae_dist.training.reporter import Outcome

CONFIG, SUMMARY, METRICS = "config.yaml", "summary.json", "metrics.jsonl"
BAD_SAMPLES = "bad_samples.jsonl"
MARKER = ".nonce"
"""Shows workers that they see the folder that the driver sees."""


class RunFolder:
    """Reads and writes the files of a run, except for its checkpoints."""

    def __init__(self, config: RunConfig, probe: bool = False) -> None:
        """Open the folder that `config.run` names; nothing is created or checked yet.

        `probe` is as in `open_storage`.
        """
        self.uri = join(config.run.storage, config.run.name)
        self.storage: Storage = open_storage(self.uri, probe=probe)

    def write_config(self, config: RunConfig) -> None:
        """Write the resolved configuration."""
        self.storage.write(CONFIG, dump_yaml(config, without_secrets=True).encode())

    def write_metrics(self, lines: bytes) -> None:
        """Write all metrics so far, one JSON object per line."""
        self.storage.write(METRICS, lines)

    def read_metrics(self) -> bytes:
        """Return the metrics of the last upload, empty before the first one."""
        return read_or_none(self.storage, METRICS) or b""

    def write_bad_samples(self, lines: bytes) -> None:
        """Write the list of all bad samples so far, one JSON object per line."""
        self.storage.write(BAD_SAMPLES, lines)

    def write_picture(self, name: str, png: bytes) -> None:
        """Write a picture, replacing an older one of that name."""
        self.storage.write(f"pictures/{name}.png", png)

    def write_summary(
        self, outcome: Outcome, config: RunConfig, alarms: Mapping[str, int] | None = None
    ) -> None:
        """Write how the run ended; a metric that is not finite becomes null.

        Args:
            outcome: the result.
            config: of the run.
            alarms: the step at which each alarm was first raised.
        """
        summary = {
            "state": outcome.state,
            "step": outcome.step,
            "metrics": {k: v if math.isfinite(v) else None for k, v in outcome.metrics.items()},
            "alarms": dict(alarms or {}),
            "config": redacted(config.model_dump(mode="json")),
        }
        self.storage.write(SUMMARY, json.dumps(summary, indent=2, allow_nan=False).encode())

    def read_summary(self) -> Mapping[str, Any] | None:
        """Return the summary; None while the run has not ended."""
        text = read_or_none(self.storage, SUMMARY)
        return json.loads(text) if text else None


def write_marker(folder: Storage) -> str:
    """Return the folder's marker token, creating it on first launch."""
    token = secrets.token_hex(16)
    if folder.create(MARKER, token.encode()):
        return token
    return folder.read(MARKER).decode()


def check_marker(folder: Storage, token: str) -> None:
    """Raise LaunchError unless `folder` holds the driver's token: then it is another folder."""
    if read_or_none(folder, MARKER) != token.encode():
        raise LaunchError(
            f"{folder.uri}: this folder is not shared between nodes: a worker does not see what "
            "the driver wrote there. Set run.storage to s3:// (gs://, az://) or to a shared mount."
        )
