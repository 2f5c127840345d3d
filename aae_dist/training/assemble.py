"""The parts of a run, each made from the parts before it."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch

from aae_dist.config import RunConfig
from aae_dist.config.settings import Augment
from aae_dist.data import (
    Augmenter,
    Batch,
    BatchLoader,
    Dataset,
    Order,
    open_dataset,
    rank_rows,
    resolve_window,
)
from aae_dist.data.progress import Show
from aae_dist.data.resize import Resize
from aae_dist.distributed.accelerated import fresh_compiler
from aae_dist.distributed.exchange import Exchange
from aae_dist.distributed.reductions import together
from aae_dist.distributed.world import World
from aae_dist.errors import ConfigError
from aae_dist.evaluation import Evaluator
from aae_dist.methods import Method, StepInputs, build_method
from aae_dist.models import Autoencoder, Networks, build_networks, build_posterior
from aae_dist.models.build import DTYPES
from aae_dist.priors import Prior, build_prior
from aae_dist.training.checkpoint import Saved
from aae_dist.training.data_checks import check_settings_fit
from aae_dist.training.micro_batch import Trial, measure
from aae_dist.training.new_shards import Restart, restart_on_new_shards
from aae_dist.training.prior_vectors import prior_vectors
from aae_dist.training.resume import as_found
from aae_dist.training.state import TrainState
from aae_dist.training.weight_average import WeightAverage


@dataclass(frozen=True)
class RunData:
    """What a run reads."""

    config: RunConfig
    """The configuration with everything filled in that the data decides."""
    train: Dataset
    order: Order
    evaluator: Evaluator | None
    prior: Prior
    restart: Restart | None = None
    """Where to begin when the shards are not those of the checkpoint."""
    validation_copy_bytes: int = 0
    """What a rank takes of the cache of remote shards while it evaluates."""
    validation_id: str = ""
    """Id of the validation shards, if there are any."""

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
        before = saved.documents["data"] if saved else None
        restart = restart_on_new_shards(saved, dataset.manifest, config, run_uri)
        lanes = before["lanes"] if before else config.lanes
        window = (
            before["shuffle_window"] if before else resolve_window(config.data, dataset.manifest)
        )
        order = Order(
            dataset.manifest.counts,
            seed=config.run.seed,
            global_batch_size=config.train.global_batch_size,
            lanes=lanes,
            window=window,
        )
        if world.size > lanes:
            raise ConfigError(
                f"{world.size} ranks for {lanes} lanes of data, so some had none; use at most "
                f"{lanes} ranks" + ("" if before else " or a larger train.global_batch_size")
            )
        prior = build_prior(config.prior, config.model.latent_dim, vectors)
        evaluator, copy_bytes, validation_id = None, 0, ""
        if config.data.validation is not None:
            validation = open_dataset(
                config.data.validation, config.data, dataset.image_shape, show=show
            )
            copy_bytes, validation_id = validation.copy_bytes, validation.manifest.id
            evaluator = Evaluator(
                validation, prior, world, config.run.seed, threads=config.decoding_threads
            )
        channels, height, width = dataset.image_shape
        found = {"lanes": lanes, "shuffle_window": window, "channels": channels}
        found["resize"] = Resize.of(config.data).how
        if height == width:
            found["image_size"] = height
        data = config.data.model_copy(update=found)
        config_found = config.model_copy(update={"data": data})
        return RunData(
            config_found, dataset, order, evaluator, prior, restart, copy_bytes, validation_id
        )

    return together(world, work)


@dataclass(frozen=True)
class Engine:
    """What a run trains."""

    networks: Networks
    method: Method
    inputs: StepInputs
    autoencoder: Autoencoder
    """What is evaluated: the averaged weights if there is an average."""
    average: WeightAverage | None


def build_engine(data: RunData, world: World) -> Engine:
    """Return networks, method and inputs; a collective, as networks are made data parallel."""
    config = data.config
    set_precision(config.train.precision)
    if config.train.compile:
        fresh_compiler()
    networks = build_networks(config, data.train.image_shape, world.device)
    posterior = build_posterior(config.posterior)
    micro_batch = config.train.micro_batch_size
    inputs = StepInputs(
        seed=config.run.seed,
        prior=data.prior,
        posterior=posterior,
        rows=_rows(data, world),
        global_batch_size=config.train.global_batch_size,
        micro_batch_size=None if micro_batch == "auto" else micro_batch,
        world=world,
        dtype=DTYPES[config.train.precision],
    )
    method = build_method(config, networks, data.prior, data.train.image_shape, world)
    decay = config.train.ema_decay
    average = WeightAverage(networks, decay) if decay is not None else None
    evaluated = average.networks if average else networks
    return Engine(networks, method, inputs, Autoencoder(evaluated, posterior), average)


def fit_memory(engine: Engine, state: TrainState, data: RunData, world: World) -> Engine:
    """Return the engine with the micro-batches that `train.micro_batch_size: auto` finds on CUDA.

    Measured once: as many ranks that go on from a checkpoint add up gradients as those before.
    """
    train = data.config.train
    if train.micro_batch_size != "auto" or world.device.type != "cuda":
        return engine
    ranks = [world.size, train.global_batch_size]
    if not state.micro_batch or state.micro_batch[1:] != ranks:
        rows = engine.inputs.rows
        share = rows.stop - rows.start
        shape = (share, *data.train.image_shape)
        trial = Trial(engine.method.modules, shape, engine.inputs.dtype)
        state.micro_batch = [measure(share, trial, world), *ranks]
        if train.compile:
            fresh_compiler()  # the sizes that were tried count among the versions that torch makes
    return replace(engine, inputs=replace(engine.inputs, micro_batch_size=state.micro_batch[0]))


def set_precision(precision: str) -> None:
    """Let fp32 products on CUDA keep their 23 bits, or 10 of them where tf32 is wanted."""
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    # cuDNN's fastest sums of a convolution's gradients differ from run to run, and so would resumed
    # runs. Not measured: no GPU was at hand.
    torch.backends.cudnn.deterministic = True


def open_loader(data: RunData, world: World, position: int, num_steps: int) -> BatchLoader:
    """Return this rank's batches from `position` on; a collective.

    Raises:
        ConfigError: the cache of remote shards is too small; on every rank, if on one.
    """
    rows, node_rows = _rows(data, world), _node_rows(data, world)
    spare = world.local_size * data.validation_copy_bytes
    together(world, lambda: data.train.follow(data.order, rows, node_rows, position, spare))
    return BatchLoader(
        data.train,
        data.order,
        rows=rows,
        position=position,
        num_steps=num_steps,
        threads=data.config.decoding_threads,
        exchange=Exchange(world),
        device=world.device if world.device.type == "cuda" else torch.device("cpu"),
    )


def augmented(data: RunData, world: World, batches: Iterable[Batch]) -> Iterable[Batch]:
    """Return the batches with their images changed as `data.augment` says."""
    augment = data.config.data.augment
    if augment == Augment():
        return batches
    return Augmenter(augment, data.config.run.seed, _rows(data, world)).batches(batches)


def _rows(data: RunData, world: World) -> slice:
    return _rows_of(data, world, world.rank)


def _node_rows(data: RunData, world: World) -> slice:
    """Return the rows of all ranks of this node."""
    first = world.rank - world.local_rank
    last = _rows_of(data, world, first + world.local_size - 1)
    return slice(_rows_of(data, world, first).start, last.stop)


def _rows_of(data: RunData, world: World, rank: int) -> slice:
    batch = data.config.train.global_batch_size
    return rank_rows(rank, world.size, data.order.lanes, batch)
