"""A run: its name and place, how long it trains, when it is saved, where it is shown."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from aae_dist.config.sections import Section

Device = Literal["auto", "cpu", "cuda"]

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"


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
    max_rollbacks: NonNegativeInt = 0
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
