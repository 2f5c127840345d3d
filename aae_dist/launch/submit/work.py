"""What is submitted to a cluster: a run or a sweep, checked here before anything starts there."""

import sys
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass

from aae_dist.config import RunConfig, dump_yaml, load_config
from aae_dist.config.loading.load import SWEEP, ConfigFile, make_absolute, read_layers
from aae_dist.config.loading.merge import Merge
from aae_dist.config.loading.tree import plain
from aae_dist.config.loading.yaml import dump
from aae_dist.config.paths import PATHS
from aae_dist.sweeps.plan import SweepPlan, load_sweep

LOCAL = "launch.kind=local trains on one machine; drop it (the default is ray)"


@dataclass(frozen=True)
class Work:
    """A run or a sweep that is submitted."""

    verb: str
    """train or tune."""
    name: str
    storage: str
    config: RunConfig
    """The run's; of a sweep that of its first trial, whose resources all trials have."""
    text: str
    """The whole configuration, as YAML."""

    @property
    def address(self) -> str:
        """The folder of the run or sweep."""
        return f"{self.storage}/{self.name}"


def read_work(files: Sequence[ConfigFile], overrides: Sequence[str]) -> Work:
    """Return the run or sweep that files and overrides describe; notes go to stderr.

    Raises:
        ConfigError: something in them is wrong; all problems are named.
    """
    if is_sweep(files, overrides):
        return _sweep(load_sweep(files, overrides))
    loaded = load_config(files, overrides)
    _print_notes(loaded.notes)
    config = loaded.config
    return Work("train", config.run.name, config.run.storage, config, dump_yaml(config))


def is_sweep(files: Sequence[ConfigFile], overrides: Sequence[str]) -> bool:
    """Return whether the files describe a sweep: they have a section for it."""
    layers, _ = read_layers(files, overrides)
    return any(SWEEP in layer for layer in layers)


def _sweep(plan: SweepPlan) -> Work:
    _print_notes(plan.notes)
    base = Merge(RunConfig).run(deepcopy(list(plan.layers)))
    make_absolute(base)
    tree = plain(base)
    tree.setdefault("run", {})["storage"] = plan.storage
    tree[SWEEP] = plan.sweep.model_dump(mode="json")
    return Work("tune", plan.sweep.name, plan.storage, plan.configs[0], dump(tree))


def _print_notes(notes: Sequence[str]) -> None:
    for note in notes:
        print(f"note: {note}", file=sys.stderr)


def local_paths(config: RunConfig) -> Iterator[tuple[str, str]]:
    """Yield (key, path) for all that lies on a machine and not in a bucket."""
    for section, key in PATHS:
        value: str | tuple[str, ...] | None = getattr(getattr(config, section), key, None)
        for path in [value] if value is None or isinstance(value, str) else value:
            if path and "://" not in path:
                yield f"{section}.{key}", path


def follow_or_stop(
    follow: Callable[[], int], stop: Callable[[], None], how: str, stop_on_interrupt: bool
) -> int:
    """Follow a job and return its exit code; Ctrl-C leaves it alone, or stops it.

    Args:
        follow: prints the job's log until it ends; returns its exit code.
        stop: asks the job to save a checkpoint and end.
        how: what continues after Ctrl-C, and how to stop it.
        stop_on_interrupt: whether Ctrl-C stops the job.
    """
    try:
        return follow()
    except KeyboardInterrupt:
        if not stop_on_interrupt:
            print(f"\nno longer following; {how}")
            return 130
    print("\nstopping: the job saves a checkpoint first; Ctrl-C again stops following", flush=True)
    stop()
    return follow()
