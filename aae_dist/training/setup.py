"""The parts of a run, each made from the parts before it."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch

from aae_dist.checkpoints.weights import WeightAverage
from aae_dist.config.sections.data import Augment
from aae_dist.data import (
    Augmenter,
    Batch,
    BatchLoader,
    rank_rows,
)
from aae_dist.data.cache.prefetch import ShardPrefetcher
from aae_dist.distributed.collectives import Exchange, run_on_all_ranks
from aae_dist.distributed.world import World
from aae_dist.distributed.wrappers import reset_compiler
from aae_dist.methods import Method, StepInputs, build_method
from aae_dist.models import Autoencoder, Networks, build_networks, build_posterior
from aae_dist.models.build import DTYPES
from aae_dist.training.micro_batch import Trial, measure
from aae_dist.training.run_data import RunData
from aae_dist.training.state import TrainState


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
        reset_compiler()
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
            reset_compiler()  # the sizes that were tried count among the versions that torch makes
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
    # What ranks take of the cache of remote shards while they evaluate.
    spare = world.local_size * (0 if data.validation is None else data.validation.copy_bytes)
    shards = run_on_all_ranks(
        world,
        lambda: ShardPrefetcher.start(data.train, data.order, rows, node_rows, position, spare),
    )
    return BatchLoader(
        data.train,
        data.order,
        rows=rows,
        position=position,
        num_steps=num_steps,
        threads=data.config.decoding_threads,
        exchange=Exchange(world),
        shards=shards,
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
