"""What a run reads: shards, their order, what evaluates, and the prior; opened on all ranks."""

from dataclasses import dataclass
from typing import Any

from aae_dist.checkpoints.store import Saved
from aae_dist.config import RunConfig
from aae_dist.data import Dataset, SampleOrder, open_dataset, resolve_window
from aae_dist.data.decode.resize import Resize
from aae_dist.distributed.collectives import run_on_all_ranks
from aae_dist.distributed.world import World
from aae_dist.errors import ConfigError
from aae_dist.evaluation import Evaluator
from aae_dist.priors import Prior, build_prior
from aae_dist.training.data_checks import check_settings_fit
from aae_dist.training.new_shards import Restart, restart_on_new_shards
from aae_dist.training.prior_vectors import prior_vectors
from aae_dist.training.run.resume import as_found
from aae_dist.utils.progress import Show


@dataclass(frozen=True)
class RunData:
    """What a run reads."""

    config: RunConfig
    """The configuration with everything filled in that the data decides."""
    train: Dataset
    order: SampleOrder
    validation: Dataset | None
    evaluator: Evaluator | None
    prior: Prior
    restart: Restart | None = None
    """Where to begin when the shards are not those of the checkpoint."""

    @property
    def validation_id(self) -> str:
        """Return the id of the validation shards; empty if there are none."""
        return "" if self.validation is None else self.validation.manifest.id

    @property
    def document(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of the data and its order."""
        return {
            "manifest": self.train.manifest.id,
            "num_samples": self.train.manifest.num_samples,
            "lanes": self.order.lanes,
            "shuffle_window": self.order.window,
            "image_shape": list(self.train.image_shape),
        }


def open_data(
    config: RunConfig, world: World, saved: Saved | None, run_uri: str, show: Show
) -> RunData:
    """Open shards, order, evaluation and prior, on every rank or on none.

    Args:
        config: The run's configuration.
        world: This process's place among the ranks.
        saved: The checkpoint that the run goes on from.
        run_uri: The run's folder, for messages.
        show: Shows how many shards are counted.

    Raises:
        AaeDistError: data cannot be read, or differ from those the checkpoint was trained on.
    """
    if saved:
        config = as_found(config, saved.documents["config"])
    vectors = prior_vectors(config, saved, world, show)

    def work() -> RunData:
        dataset = open_dataset(config.data.train, config.data, device=world.device, show=show)
        check_settings_fit(config, dataset)
        restart = restart_on_new_shards(saved, dataset.manifest, config, run_uri)
        order = _order(config, dataset, world, saved)
        prior = build_prior(config.prior, config.model.latent_dim, vectors)
        validation, evaluator = _validation(config, dataset, show), None
        if validation is not None:
            seed, threads = config.run.seed, config.decoding_threads
            evaluator = Evaluator(validation, prior, world, seed, threads=threads)
        opened = _as_opened(config, dataset, order)
        return RunData(opened, dataset, order, validation, evaluator, prior, restart)

    return run_on_all_ranks(world, work)


def _order(config: RunConfig, dataset: Dataset, world: World, saved: Saved | None) -> SampleOrder:
    """Return the order of training; the checkpoint's lanes and window hold if there is one.

    Raises:
        ConfigError: there are more ranks than lanes.
    """
    before = saved.documents["data"] if saved else None
    lanes = before["lanes"] if before else config.lanes
    if world.size > lanes:
        raise ConfigError(
            f"{world.size} ranks for {lanes} lanes of data, so some had none; use at most "
            f"{lanes} ranks" + ("" if before else " or a larger train.global_batch_size")
        )
    manifest = dataset.manifest
    return SampleOrder(
        manifest.counts,
        seed=config.run.seed,
        global_batch_size=config.train.global_batch_size,
        lanes=lanes,
        window=before["shuffle_window"] if before else resolve_window(config.data, manifest),
    )


def _validation(config: RunConfig, dataset: Dataset, show: Show) -> Dataset | None:
    """Return the validation samples, of the shape of those in training, if there are any."""
    if config.data.validation is None:
        return None
    return open_dataset(config.data.validation, config.data, dataset.image_shape, show=show)


def _as_opened(config: RunConfig, dataset: Dataset, order: SampleOrder) -> RunConfig:
    """Return the configuration with everything filled in that the data decides."""
    channels, height, width = dataset.image_shape
    found: dict[str, Any] = {"lanes": order.lanes, "shuffle_window": order.window}
    found |= {"channels": channels, "resize": Resize.of(config.data).how}
    if height == width:
        found["image_size"] = height
    return config.model_copy(update={"data": config.data.model_copy(update=found)})
