"""The configuration of a run: strict, frozen sections read from YAML files and overrides."""

from aae_dist.config.load import config_from_stored, config_from_tree, dump_yaml, load_config
from aae_dist.config.run_config import RunConfig
from aae_dist.config.sections.run import Augment, Columns, Data, Launch, Layout, usable_cores
from aae_dist.config.sections.sweep import AshaScheduler, PbtScheduler, Sweep

__all__ = [
    "AshaScheduler",
    "Augment",
    "Columns",
    "Data",
    "Launch",
    "Layout",
    "PbtScheduler",
    "RunConfig",
    "Sweep",
    "config_from_stored",
    "config_from_tree",
    "dump_yaml",
    "load_config",
    "usable_cores",
]
