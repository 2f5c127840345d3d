"""The configuration of a run: strict, frozen sections read from YAML files and overrides."""

from aae_dist.config.load import Loaded, config_from_tree, dump_yaml, load_config
from aae_dist.config.root import RunConfig

__all__ = ["Loaded", "RunConfig", "config_from_tree", "dump_yaml", "load_config"]
