"""Sweeps on Ray Tune, or without Ray; the package can be called: it is `aae_dist.tune`."""

import sys
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any

from aae_dist.errors import LaunchError

if TYPE_CHECKING:
    from aae_dist.sweeps.ledger import Ledger
    from aae_dist.sweeps.plan import SweepPlan


def start_sweep(plan: "SweepPlan", more: bool = False) -> "Ledger":
    """Run the trials that are not finished yet, on Ray or here; return the ledger of all.

    The sweep's report is written now and then, and at the end.

    Args:
        plan: the sweep and its trials, from `load_sweep`.
        more: whether to add the seeds that the recommendation of an ended sweep asks for.

    Raises:
        Interrupted: the sweep was asked to stop; running trials have saved.
        AaeDistError: the sweep cannot start, Ray Tune is missing, or no trial has finished.
    """
    from aae_dist.report import write_report

    if plan.configs[0].launch.kind == "local":
        from aae_dist.launch.local_sweep import launch_local_sweep

        return launch_local_sweep(plan, write_report, more)
    if find_spec("ray") is None:
        raise LaunchError(
            "a sweep needs Ray Tune, which is not installed: pip install 'aae_dist[ray]', or use "
            "launch.kind=local"
        )
    from aae_dist.tune.sweep import launch_sweep

    return launch_sweep(plan, write_report, more)


class _Tune(ModuleType):
    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Run a sweep: `aae_dist.api.sweeping.tune`, whose arguments these are."""
        # By name: the layer of the Python interface lies above this one.
        return import_module("aae_dist.api.sweeping").tune(*arguments, **options)


sys.modules[__name__].__class__ = _Tune
