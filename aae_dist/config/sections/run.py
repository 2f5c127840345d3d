"""Sections run, data, train, checkpoint, launch and wandb: all about a run but its networks."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat

from aae_dist.config import sections
from aae_dist.config.sections import Duration, Free, NonNegativeInt, PositiveInt, Section
from aae_dist.config.sections.model import IMPORT_PATH

Urls = str | Annotated[tuple[str, ...], Field(min_length=1)]
ROOTED = r"^[/~]"


class Cache(Section):
    """Local copies of remote shards on each node, shared by the node's ranks."""

    dir: str | None = Field(default=None, pattern=ROOTED)
    """Absolute path on a local disk of the node; by default in XDG_CACHE_HOME (~/.cache), or
    /tmp."""
    max_bytes: PositiveInt | None = None
    """Hard limit on the size of the cache, in bytes; by default half of the free disk space."""
    shard_seconds: Duration = 240.0
    """Timeout for downloading one shard, with all retries; then the shard counts as lost. A rank
    may wait for it twice, and other ranks wait for at most 600 s."""


Strength = Annotated[float, Field(ge=0.0, le=1.0)]


class Augment(Section):
    """Random augmentation of training images, a function of (seed, epoch, sample)."""

    flip: bool = False
    """Flip half of the images horizontally."""
    crop: NonNegativeInt = 0
    """Shift by up to this many pixels in each direction; the border is repeated."""
    brightness: Strength = 0.0
    """Multiply by a factor within 1 plus or minus this."""
    contrast: Strength = 0.0
    """Scale around the image's mean by a factor within 1 plus or minus this."""
    saturation: Strength = 0.0
    """Scale around the pixel's grey value by a factor within 1 plus or minus this; colour images
    only."""


class Columns(Section):
    """Kinds of the columns of a table, in this order; all of them are numbers of one vector."""

    real: NonNegativeInt = 0
    """Real columns, scaled to a variance of about 1."""
    counts: NonNegativeInt = 0
    """Whole numbers from 0 on."""
    categories: tuple[Annotated[int, Field(ge=2, le=sections.LARGEST)], ...] = ()
    """Number of values of each category, whose columns are one-hot."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """Columns of each group: real, counts, and each category."""
        return self.real, self.counts, *self.categories


Layout = Literal["NL", "NCL", "NLC", "NHW", "NCHW", "NHWC", "NDHW", "NCDHW", "NDHWC"]


class Data(Section):
    """Shards, and how their samples are decoded and ordered."""

    train: Urls
    """Training shards: a pattern, folder or manifest, or a list of them; local, s3://, gs://,
    az://, https:// or builtin://."""
    validation: Urls | None = None
    """Validation shards; without them there is no evaluation."""
    labelled: Urls | None = None
    """Shards of the labelled samples of `method.kind: semi_supervised`, read once: at most 256 MiB.
    Checkpoints keep a copy."""
    image_keys: tuple[str, ...] = ("png", "jpg", "jpeg", "webp")
    """Fields of a sample that may hold the image; the first one present is used. npy: arrays,
    vectors."""
    label_key: str | None = "cls"
    """Field of the integer label, or field:entry for an entry of a JSON object. Labels are used in
    pictures, scores, by encode and reconstruct, and in training where docs/parts.md says so."""
    image_size: PositiveInt | None = None
    """Height and width in pixels after resizing; by default those of the first image."""
    resize: Literal["cover", "stretch", "crop", "none"] | None = None
    """cover: scale to cover the square, crop the rest. stretch: change the aspect ratio. crop: crop
    without scaling. none: refuse other sizes. By default cover with image_size, else none."""
    crop_size: PositiveInt | None = None
    """Side in pixels of a centre square cropped before resizing (CelebA: 148, then image_size
    64)."""
    channels: PositiveInt | None = None
    """1 for grey, 3 for colour; by default as in the first image. Of arrays any number, which they
    must have."""
    layout: Layout | None = None
    """Dimensions of arrays: N samples, C channels, L of a signal, H W of an image, D H W of a
    volume. Samples come without the N, and a missing C is one channel. By default (C, H, W), (H, W)
    or vectors (D); signals and volumes need it."""
    columns: Columns | None = None
    """Kinds of the columns of vectors, for `method.reconstruction_loss: mixed` (docs/counts.md)."""
    augment: Augment = Augment()
    standardize: bool | None = None
    """Centre each feature before the encoder and divide all by one standard deviation, of the first
    1,024 samples of the order, and undo it behind the decoder, so that losses and outputs keep the
    data's units. By default for floats with `model.decoder_output: linear`; networks of your own
    get and return numbers as they are."""
    lanes: PositiveInt | None = None
    """Parallel sample streams of a global batch; must divide its size. By default the largest
    divisor up to 32."""
    shuffle_window: PositiveInt | Literal["full"] | None = None
    """Samples shuffled together within one lane; full: each epoch is one permutation of all
    samples. By default full for up to 4 GiB of data, else four average shards."""
    cache: Cache = Cache()
    decoded: Literal["auto", "none", "memory", "device"] = "auto"
    """Where decoded images are kept. memory: in memory shared by the node's ranks. device: on each
    rank's device as well. auto: memory if they take at most 2 GiB, else none."""
    threads: Annotated[int, Field(ge=0, le=2**16)] | None = None
    """Decoding threads per rank, by default `launch.cpus_per_worker`; 0: decode in the training
    thread."""
    max_bad_fraction: float = Field(default=0.01, ge=0, le=1)
    """Fraction of the samples that may be bad. Bad samples are skipped and logged; with more of
    them the run fails."""
    max_bad_samples: NonNegativeInt | None = None
    """The same limit as a number; with 0 the first bad sample fails the run."""
    max_consecutive_bad_samples: PositiveInt = 100
    """Consecutive bad samples, in the order of the slots of global batches, that fail the run."""
    accept_new_shards: bool = False
    """Continue with other shards than before when a run is resumed at the end of an epoch."""


Device = Literal["auto", "cpu", "cuda"]

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"


class Run(Section):
    """Identity and location of the run."""

    name: str = Field(pattern=NAME)
    """Folder of the run inside `storage`; the same name resumes it. Letters, digits and . - _
    only."""
    title: str | None = Field(default=None, min_length=1, max_length=100)
    """Name in captions of pictures and in W&B, by default `name`; trials of a sweep have their
    number."""
    storage: str = "~/aae_dist/runs"
    """Local path, s3://, gs:// or az://; all nodes must be able to reach it."""
    seed: sections.Seed = 0
    """Seed of every random draw: weights, sample order, prior samples, noise."""
    resume: Literal["auto", "must", "never"] = "auto"
    """auto: resume if there is a checkpoint, fail if none verifies. must: fail without one. never:
    fail if there is one; start at step 0 if none of them verifies."""
    init_from: str | None = None
    """URI of another run; this run starts at step 0 from its newest weights and moving average."""


class Train(Section):
    """Length, batch sizes and intervals; one step processes one global batch."""

    steps: PositiveInt | None = None
    """Number of steps; give this or `epochs`."""
    epochs: PositiveInt | None = None
    """Number of passes over the training data; give this or `steps`."""
    global_batch_size: PositiveInt = 128
    """Samples per step over all ranks, whatever their number."""
    micro_batch_size: PositiveInt | Literal["auto"] | None = None
    """Samples per forward pass of one rank; by default the rank's whole share of the global batch.
    auto: on CUDA the share, or the largest half, quarter ... of it that fits in memory (not yet
    tried on a GPU); elsewhere the share."""
    log_every_steps: PositiveInt = 50
    """Steps between log points: one console line, one record in metrics.jsonl, one W&B step."""
    evaluate_every_steps: PositiveInt | None = None
    """Steps between evaluations; by default only one at the end."""
    best_metric: str = "evaluation/score"
    """Evaluation metric whose lowest value selects the best checkpoint, which is kept as well; by
    default the sum of both goals, reconstruction and match (docs/metrics.md)."""
    max_skipped_updates: PositiveInt = 20
    """Consecutive updates that a phase may skip for non-finite gradients before the run fails."""
    max_rollbacks: NonNegativeInt = 0
    """Number of rollbacks to the last good checkpoint before the run fails. From the second
    rollback on, all learning rates are halved each time."""
    compare_ranks_every_steps: PositiveInt = 100
    """Steps between comparisons of the networks of all ranks, by 64-bit fingerprints."""
    precision: Literal["fp32", "tf32", "bf16", "fp64"] = "fp32"
    """tf32: matrix products on CUDA with 10-bit mantissas. bf16: encoder and decoder compute in
    bfloat16; weights, codes, losses and the discriminator stay fp32. fp64: for equality tests."""
    compile: bool = False
    """Compile the networks with torch.compile; the start takes about a minute longer."""
    ema_decay: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Decay per step of a moving average of encoder and decoder, for example 0.999; evaluations,
    pictures and `load_run` then use the average."""
    device: Device = "auto"
    """auto: the GPU that the launcher assigned to the rank, else the CPU."""


class OwnFeatures(Section):
    """Features by a network of the user's: one of `path`, `run` and `export`."""

    path: str | None = Field(default=None, pattern=IMPORT_PATH)
    """`package.module:Class`, a torch module that maps images to rows of features; it is called
    with sample_shape and `arguments`."""
    arguments: Free = {}
    """Further keyword arguments of the class."""
    run: str | None = None
    """URI of a run; the features are the codes of its newest checkpoint."""
    export: str | None = None
    """Path or URL of a program of torch.export, .pt2; load only those whose origin you trust."""


class Evaluation(Section):
    """What evaluations measure besides codes and reconstructions."""

    features: Literal["wavelet"] | OwnFeatures | None = None
    """Features by which samples and reconstructions are scored (docs/metrics.md). wavelet: sizes of
    Haar wavelet coefficients, for images; or a network of your own; null: no scores of samples."""


class Checkpoint(Section):
    """When checkpoints are saved, and how many are kept."""

    every_steps: PositiveInt | None = None
    """Save at every multiple of this step."""
    every_seconds: Duration | None = 300.0
    """Save when this many seconds have passed since the last save, on the clock of rank 0; null: do
    not save by time."""
    keep: PositiveInt = 3
    """Number of newest checkpoints to keep, besides the best one by `train.best_metric`."""


_CPU_LIMIT = Path("/sys/fs/cgroup/cpu.max")


def available_cores() -> int:
    """Return the threads that `OMP_NUM_THREADS` asks for, or the cores that a process may use."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdecimal() and int(asked[:4]) > 0:
        return int(asked[:4])
    return usable_cores()


def usable_cores() -> int:
    """Return the cores that a process may use, here or in its container."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with suppress(OSError, ValueError):  # a container's share of the machine
        quota, period = map(int, _CPU_LIMIT.read_text().split())
        return max(1, min(cores or 1, quota // period))
    return cores or 1


class Launch(Section):
    """Processes and machines; they change a run's numbers at most by floating-point rounding."""

    kind: Literal["ray", "local"] = "ray"
    """ray: Ray Train starts the workers. local: this process, or the ranks that torchrun
    started; trials of a sweep run in processes of this machine."""
    workers: PositiveInt | tuple[PositiveInt, PositiveInt] = 2
    """Data-parallel ranks under Ray, or [fewest, most]: the run then uses as many as there are
    resources for, and changes their number while it runs."""
    resize_seconds: Duration = 60.0
    """With [fewest, most] workers: seconds between checks for resources for more of them."""
    cpus_per_worker: sections.Cores | None = None
    """CPU cores and torch threads per rank, under both launchers. By default all cores of the
    machine (or `OMP_NUM_THREADS`) for kind=local as one process, else 1."""
    gpus_per_worker: NonNegativeFloat | Literal["auto"] = "auto"
    """auto: 1 if any live node or autoscaler group has GPUs, else 0. Fractions: for a single worker
    only."""
    max_failures: NonNegativeInt = 8
    """Restarts of the workers after a crash or the loss of a node, over the whole run."""
    hang_timeout_seconds: Duration | None = 60.0
    """A rank that makes no progress for this long prints its stacks and exits; null: no limit."""
    max_wait_minutes: Duration = 30.0
    """Longest wait for the cluster to provide the resources."""

    @property
    def cpus(self) -> int:
        """CPU cores and torch threads of a worker under Ray."""
        return self.cpus_per_worker or 1

    @property
    def threads(self) -> int:
        """Torch threads of this process, as a rank or for a trained run."""
        alone = self.kind == "local" and os.environ.get("WORLD_SIZE", "1") == "1"
        return self.cpus_per_worker or (available_cores() if alone else 1)

    @property
    def is_elastic(self) -> bool:
        """Whether the number of ranks may change during the run."""
        return self.fewest_workers < self.most_workers

    @property
    def fewest_workers(self) -> int:
        """Ranks that the run needs to start."""
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def most_workers(self) -> int:
        """Ranks that the run uses if there are resources."""
        return self.workers if isinstance(self.workers, int) else self.workers[1]


class Wandb(Section):
    """Weights & Biases."""

    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    """auto: online if there is an API key, else disabled, with a message."""
    project: str = "aae_dist"
    """W&B project of the run."""
    entity: str | None = None
    """User or team that owns the project; by default that of the API key."""
    group: str | None = None
    """Group of runs that W&B shows together; for trials of a sweep by default the sweep's name."""
    tags: tuple[str, ...] = ()
    """Tags to filter by."""
