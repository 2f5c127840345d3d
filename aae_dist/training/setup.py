"""Everything a run trains with, each part made from the parts before it."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from aae_dist.checkpoints import Checkpoint, CheckpointStore, WeightAverage
from aae_dist.config import Augment, RunConfig, sections
from aae_dist.data import Augmenter, Batch, BatchLoader, SampleOrder, rank_rows
from aae_dist.data.cache.prefetch import ShardPrefetcher
from aae_dist.distributed.world import World, run_on_all_ranks, run_on_rank_zero
from aae_dist.distributed.wrappers import reset_compiler, trainable_parameters, unwrap_ddp
from aae_dist.errors import CheckpointError, ConfigError, LaunchError
from aae_dist.methods import StepInputs, build_method
from aae_dist.methods.method import LabelledSet, Modules
from aae_dist.models import DTYPES, Autoencoder, build_networks, build_posterior, run_encoder
from aae_dist.models.autoencoder import Posterior
from aae_dist.priors import EmpiricalPrior
from aae_dist.storage import Storage, open_storage
from aae_dist.training import checkpointer, recorder
from aae_dist.training.data import TrainingData, open_data
from aae_dist.training.folder import Reporter, RunFolder
from aae_dist.training.labelled import labelled_set
from aae_dist.training.lock import RunLock
from aae_dist.training.state import TrainState
from aae_dist.training.watchdog import Watchdog
from aae_dist.utils.text import Advance, no_progress, progress, redacted


@contextmanager
def run_lock(run: Storage, world: World, launch_id: str) -> Iterator[RunLock | None]:
    """Hold the run's lock on rank 0; its LaunchError is raised on every rank."""
    held: list[RunLock] = []

    def acquire() -> None:
        run.check_writable()
        held.append(RunLock.acquire(run, launch_id))

    run_on_rank_zero(world, acquire)
    try:
        yield held[0] if held else None
    finally:
        for lock in held:
            lock.release()


class TrainingSetup:
    """The parts of a run on one rank, with the state of the newest checkpoint loaded.

    Attributes:
        config: the configuration, including the values inferred from the data.
        autoencoder: the networks to evaluate: the averaged weights if there is an average.
        total_samples: after the last step; learning rates are functions of samples seen over these.
    """

    def __init__(
        self,
        config: RunConfig,
        world: World,
        reporter: Reporter,
        folder: RunFolder,
        lock: RunLock | None,
        watchdog: Watchdog,
    ) -> None:
        """Build the parts and load the newest checkpoint; a collective.

        An AaeDistError is the same on every rank, whichever rank met the problem.
        """
        self.world, self.reporter, self.folder = world, reporter, folder
        self.watchdog, self.lock = watchdog, lock
        # Checkpoint; only rank 0, which holds the lock, writes.
        held = (lock.check, lock.attempt) if lock else (lambda: None, 0)
        self.store = CheckpointStore(folder.storage, config.checkpoint.keep, *held, reporter.line)
        checkpoint = checkpointer.newest_checkpoint(self.store, config, folder, world)
        if checkpoint:
            config = checkpointer.of_checkpoint(config, checkpoint)
            config = checkpointer.with_values_of_null(config, checkpoint)
        self.goodput = recorder.Goodput(checkpoint.metadata.get("goodput") if checkpoint else None)
        # Data.
        self.data = self._open_data(config, checkpoint)
        self.config = config = self.data.config
        # Networks and method.
        _set_up_torch(config)
        shape, prior = self.data.train.image_shape, self.data.prior
        self.networks = networks = build_networks(config, shape, world.device)
        if self.data.scaling:
            networks.set_scaling(*self.data.scaling)
        posterior = build_posterior(config.posterior, config.prior)
        labelled = labelled_set(config, self.data.train, checkpoint, world)
        self.inputs = _step_inputs(self.data, posterior, world, labelled)
        unit = self.data.baseline_loss or 1.0
        self.method = build_method(config, networks, prior, shape, world, unit)
        # State.
        decay = config.train.ema_decay
        average = None if decay is None else WeightAverage(networks, decay)
        self.autoencoder = Autoencoder(average.networks if average else networks, posterior)
        vectors = prior.vectors_MZ if isinstance(prior, EmpiricalPrior) else None
        self.state = TrainState(networks, self.method.optimizers, average, vectors, labelled)
        run_on_all_ranks(world, lambda: self._load(checkpoint))
        self._fit_micro_batch()
        self.last_step, self.total_samples = end_of_run(config, self.data.order, self.state)
        if problem := nothing_left(config, self.data.order, self.state):
            self.log(f"{folder.uri}: {problem}")

    @property
    def metadata(self) -> dict[str, Any]:
        """The configuration and the data, for checkpoints."""
        config = redacted(self.config.model_dump(mode="json"))
        return {"config": config, "data": self.data.metadata}

    def restore(self, checkpoint: Checkpoint) -> None:
        """Load a checkpoint of this run into the live networks and optimizers."""
        self.state.load(checkpoint.tensors, checkpoint.metadata["state"])
        other_shards = checkpoint.metadata["data"]["manifest"] != self.data.train.manifest.id
        if self.data.new_shards is not None and other_shards:
            self.data.new_shards.move(self.state, self.data.order)

    @contextmanager
    def open_batches(self) -> Iterator[Iterable[Batch]]:
        """Open this rank's batches from the state's position to the last step; a collective."""
        data, world, position = self.data, self.world, self.state.position
        first = world.rank - world.local_rank  # of this node
        rows, low, high = (
            rows_of_rank(data, world, rank)
            for rank in (world.rank, first, first + world.local_size - 1)
        )
        node_rows = slice(low.start, high.stop)
        # Memory of the cache of remote shards that ranks take during an evaluation.
        spare = world.local_size * (0 if data.validation is None else data.validation.copy_bytes)
        shards = run_on_all_ranks(
            world,
            lambda: ShardPrefetcher.start(data.train, data.order, rows, node_rows, position, spare),
        )
        loader = BatchLoader(
            data.train,
            data.order,
            rows=rows,
            position=position,
            num_steps=self.last_step - self.state.step,
            threads=self.config.decoding_threads,
            world=world,
            shards=shards,
            device=world.device if world.device.type == "cuda" else torch.device("cpu"),
        )
        augment = self.config.data.augment
        with loader as batches:
            if augment == Augment():
                yield batches
            else:
                yield Augmenter(augment, self.config.run.seed, rows).batches(batches)

    def log(self, text: str) -> None:
        if self.world.is_main:
            self.reporter.line(text)

    def _open_data(self, config: RunConfig, checkpoint: Checkpoint | None) -> TrainingData:
        with self.watchdog.section("opening the data"):
            show = partial(_show_counting, self.world, self.reporter, self.watchdog)
            data = open_data(config, self.world, checkpoint, self.folder.uri, show)
            self.watchdog.busy = data.train.slow_sample
        for line in data.notes:
            self.log(f"warning: {line}")
        return data

    def _load(self, checkpoint: Checkpoint | None) -> None:
        if checkpoint is not None:
            self.restore(checkpoint)
            self.log(f"resuming {self.folder.uri} at step {checkpoint.step} with {self.world}")
            return
        source = self.config.run.init_from
        weights = f" from weights of {source}" if source else ""
        self.log(f"starting {self.folder.uri} with {self.world}{weights}")
        if source:
            other = CheckpointStore(open_storage(source), keep=1).newest()
            if other is None:
                raise CheckpointError(f"run.init_from={source} has no checkpoint that verifies")
            self.state.start_from(other.tensors)

    def _fit_micro_batch(self) -> None:
        """Set the micro-batch size for `train.micro_batch_size: auto`, which is for CUDA."""
        # Measured once: a run that resumes on as many ranks sums gradients in the same parts.
        train, state = self.config.train, self.state
        if train.micro_batch_size != "auto" or self.world.device.type != "cuda":
            return
        ranks = [self.world.size, train.global_batch_size]
        if not state.micro_batch or state.micro_batch[1:] != ranks:
            share = self.inputs.rows.stop - self.inputs.rows.start
            shape = (share, *self.data.train.image_shape)
            trial = Trial(self.method.modules, shape, self.inputs.dtype)
            state.micro_batch = [measure(share, trial, self.world), *ranks]
            if train.compile:
                reset_compiler()  # the sizes that were tried count as versions of compiled code
        self.inputs = replace(self.inputs, micro_batch_size=state.micro_batch[0])


@contextmanager
def _show_counting(
    world: World, reporter: Reporter, watchdog: Watchdog, label: str, total: int, unit: str
) -> Iterator[Advance]:
    """Show progress of counting shards on rank 0; on every rank, keep the watchdog quiet."""
    show = partial(progress, write=reporter.line) if world.is_main else no_progress
    with show(label, total, unit) as advance:

        def on_count(count: int) -> None:
            watchdog.alive()
            advance(count)

        yield on_count


def _set_up_torch(config: RunConfig) -> None:
    """Let fp32 products on CUDA keep their 23 bits, or 10 of them with tf32."""
    torch.backends.cuda.matmul.allow_tf32 = config.train.precision == "tf32"
    torch.backends.cudnn.allow_tf32 = config.train.precision == "tf32"
    # cuDNN's fastest sums of a convolution's gradients differ from run to run, and so would resumed
    # runs. Not measured: no GPU was at hand.
    torch.backends.cudnn.deterministic = True
    if config.train.compile:
        reset_compiler()


def _step_inputs(
    data: TrainingData, posterior: Posterior, world: World, labelled: LabelledSet | None
) -> StepInputs:
    train = data.config.train
    return StepInputs(
        seed=data.config.run.seed,
        prior=data.prior,
        posterior=posterior,
        rows=rows_of_rank(data, world, world.rank),
        global_batch_size=train.global_batch_size,
        micro_batch_size=None if train.micro_batch_size == "auto" else train.micro_batch_size,
        world=world,
        dtype=DTYPES[train.precision],
        is_guided=data.config.method.kind == "label_guided",
        labelled=labelled,
    )


def rows_of_rank(data: TrainingData, world: World, rank: int) -> slice:
    """Return the rows of a rank in the global batch."""
    batch = data.config.train.global_batch_size
    return rank_rows(rank, world.size, data.order.lanes, batch)


def end_of_run(config: RunConfig, order: SampleOrder, state: TrainState) -> tuple[int, int]:
    """Return the last step of the run, and the samples seen after it."""
    # With `train.epochs` the position determines the end, with `train.steps` the number of steps;
    # they differ only if the global batch size has changed during the run.
    step, position = state.step, state.position
    if config.train.epochs is not None:
        end = config.train.epochs * order.lane_length
        if order.samples_seen(end) > sections.LARGEST_SAMPLES:
            raise ConfigError(
                f"train.epochs={config.train.epochs} of this data are more than 2^62 samples, "
                "which nothing can count; write fewer"
            )
        return step + _steps_between(order, position, end), order.samples_seen(end)
    assert config.train.steps is not None
    end = _position_after(order, position, config.train.steps - step)
    return config.train.steps, order.samples_seen(end)


def nothing_left(config: RunConfig, order: SampleOrder, state: TrainState) -> str | None:
    """Return a line when the run has done more than its configuration asks for."""
    steps, epochs = config.train.steps, config.train.epochs
    done = state.position / order.lane_length
    if steps is not None and state.step > steps:
        what = f"train.steps={steps} is less than the {state.step} steps"
    elif epochs is not None and done > epochs:
        what = f"train.epochs={epochs} is less than the {done:.4g} epochs"
    else:
        return None
    return (
        f"{what} that are done: nothing is trained, and its checkpoints stay as they are. "
        "To train on, raise it; for another run, change run.name."
    )


def _steps_between(order: SampleOrder, position: int, end: int) -> int:
    """Return the steps from `position` to the epoch border `end`; a step never spans two epochs."""
    if position >= end:
        return 0
    epoch, offset = divmod(position, order.lane_length)
    first = -(-(order.lane_length - offset) // (order.global_batch_size // order.lanes))
    return first + (end // order.lane_length - epoch - 1) * order.steps_per_epoch


def _position_after(order: SampleOrder, position: int, num_steps: int) -> int:
    epoch, offset = divmod(position, order.lane_length)
    slots = order.global_batch_size // order.lanes
    first = -(-(order.lane_length - offset) // slots)
    if num_steps < first:
        return position + max(0, num_steps) * slots
    more_epochs, rest = divmod(num_steps - first, order.steps_per_epoch)
    return (epoch + 1 + more_epochs) * order.lane_length + rest * slots


def largest_that_fits(share: int, fits: Callable[[int], bool]) -> int:
    """Return the first of share, share / 2, ... 1 that fits; LaunchError if not even 1 does."""
    size = share
    while not fits(size):
        if size == 1:
            raise LaunchError(
                "not even one sample fits the device's memory (train.micro_batch_size=auto); use a "
                "smaller model, train.precision=bf16 or a larger GPU"
            )
        size = -(-size // 2)
    return size


def measure(share: int, fits: Callable[[int], bool], world: World) -> int:
    """Return the size that fits on every rank; a collective."""
    found = run_on_all_ranks(world, lambda: largest_that_fits(share, fits))
    smallest = torch.tensor([found], device=world.device)
    if world.size > 1:
        dist.all_reduce(smallest, dist.ReduceOp.MIN)
    return int(smallest)


class Trial:
    """Tries whether a step fits the memory, without a collective and without changing networks."""

    def __init__(self, modules: Modules, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        """Call the networks as training does, in bfloat16 or compiled.

        The method's optimizers have allocated their state. `shape` is that of this rank's share of
        the global batch, (B, C, H, W).
        """
        self._loss = modules.reconstruction_loss
        self._posterior, self._z_dim = modules.posterior, modules.prior.latent_dim
        self._encoder, self._decoder = unwrap_ddp(modules.encoder), unwrap_ddp(modules.decoder)
        self._discriminator = modules.discriminator and unwrap_ddp(modules.discriminator)
        networks = (self._encoder, self._decoder, self._discriminator)
        self._networks = [network for network in networks if network is not None]
        self._shape, self._dtype = shape, dtype

    def __call__(self, size: int) -> bool:
        """Return whether forward and backward of `size` samples fit."""
        buffers = [(b, b.clone()) for module in self._networks for b in module.buffers()]
        try:
            self._step(size)
            fits = True
        except torch.OutOfMemoryError:
            fits = False
        for buffer, before in buffers:  # a network of the user may have some
            buffer.copy_(before)
        torch.cuda.empty_cache()  # does nothing where CUDA was not used
        return fits

    def _step(self, size: int) -> None:
        parameters = [p for m in self._networks for p in trainable_parameters(m).values()]
        # The whole share is on the device during a step, and with several micro-batches so is the
        # sum of the gradients of those before.
        share_BCHW = torch.zeros(self._shape, dtype=self._dtype, device=parameters[0].device)
        summed = [torch.empty_like(p) for p in parameters] if size < len(share_BCHW) else []
        x_BCHW = share_BCHW[:size]
        noise_BN = x_BCHW.new_zeros(len(x_BCHW), self._posterior.noise_dim(self._z_dim))
        labels_B = torch.zeros(len(x_BCHW), dtype=torch.int64, device=x_BCHW.device)
        outputs_BP = run_encoder(self._encoder, self._posterior, x_BCHW, noise_BN, labels_B)
        z_BZ = self._posterior.sample(outputs_BP, noise_BN)
        loss = self._loss(self._decoder(z_BZ), x_BCHW).sum()
        if self._discriminator is not None:
            loss = loss + self._discriminator(torch.cat([z_BZ.detach(), z_BZ])).sum()
        torch.autograd.grad(loss, parameters, allow_unused=True)
        del summed
