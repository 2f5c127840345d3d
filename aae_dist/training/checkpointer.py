"""Checkpoints of a run in training, and the changes that a resumed run allows and refuses.

Every rank calls, rank 0 writes.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

from aae_dist.checkpoints import Checkpoint, CheckpointStore, check_metadata, config_of
from aae_dist.checkpoints.format import DEFAULTS
from aae_dist.config import RunConfig, config_from_stored, config_from_tree
from aae_dist.data import Manifest, SampleOrder
from aae_dist.distributed.world import World, run_on_all_ranks, run_on_rank_zero
from aae_dist.errors import CheckpointError, ConfigError, LaunchError, TrainingDivergedError
from aae_dist.training.folder import Outcome, RunFolder, RunState, Summary
from aae_dist.training.recorder import Goodput
from aae_dist.training.state import TrainState

CHANGEABLE = (
    "run.storage",  # a moved folder is the same run
    *("run.title", "run.resume", "run.init_from"),
    "data.train",  # the manifest's id identifies the data
    *("data.validation", "data.cache", "data.decoded", "data.threads", "data.accept_new_shards"),
    *("data.max_bad_fraction", "data.max_bad_samples", "data.max_consecutive_bad_samples"),
    "train.global_batch_size",  # to a multiple of the lanes, see `check_lanes`
    *("train.steps", "train.epochs", "train.micro_batch_size", "train.device"),
    *("train.log_every_steps", "train.evaluate_every_steps", "train.compare_ranks_every_steps"),
    *("train.best_metric", "train.max_skipped_updates", "train.max_rollbacks"),
    *("checkpoint", "launch", "wandb"),
)
"""Keys, or whole sections, that do not change what the steps so far computed."""
INFERRED = (
    *("lanes", "shuffle_window", "channels", "layout", "image_size", "resize", "standardize"),
)
"""Keys of `data` that are inferred from the data when a run starts, where they are null."""
NEW_DEFAULTS = (
    *("method.balance", "method.weight", "method.distance_weight", "method.r1_weight"),
    *(f"phases.{p}.optimizer.lr" for p in ("reconstruction", "discriminator", "generator")),
    *("phases.generator.optimizer.betas", "phases.generator.optimizer.eps"),
    "data.standardize",
)
"""Keys whose default has changed: runs of before keep theirs, see `with_former_defaults`."""
FORMER_DEFAULTS = {
    **{f"phases.{p}.optimizer.lr": 2e-3 for p in ("reconstruction", "generator", "classification")},
    **{"method.weight": 0.04, "method.r1_weight": 0.03},
}
"""What null, now the default of these keys, stands for in runs of before: rates did not follow the
width of the networks, nor the adversary's weight the latent size."""


def with_former_defaults(
    config: RunConfig,
    saved: Mapping[str, Any],
    keys: Iterable[str] = (*NEW_DEFAULTS, *FORMER_DEFAULTS),
) -> RunConfig:
    """Return `config` for a run of before a change of defaults, which keeps its own.

    Every one of `keys` that `config` leaves at its default gets the value of `saved`.
    """
    trees: list[Any] = [_with_defaults(saved), config.model_dump(mode="json")]
    if trees[0].get("method", {}).get("kind") != config.method.kind:
        return config
    smallest = {"run": {"name": "a"}, "data": {"train": "b"}, "train": {"steps": 1}}
    trees.append(config_from_tree(smallest).model_dump(mode="json"))
    for path in keys:
        sections, _, key = path.rpartition(".")
        old, new, unset = (_value(tree, sections) for tree in trees)
        if key in old and new.get(key) == unset.get(key):
            new[key] = old[key]
    return config_from_stored(trees[1])


def _value(tree: Any, path: str) -> Any:
    return reduce(lambda part, name: part.get(name, {}), path.split("."), tree)


def of_checkpoint(config: RunConfig, checkpoint: Checkpoint) -> RunConfig:
    """Return `config` with the defaults of the version that started the checkpoint's run."""
    saved = config_of(checkpoint)
    if checkpoint.metadata["data"].get("baseline_loss") is None:
        return with_former_defaults(config, saved)
    # Of a resumed run of before, the configuration holds the values.
    held = [path for path, value in FORMER_DEFAULTS.items() if _value(saved, path) == value]
    return with_former_defaults(config, saved, held)


def with_values_of_null(config: RunConfig, checkpoint: Checkpoint) -> RunConfig:
    """Return `config` with what null stood for when the checkpoint's run started."""
    data = checkpoint.metadata["data"]
    if data.get("defaults", 1) >= DEFAULTS or data.get("baseline_loss") is None:
        return config
    tree = config.model_dump(mode="json")
    balanced = tree["method"].get("balance") == "auto"
    for path, value in FORMER_DEFAULTS.items():
        sections, _, key = path.rpartition(".")
        section = _value(tree, sections)
        if key in section and section[key] is None and (balanced or sections != "method"):
            section[key] = value
    return config_from_stored(tree)


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
            + f"\nUndo the change, or take a new run.name with run.init_from={run_uri} to start "
            "from its weights."
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
    """Return where to start on new shards; None when they are those of the checkpoint."""
    # Shards can change only between epochs, and on request (`data.accept_new_shards`): within an
    # epoch it is not known which of the new samples have been seen already.
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

    Cheap: reads one small file, before any worker starts. TrainingDivergedError if this very
    configuration has diverged before.
    """
    folder = RunFolder(config, probe=True)
    summary = folder.read_summary()
    if summary is None:
        return None
    if summary.state == RunState.DIVERGED:
        _raise_if_it_diverges_again(summary, config, folder.uri)
    if summary.state != RunState.FINISHED:
        return None
    if summary.plan != (config.train.steps, config.train.epochs):
        return None
    check_same_run(summary.config, with_former_defaults(config, summary.config), folder.uri)
    if config.run.resume == "never":
        raise CheckpointError(
            f"run.resume=never, but {folder.uri} has finished already; take a new run.name"
        )
    metrics = {name: math.nan if v is None else v for name, v in summary.metrics.items()}
    verdict = summary.verdict.model_dump(mode="json") if summary.verdict else None
    return Outcome(RunState.ALREADY_FINISHED, summary.step, metrics, folder.uri, verdict)


def _raise_if_it_diverges_again(summary: Summary, config: RunConfig, run_uri: str) -> None:
    # Steps are deterministic: another try occupies a cluster and ends at the same step.
    if not list(_changes(_with_defaults(summary.config), config.model_dump(mode="json"))):
        raise TrainingDivergedError(
            f"{run_uri} diverged at step {summary.step} and would again: nothing in its "
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
    return any(f"{path}.".startswith(f"{key}.") for key in CHANGEABLE)


SLOW_SECONDS = 30.0
"""Warn about saves slower than this; a healthy save takes seconds."""


class Checkpointer:
    """Saves the state of a run; a save that fails is reported, and training continues."""

    def __init__(
        self,
        store: CheckpointStore,
        world: World,
        line: Callable[[str], None],
        metadata: Mapping[str, Any],
        goodput: Goodput,
        last_step: int,
        before_commit: Callable[[], None],
    ) -> None:
        """Write to `store`, on rank 0; `metadata` is constant during the run.

        `before_commit` is called in the background before a checkpoint becomes visible.
        """
        self._store, self._world, self._line = store, world, line
        self._metadata, self._goodput, self._last_step = dict(metadata), goodput, last_step
        self._before_commit, self._skipped = before_commit, 0

    def save(self, state: TrainState, best: bool, must: bool) -> None:
        """Copy the state and save it in the background."""
        # Unless it `must`, a save is skipped while another one is under way: the next one is due
        # soon, and a slow storage should not slow down training.
        if not self._world.is_main:
            return
        self._store.announce()
        if not must and self._store.is_saving:
            self._skipped += 1
            self._warn_if_slow(state.step)
            return
        goodput = self._goodput.metadata(finished=state.step == self._last_step)
        metadata = {**self._metadata, "state": state.metadata(), "goodput": goodput}
        try:
            self._store.save(state.step, state.tensors(), metadata, best, self._before_commit)
        except (LaunchError, CheckpointError, OSError) as error:
            # The save before this one failed: for good when another writer owns the run now.
            self._store.check_fencing()
            self._line(f"the checkpoint before step {state.step} was not saved: {error}")
            self._store.save(state.step, state.tensors(), metadata, best, self._before_commit)

    def finish(self) -> None:
        """Return when the newest state is saved; raise the save's error on every rank."""
        run_on_rank_zero(self._world, self._store.wait)
        self._store.announce()

    def metrics(self) -> dict[str, float]:
        """Return the cost of saving on rank 0 so far; empty on the other ranks."""
        if not self._world.is_main:
            return {}
        self._store.announce()
        return {
            "checkpoint/skipped": self._skipped,
            "checkpoint/seconds_blocked": round(self._store.seconds_blocked, 3),
            "checkpoint/bytes": self._store.last_bytes,
            "checkpoint/seconds": round(self._store.last_seconds, 3),
        }

    def _warn_if_slow(self, step: int) -> None:
        if self._store.seconds_saving > SLOW_SECONDS:
            self._line(
                f"no checkpoint of step {step}: the save before it has been under way for "
                f"{self._store.seconds_saving:.0f} s, so the storage is slow or stalled; "
                "training continues"
            )


def _nothing_verifies(run_uri: str, rejected: Mapping[int, str]) -> str:
    lines = "".join(f"\n  step {step}: {reason}" for step, reason in rejected.items())
    return (
        f"{run_uri} has checkpoints, but none that verifies, and would start at step 0:{lines}\n"
        "Try again if the storage may have answered wrongly, or restore one of them. To start at "
        "step 0 all the same, which replaces them, set run.resume=never, or take a new run.name."
    )


def newest_checkpoint(
    store: CheckpointStore, config: RunConfig, folder: RunFolder, world: World
) -> Checkpoint | None:
    """Load the newest checkpoint that verifies on every rank; None to start from step 0.

    CheckpointError if `run.resume` forbids it, or the checkpoint is of another run.
    """
    loaded: list[Checkpoint] = []

    def find() -> int | None:
        checkpoint, resume = store.newest(), config.run.resume
        if checkpoint is None and store.rejected and resume != "never":
            raise CheckpointError(_nothing_verifies(folder.uri, store.rejected))
        if checkpoint is None and resume == "must":
            raise CheckpointError(
                f"run.resume=must, but {folder.uri} has no checkpoint that verifies; check "
                "run.storage and run.name, or use run.resume=auto"
            )
        if checkpoint is None:
            return None
        if resume == "never":
            raise CheckpointError(
                f"run.resume=never, but {folder.uri} has a checkpoint of step {checkpoint.step}; "
                "take a new run.name or use run.resume=auto"
            )
        check_metadata(checkpoint)
        wanted = of_checkpoint(config, checkpoint)
        check_same_run(config_of(checkpoint), wanted, folder.uri)
        check_lanes(checkpoint.metadata["data"]["lanes"], config, folder.uri)
        loaded.append(checkpoint)
        return checkpoint.step

    step = run_on_rank_zero(world, find)
    if step is None:
        return None
    return run_on_all_ranks(world, lambda: loaded[0] if loaded else store.load(step))
