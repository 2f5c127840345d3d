"""The configuration of a run: strict, frozen sections read from YAML files and overrides."""

from aae_dist.config.root import RunConfig

__all__ = ["RunConfig"]
