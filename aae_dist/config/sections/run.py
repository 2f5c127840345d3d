"""Sections run, train, checkpoint, launch and wandb: all about a run but its data and networks."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from aae_dist.config.sections import Section

Device = Literal["auto", "cpu", "cuda"]

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"


class Run(Section):
    """Identity and location of the run."""

    name: str = Field(pattern=NAME)
    """Folder of the run inside `storage`; the same name resumes it. Letters, digits and . - _
    only."""
    storage: str = "~/aae_dist/runs"
    """Local path, s3://, gs:// or az://; all nodes must be able to reach it."""
    seed: NonNegativeInt = 0
    """Seed of every random draw: weights, sample order, prior samples, noise."""
    resume: Literal["auto", "must", "never"] = "auto"
    """auto: resume if there is a checkpoint. must: fail without one. never: fail if there is
    one."""
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
    best_metric: str = "prior_match/c2st"
    """Evaluation metric whose lowest value selects the best checkpoint, which is kept as well."""
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


class Checkpoint(Section):
    """When checkpoints are saved, and how many are kept."""

    every_steps: PositiveInt | None = None
    """Save at every multiple of this step."""
    every_seconds: PositiveFloat | None = 300.0
    """Save when this many seconds have passed since the last save, on the clock of rank 0; null: do
    not save by time."""
    keep: PositiveInt = 3
    """Number of newest checkpoints to keep, besides the best one by `train.best_metric`."""


class Launch(Section):
    """Processes and machines; they change a run's numbers at most by floating-point rounding."""

    kind: Literal["ray", "local"] = "ray"
    """ray: Ray Train starts the workers. local: this process, or the ranks that torchrun
    started."""
    workers: PositiveInt | tuple[PositiveInt, PositiveInt] = 2
    """Data-parallel ranks under Ray, or [fewest, most]: the run then uses as many as there are
    resources for, and changes their number while it runs."""
    resize_seconds: PositiveFloat = 60.0
    """With [fewest, most] workers: seconds between checks for resources for more of them."""
    cpus_per_worker: PositiveInt = 1
    """CPU cores and torch threads per rank, under both launchers."""
    gpus_per_worker: NonNegativeFloat | Literal["auto"] = "auto"
    """auto: 1 if any live node or autoscaler group has GPUs, else 0. Fractions: for a single worker
    only."""
    max_failures: NonNegativeInt = 8
    """Restarts of the workers after a crash or the loss of a node, over the whole run."""
    hang_timeout_seconds: PositiveFloat | None = 60.0
    """A rank that makes no progress for this long prints its stacks and exits; null: no limit."""
    max_wait_minutes: PositiveFloat = 30.0
    """Longest wait for the cluster to provide the resources."""

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
