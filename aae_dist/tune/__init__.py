"""Sweeps on Ray Tune. The package itself can be called: it is the public `aae_dist.tune`."""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


class _Tune(ModuleType):
    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Run a sweep: `aae_dist.api.sweeping.tune`, whose arguments these are."""
        # By name: the layer of the Python interface lies above this one.
        return import_module("aae_dist.api.sweeping").tune(*arguments, **options)


sys.modules[__name__].__class__ = _Tune
