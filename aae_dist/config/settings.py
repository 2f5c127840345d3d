"""Where, on what, how long and with which machines: everything that is not the model."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from aae_dist.config.section import Section

Device = Literal["auto", "cpu", "cuda"]
Urls = str | Annotated[tuple[str, ...], Field(min_length=1)]

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
ROOTED = r"^[/~]"


class Run(Section):
    """The run's identity and place."""

    name: str = Field(pattern=NAME)
    """Folder of the run inside `storage`; the same name resumes. Letters, digits and . - _ only."""
    storage: str = "~/aae_dist/runs"
    """Local path, s3://, gs:// or az:// that all nodes can reach."""
    seed: NonNegativeInt = 0
    """Key of every random draw: weights, order, prior samples, noise."""
    resume: Literal["auto", "must", "never"] = "auto"
    """auto resumes if there is a checkpoint; must insists on one; never refuses to find one."""
    init_from: str | None = None
    """URI of another run whose newest weights, and average, this run starts from, at step 0."""


class Cache(Section):
    """Copies of remote shards on each node, shared by the node's ranks."""

    dir: str | None = Field(default=None, pattern=ROOTED)
    """Absolute folder on the node's own disk; by default in XDG_CACHE_HOME (~/.cache), or /tmp."""
    max_bytes: PositiveInt | None = None
    """Hard bound on what lies there, in bytes; by default half of what the disk has free."""
    shard_seconds: PositiveFloat = 240.0
    """Longest time for one shard to arrive, with all retries; then it counts as lost. It may be
    waited for twice, and other ranks wait for 600 s at most."""


Strength = Annotated[float, Field(ge=0.0, le=1.0)]


class Augment(Section):
    """Random changes of training images, keyed by (seed, epoch, sample)."""

    flip: bool = False
    """Mirror half of the images left to right."""
    crop: NonNegativeInt = 0
    """Shift by up to so many pixels up, down, left and right; the border is repeated."""
    brightness: Strength = 0.0
    """Multiply by up to 1 plus or minus this."""
    contrast: Strength = 0.0
    """Stretch around the image's mean by up to 1 plus or minus this."""
    saturation: Strength = 0.0
    """Stretch around the pixel's grey by up to 1 plus or minus this; colour images only."""


class Data(Section):
    """Shards and the order they are read in."""

    train: Urls
    """Training shards: pattern, folder, manifest, or a list; local, s3://, gs://, az://, https://, builtin://."""
    validation: Urls | None = None
    """Validation shards; without them nothing is evaluated."""
    image_keys: tuple[str, ...] = ("png", "jpg", "jpeg", "webp")
    """Fields that hold the image; the first that a sample has is used. npy: arrays, vectors."""
    label_key: str | None = "cls"
    """Field of the integer label, or field:entry of a JSON object; for pictures, encode and
    reconstruct."""
    image_size: PositiveInt | None = None
    """Height and width in pixels that images are brought to; by default those of the first one."""
    resize: Literal["cover", "stretch", "crop", "none"] | None = None
    """cover: scale, cut off what stands out; stretch; crop: cut only; none: refuse other sizes.
    By default cover with image_size, else none."""
    crop_size: PositiveInt | None = None
    """Centre square of so many pixels that is cut out before (CelebA: 148, then image_size 64)."""
    channels: Literal[1, 3] | None = None
    """1 for grey, 3 for colour; by default those of the first image."""
    augment: Augment = Augment()
    lanes: PositiveInt | None = None
    """Sample streams of a global batch; must divide it. By default its largest divisor up to 32."""
    shuffle_window: PositiveInt | Literal["full"] | None = None
    """Samples shuffled together in a lane, or full: an epoch is one permutation, as up to 4 GiB."""
    cache: Cache = Cache()
    decoded: Literal["auto", "none", "memory", "device"] = "auto"
    """Keep decoded images: in memory that a node's ranks share, or on each rank's device as well;
    auto means memory when they take at most 2 GiB, else none."""
    threads: NonNegativeInt | None = None
    """Decoding threads of a rank, by default `launch.cpus_per_worker`; 0: none beside training."""
    max_bad_fraction: float = Field(default=0.01, ge=0, le=1)
    """Part of the samples that may be bad: they are left out and listed; with more the run ends."""
    max_bad_samples: NonNegativeInt | None = None
    """The same as a number; 0 ends the run at the first bad sample."""
    max_bad_in_a_row: PositiveInt = 100
    """Bad samples in a row, in the order of the slots of global batches, that end the run."""
    accept_new_shards: bool = False
    """Go on with other shards than before, where a run is resumed at the end of an epoch."""


class Train(Section):
    """Length, batch sizes and intervals, in steps of one global batch."""

    steps: PositiveInt | None = None
    """Steps to train; give this or `epochs`."""
    epochs: PositiveInt | None = None
    """Passes over the training data; give this or `steps`."""
    global_batch_size: PositiveInt = 128
    """Samples per step, summed over all ranks, however many there are."""
    micro_batch_size: PositiveInt | Literal["auto"] | None = None
    """Samples per forward pass on one rank; by default a rank's whole share of the global batch.
    auto: on CUDA the share, or the half, quarter ... of it that fits the memory (never tried on a
    GPU so far); elsewhere the share."""
    log_every_steps: PositiveInt = 50
    """Steps between two log points: a line, a record of metrics.jsonl, W&B."""
    evaluate_every_steps: PositiveInt | None = None
    """By default at the end only."""
    best_metric: str = "prior_match/c2st"
    """Metric of evaluations whose lowest value marks the best checkpoint, which is kept, too."""
    max_skipped_updates: PositiveInt = 20
    """Updates in a row that a phase may skip for non-finite gradients before the run ends."""
    max_roll_backs: NonNegativeInt = 0
    """Times it goes back to the last good checkpoint instead; from the second on at half the lr."""
    compare_ranks_every_steps: PositiveInt = 100
    """Steps between two comparisons of 64-bit fingerprints of all networks over the ranks."""
    precision: Literal["fp32", "tf32", "bf16", "fp64"] = "fp32"
    """tf32: products on CUDA with 10 bits. bf16: encoder and decoder compute in bfloat16; weights,
    codes, losses and discriminator stay fp32. fp64 serves proofs of equality."""
    compile: bool = False
    """Train with code that torch.compile makes of the networks; starts a minute later."""
    ema_decay: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Keep a moving average of encoder and decoder, for example 0.999 a step; scores, pictures and
    `load_run` then use it."""
    device: Device = "auto"
    """auto takes the GPU that the launcher gave the rank, else the CPU."""


class Checkpoint(Section):
    """When to save and what to keep."""

    every_steps: PositiveInt | None = None
    """Save at multiples of this step."""
    every_seconds: PositiveFloat | None = 300.0
    """Save when this long has passed since the last save, in seconds by rank 0; null: never."""
    keep: PositiveInt = 3
    """Newest checkpoints to keep; the best one by `train.best_metric` is kept beside them."""


class Launch(Section):
    """Processes and machines; changes the numbers that a run computes by float rounding at most."""

    kind: Literal["ray", "local"] = "ray"
    """ray: Ray Train starts the workers. local: this process, or the world torchrun started."""
    workers: PositiveInt | tuple[PositiveInt, PositiveInt] = 2
    """Data-parallel ranks under Ray, or [fewest, most]: it goes on with what is there."""
    resize_seconds: PositiveFloat = 60.0
    """With [fewest, most] workers: seconds between two looks for room for more of them."""
    cpus_per_worker: PositiveInt = 1
    """CPU cores, and torch threads, of a rank, under both launchers."""
    gpus_per_worker: NonNegativeFloat | Literal["auto"] = "auto"
    """auto: 1 if any live node or autoscaler group has GPUs, else 0. Parts: for one worker."""
    max_failures: NonNegativeInt = 8
    """Times that Ray restarts the workers after a crash or the loss of a node, in the whole run."""
    max_stuck_seconds: PositiveFloat | None = 60.0
    """A rank without progress for this long says where it hangs and ends; null: never."""
    max_wait_minutes: PositiveFloat = 30.0
    """Longest wait for the cluster to have the wanted resources."""

    @property
    def is_elastic(self) -> bool:
        """Whether the number of ranks may change while the run goes on."""
        return self.fewest_workers < self.most_workers

    @property
    def fewest_workers(self) -> int:
        """Ranks that the run needs to start."""
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def most_workers(self) -> int:
        """Ranks that the run takes when there is room."""
        return self.workers if isinstance(self.workers, int) else self.workers[1]


class Wandb(Section):
    """Weights & Biases."""

    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    """auto: online with an API key, else off, saying so."""
    project: str = "aae_dist"
    """Where the run is shown."""
    entity: str | None = None
    """Whose project it is: a user or a team; by default the key's."""
    group: str | None = None
    """Runs of one group are shown together; by default the sweep's name for its trials."""
    tags: tuple[str, ...] = ()
    """Labels to search for."""
