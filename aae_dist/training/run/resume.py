"""Resuming a run: the changes that it allows, of configuration and shards, and those it refuses."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from aae_dist.checkpoints.format import Checkpoint
from aae_dist.config import RunConfig, config_from_stored
from aae_dist.data import Manifest, SampleOrder
from aae_dist.errors import CheckpointError, ConfigError, TrainingDivergedError
from aae_dist.training.reporter import Outcome, RunState
from aae_dist.training.run.folder import RunFolder
from aae_dist.training.state import TrainState

CHANGEABLE = (
    "run.storage",  # a moved folder is the same run
    "run.resume",
    "run.init_from",
    "data.train",  # the manifest's id identifies the data
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
    "train.global_batch_size",  # to a multiple of the lanes, see `check_lanes`
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
INFERRED = ("lanes", "shuffle_window", "channels", "image_size", "resize")
"""Keys of `data` that are inferred from the data when a run starts, where they are null."""


def check_same_run(saved: Mapping[str, Any], config: RunConfig, run_uri: str) -> None:
    """Raise CheckpointError with a diff unless `config` continues the run of `saved`."""
    wanted = config.model_dump(mode="json")
    lines = [
        f"  {path}: saved {old!r}, now {new!r}"
        for path, old, new in _changes(_with_defaults(saved), wanted)
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


def with_inferred(config: RunConfig, saved: Mapping[str, Any]) -> RunConfig:
    """Return `config` with the values that the run of `saved` had inferred from its data."""
    data = config.data
    inferred = {key: saved["data"].get(key) for key in INFERRED if getattr(data, key) is None}
    return config.model_copy(update={"data": data.model_copy(update=inferred)})


def check_lanes(saved_lanes: int, config: RunConfig, run_uri: str) -> None:
    """Raise CheckpointError unless the global batch is a multiple of the run's first lanes."""
    batch = config.train.global_batch_size
    if batch % saved_lanes:
        raise CheckpointError(
            f"{run_uri} reads its data in {saved_lanes} lanes, so train.global_batch_size must be "
            f"a multiple of {saved_lanes} (got {batch}), for example "
            f"{-(-batch // saved_lanes) * saved_lanes}"
        )


@dataclass(frozen=True)
class NewShards:
    """An epoch that starts on other shards than those before it."""

    epoch: int
    samples_before: int
    """Samples of each epoch before."""

    def move(self, state: TrainState, order: SampleOrder) -> None:
        """Move `state`, as it was saved, to the start of the epoch in the new order."""
        state.position = self.epoch * order.lane_length
        state.samples_shift += self.epoch * (self.samples_before - order.num_samples)


def find_new_shards(
    checkpoint: Checkpoint | None, manifest: Manifest, config: RunConfig, run_uri: str
) -> NewShards | None:
    """Return where to start on new shards; None when they are those of the checkpoint.

    Shards can change only between epochs, and on request: within an epoch it is not known which of
    the new samples have been seen already.

    Raises:
        CheckpointError: the shards changed within an epoch, or without `data.accept_new_shards`.
    """
    if checkpoint is None or checkpoint.metadata["data"]["manifest"] == manifest.id:
        return None
    before: dict[str, Any] = checkpoint.metadata["data"]
    lane_length = -(-before["num_samples"] // before["lanes"])
    epoch, offset = divmod(checkpoint.metadata["state"]["position"], lane_length)
    problem = (
        f"{run_uri} was trained on other shards: {before['num_samples']} samples then, "
        f"{manifest.num_samples} in data.train now, and its checkpoint of step {checkpoint.step} "
    )
    if offset:
        raise CheckpointError(
            f"{problem}is at {offset / lane_length:.0%} of epoch {epoch}, where they cannot "
            f"change. Restore the old shards, for instance to finish the epoch with "
            f"train.epochs={epoch + 1}, or take a new run.name with run.init_from={run_uri}"
        )
    if not config.data.accept_new_shards:
        raise CheckpointError(
            f"{problem}ends epoch {epoch - 1}. Set data.accept_new_shards=true to resume with the "
            "new ones from the next epoch, restore the old ones, or take a new run.name"
        )
    return NewShards(epoch, before["num_samples"])


def finished_before(config: RunConfig) -> Outcome | None:
    """Return the outcome of a run that has already finished with these steps; else None.

    Cheap: reads one small file, before any worker starts.

    Raises:
        TrainingDivergedError: this very configuration has diverged before.
    """
    folder = RunFolder(config, probe=True)
    summary = folder.read_summary()
    if summary is None:
        return None
    if summary["state"] == RunState.DIVERGED:
        _raise_if_it_diverges_again(summary, config, folder.uri)
    if summary["state"] != RunState.FINISHED:
        return None
    plan = summary["config"]["train"]
    if (plan["steps"], plan["epochs"]) != (config.train.steps, config.train.epochs):
        return None
    check_same_run(summary["config"], config, folder.uri)
    if config.run.resume == "never":
        raise CheckpointError(
            f"run.resume=never, but {folder.uri} has finished already; take a new run.name"
        )
    return Outcome(RunState.ALREADY_FINISHED, summary["step"], summary["metrics"], folder.uri)


def _raise_if_it_diverges_again(
    summary: Mapping[str, Any], config: RunConfig, run_uri: str
) -> None:
    # Steps are deterministic: another try occupies a cluster and ends at the same step.
    if not list(_changes(_with_defaults(summary["config"]), config.model_dump(mode="json"))):
        raise TrainingDivergedError(
            f"{run_uri} diverged at step {summary['step']} and would again: nothing in its "
            "configuration has changed. Take a new run.name with other rates, or delete "
            f"{run_uri}/summary.json to try anyway."
        )


def _with_defaults(saved: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a saved configuration with the defaults of keys that are newer than the run."""
    try:
        return config_from_stored(saved).model_dump(mode="json")
    except ConfigError:  # keys that no longer exist appear in the diff
        return saved


def _changes(old: Any, new: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in dict.fromkeys([*old, *new]):
            yield from _changes(old.get(key), new.get(key), (*path, key))
    elif old != new and not (new is None and path[:1] == ("data",) and path[-1] in INFERRED):
        yield ".".join(path), old, new


def _may_change(path: str) -> bool:
    return any(path == key or path.startswith(key + ".") for key in CHANGEABLE)
