"""Runs a sweep with Ray Tune: finished trials of its folder stay so, all others run or resume.

Tune's own record of an experiment is not used: it is a pickle, it knows nothing of trials that
started since its last save, and it would not let the space grow.
"""

import os
import tempfile
from collections.abc import Callable

from aae_dist.launch import ending, sweep
from aae_dist.launch.ray import cluster
from aae_dist.sweeps import Ledger, SweepPlan
from aae_dist.utils.text import echo

ENVIRONMENT = {
    # Trials lie in folders of their own: no CSV, JSON and TensorBoard copies of every result.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # Progress between evaluations holds no score.
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    # Of no use to us: see above.
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_MAX_LEN_IDENTIFIER": "40",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}


def launch_sweep(
    plan: SweepPlan, write_report: Callable[[str], None] | None = None, more: bool = False
) -> Ledger:
    """Run the trials that are not finished yet with Ray Tune.

    Arguments, result and errors are those of `run_sweep`.
    """
    configs = plan.configs
    cluster.check_storage(configs[0])
    for config in configs:
        cluster.check_machine(config)
    for line in cluster.advice(configs[0]):
        echo(line)
    return sweep.run_sweep(plan, _run, write_report, more)


def _run(ledger: Ledger, launch_id: str, changed: Callable[[], None]) -> bool:
    os.environ.update(ENVIRONMENT)
    plan = ledger.plan
    # Handlers for signals come last: Ray's start replaces them.
    with cluster.connected(plan.configs[0]), tune_folder() as place, ending.StopSignals() as stop:
        from aae_dist.tune.driver import SweepDriver

        SweepDriver(ledger, launch_id, place, stop, changed).run()
    return stop.requested


def tune_folder() -> tempfile.TemporaryDirectory[str]:
    """Return a folder for Tune's own files, the driver's alone: no other node sees it."""
    return tempfile.TemporaryDirectory(prefix="aae_dist-tune-", ignore_cleanup_errors=True)
