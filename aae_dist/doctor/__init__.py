"""Checks of the place that a run would start in, before money is spent there; without Ray."""
