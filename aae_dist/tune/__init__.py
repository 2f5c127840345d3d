"""Sweeps run by Ray Tune."""
