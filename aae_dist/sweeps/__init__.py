"""Sweeps as they lie in storage: read and written without Ray."""

from aae_dist.sweeps.folder import SweepRecord, TrialRecord, read_sweep

__all__ = ["SweepRecord", "TrialRecord", "read_sweep"]
