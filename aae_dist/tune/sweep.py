"""Runs a sweep with Ray Tune: finished trials of its folder stay so, all others run or resume.

Tune's own record of an experiment is not used: it is a pickle, it knows nothing of trials that
started since its last save, and it would not let the space grow.
"""

import os
import secrets
import tempfile
from collections.abc import Callable

from aae_dist.errors import Interrupted
from aae_dist.launch.ending import StopSignals
from aae_dist.launch.ray import cluster
from aae_dist.launch.sweep import (
    add_more,
    check_any_finished,
    check_same,
    log_recommendation,
    reports,
)
from aae_dist.storage import open_storage
from aae_dist.sweeps.folder import SweepState, TrialState
from aae_dist.sweeps.ledger import Ledger
from aae_dist.sweeps.plan import SweepPlan
from aae_dist.training.lock import RunLock
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
    """Run the trials that are not finished yet; return the ledger of all.

    `write_report` is called with the sweep's folder now and then, and at the end. With `more`, a
    sweep that has ended gets the seeds that its recommendation asks for.

    Raises:
        Interrupted: the sweep was asked to stop; running trials have saved.
        AaeDistError: the sweep cannot start, or no trial has finished.
    """
    configs = plan.configs
    cluster.check_storage(configs[0])
    for config in configs:
        cluster.check_machine(config)
    for line in cluster.advice(configs[0]):
        echo(line)
    folder = open_storage(plan.uri)
    folder.check_writable()
    launch_id = secrets.token_hex(8)
    with RunLock.acquire(folder, launch_id):
        check_same(plan.trials)
        ledger = Ledger(plan, folder)
        if more:
            add_more(ledger)
        if len(ledger.entries) >= plan.num_trials and not ledger.pending():
            echo(f"This sweep had already finished: {plan.uri}")
            ledger.write("finished")
            return ledger
        cluster.check_data(configs)
        with reports(plan.uri, write_report) as changed:
            _run(ledger, launch_id, changed)
    return ledger


def _run(ledger: Ledger, launch_id: str, changed: Callable[[], None]) -> None:
    state: SweepState = "interrupted"
    ledger.write()
    try:
        os.environ.update(ENVIRONMENT)
        plan = ledger.plan
        # Handlers for signals come last: Ray's start replaces them.
        with cluster.connected(plan.configs[0]), tune_folder() as place, StopSignals() as stop:
            from aae_dist.tune.driver import SweepDriver

            SweepDriver(ledger, launch_id, place, stop, changed).run()
        if stop.requested:
            raise Interrupted(
                f"{ledger.plan.uri}: stopped as asked, each running trial with a checkpoint. "
                "The same command resumes from there."
            )
        state = "finished"
    finally:
        for entry in ledger.in_state(TrialState.RUNNING):
            ledger.finish(entry.plan.id, TrialState.INTERRUPTED)
        ledger.write(state)
    check_any_finished(ledger)
    log_recommendation(ledger)


def tune_folder() -> tempfile.TemporaryDirectory[str]:
    """Return a folder for Tune's own files, the driver's alone: no other node sees it."""
    return tempfile.TemporaryDirectory(prefix="aae_dist-tune-", ignore_cleanup_errors=True)
