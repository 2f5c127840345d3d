"""The configuration of a run: strict, frozen sections read from YAML files and overrides."""

from aae_dist.config.load import config_from_stored, config_from_tree, dump_yaml, load_config
from aae_dist.config.run_config import RunConfig

__all__ = ["RunConfig", "config_from_stored", "config_from_tree", "dump_yaml", "load_config"]
