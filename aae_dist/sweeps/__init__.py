"""Sweeps as they lie in storage: read and written without Ray."""

from aae_dist.sweeps.folder import SweepRecord, SweepState, TrialRecord, TrialState, read_sweep
from aae_dist.sweeps.ledger import FINAL, Entry, Ledger
from aae_dist.sweeps.objective import Mode, Objective, Point
from aae_dist.sweeps.plan import SweepPlan, TrialPlan, describe, load_sweep

__all__ = [
    "FINAL",
    "Entry",
    "Ledger",
    "Mode",
    "Objective",
    "Point",
    "SweepPlan",
    "SweepRecord",
    "SweepState",
    "TrialPlan",
    "TrialRecord",
    "TrialState",
    "describe",
    "load_sweep",
    "read_sweep",
]
