"""What a resumed run may change, and what makes it another run."""

from collections.abc import Iterator, Mapping
from typing import Any

from aae_dist.checkpoints.store import CheckpointStore
from aae_dist.config import RunConfig, config_from_stored
from aae_dist.errors import CheckpointError, ConfigError, TrainingDivergedError
from aae_dist.storage import open_storage
from aae_dist.training.outcome import Outcome
from aae_dist.training.run.folder import RunFolder
from aae_dist.training.state import TrainState

CHANGEABLE = (
    "run.storage",  # a moved folder is the same run
    "run.resume",
    "run.init_from",
    "data.train",  # the manifest's id tells whether the data is the same
    "data.validation",
    "data.cache",
    "data.decoded",
    "data.threads",
    "data.max_bad_fraction",
    "data.max_bad_samples",
    "data.max_consecutive_bad_samples",
    "data.accept_new_shards",
    "train.steps",
    "train.epochs",
    "train.global_batch_size",  # to a multiple of the lanes, checked apart
    "train.micro_batch_size",
    "train.log_every_steps",
    "train.evaluate_every_steps",
    "train.best_metric",
    "train.max_skipped_updates",
    "train.max_rollbacks",
    "train.compare_ranks_every_steps",
    "train.device",
    "checkpoint",
    "launch",
    "wandb",
)
"""Keys, or whole sections, that do not change what the steps so far computed."""
FOUND = ("lanes", "shuffle_window", "channels", "image_size", "resize")
"""Keys of `data` whose null means what the run found out from its data when it began."""


def check_same_run(saved: Mapping[str, Any], config: RunConfig, run_uri: str) -> None:
    """Raise CheckpointError with a diff unless `config` continues the run of `saved`."""
    wanted = config.model_dump(mode="json")
    lines = [
        f"  {path}: saved {old!r}, now {new!r}"
        for path, old, new in _changes(_completed(saved), wanted)
        if not _may_change(path)
    ]
    if lines:
        raise CheckpointError(
            f"{run_uri} was started with another configuration, so it cannot be resumed:\n"
            + "\n".join(lines)
            + "\nUndo the change, or take a new run.name with run.init_from="
            + run_uri
            + " to start from its weights."
        )


def as_found(config: RunConfig, saved: Mapping[str, Any]) -> RunConfig:
    """Return `config` with what the run of the configuration `saved` had found in its data."""
    data = config.data
    found = {key: saved["data"].get(key) for key in FOUND if getattr(data, key) is None}
    return config.model_copy(update={"data": data.model_copy(update=found)})


def check_lanes(saved_lanes: int, config: RunConfig, run_uri: str) -> None:
    """Raise CheckpointError unless the global batch is a multiple of the run's first lanes."""
    batch = config.train.global_batch_size
    if batch % saved_lanes:
        raise CheckpointError(
            f"{run_uri} reads its data in {saved_lanes} lanes, so train.global_batch_size must be "
            f"a multiple of {saved_lanes} (got {batch}), for example "
            f"{-(-batch // saved_lanes) * saved_lanes}"
        )


def load_initial_weights(state: TrainState, source: str) -> None:
    """Copy the newest weights of the run `source`, and their average; CheckpointError without."""
    other = CheckpointStore(open_storage(source), keep=1).newest()
    if other is None:
        raise CheckpointError(f"run.init_from={source} has no checkpoint that verifies")
    state.start_from(other.tensors)


def finished_before(config: RunConfig) -> Outcome | None:
    """Return the outcome of a run that this same plan has already finished; else None.

    Cheap: reads one small file, before any worker starts.

    Raises:
        TrainingDivergedError: this very configuration has diverged before.
    """
    folder = RunFolder(config, probe=True)
    summary = folder.read_summary()
    if summary is None:
        return None
    if summary["state"] == "diverged":
        _refuse_to_diverge_again(summary, config, folder.uri)
    if summary["state"] != "finished":
        return None
    plan = summary["config"]["train"]
    if (plan["steps"], plan["epochs"]) != (config.train.steps, config.train.epochs):
        return None
    check_same_run(summary["config"], config, folder.uri)
    if config.run.resume == "never":
        raise CheckpointError(
            f"run.resume=never, but {folder.uri} has finished already; take a new run.name"
        )
    return Outcome("already_finished", summary["step"], summary["metrics"], folder.uri)


def _refuse_to_diverge_again(summary: Mapping[str, Any], config: RunConfig, run_uri: str) -> None:
    # The steps are the same each time, so trying again costs a cluster and ends at the same step.
    if not list(_changes(_completed(summary["config"]), config.model_dump(mode="json"))):
        raise TrainingDivergedError(
            f"{run_uri} diverged at step {summary['step']} and would again: nothing in its "
            "configuration has changed. Take a new run.name with other rates, or delete "
            f"{run_uri}/summary.json to try all the same."
        )


def _completed(saved: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a saved configuration with the defaults of keys that are younger than the run."""
    try:
        return config_from_stored(saved).model_dump(mode="json")
    except ConfigError:  # it has keys that are gone: they will stand in the diff
        return saved


def _changes(old: Any, new: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in dict.fromkeys([*old, *new]):
            yield from _changes(old.get(key), new.get(key), (*path, key))
    elif old != new and not (new is None and path[:1] == ("data",) and path[-1] in FOUND):
        yield ".".join(path), old, new


def _may_change(path: str) -> bool:
    return any(path == key or path.startswith(key + ".") for key in CHANGEABLE)
