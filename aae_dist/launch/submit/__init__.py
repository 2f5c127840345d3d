"""Runs and sweeps on clusters: a RayJob on Kubernetes, a job on a running Ray cluster."""
