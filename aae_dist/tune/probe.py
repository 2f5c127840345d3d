"""A trial that trains nothing: whether Ray Tune works on the nodes of this cluster."""

import logging
import os
import socket
import tempfile
from typing import Any

from ray import tune

from aae_dist.config import RunConfig
from aae_dist.launch.failures import last_line
from aae_dist.tune.sweep import ENVIRONMENT
from aae_dist.tune.trial import Trial

SECONDS = 120.0
HOST = "host"


class EmptyTrial(Trial):
    """Ends at its first step, and answers when Tune saves it as a trial does."""

    def setup(self, config: dict[str, Any]) -> None:  # type: ignore[override]
        self._uri, self._at_step = "none", 0

    def step(self) -> dict[str, Any]:
        return {"done": True, HOST: socket.gethostname()}

    def cleanup(self) -> None:
        return None


def run_empty_trial(config: RunConfig) -> tuple[str, str]:
    """Run a trial on a node that trains, save and end it.

    As in a sweep, Tune's own folder is the driver's, which other nodes do not see. The doctor holds
    the GPUs, so the trial takes CPUs only.

    Returns:
        (host it ran on, '') or ('', what failed).
    """
    os.environ.update(ENVIRONMENT)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    place_on = tune.PlacementGroupFactory([{"CPU": float(config.launch.cpus_per_worker)}])
    with tempfile.TemporaryDirectory(prefix="aae_dist-tune-", ignore_cleanup_errors=True) as place:
        tuner = tune.Tuner(
            tune.with_resources(EmptyTrial, place_on),
            tune_config=tune.TuneConfig(time_budget_s=SECONDS),
            run_config=tune.RunConfig(
                name="doctor",
                storage_path=place,
                verbose=0,
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=True),
            ),
        )
        try:
            result = tuner.fit()[0]
        except Exception as error:  # Tune and Ray raise many kinds
            return "", last_line(error)
    if result.error is not None:
        return "", last_line(result.error)
    host = (result.metrics or {}).get(HOST, "")
    return host, "" if host else f"no trial started within {SECONDS:.0f} s"
