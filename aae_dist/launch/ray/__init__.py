"""Runs on a Ray cluster: Ray Train starts, places and restarts the workers."""
