"""The data: shards, how samples are read and decoded, and the order they come in."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from aae_dist.config.sections import Section

Urls = str | Annotated[tuple[str, ...], Field(min_length=1)]
ROOTED = r"^[/~]"


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
    max_consecutive_bad_samples: PositiveInt = 100
    """Bad samples in a row, in the order of the slots of global batches, that end the run."""
    accept_new_shards: bool = False
    """Go on with other shards than before, where a run is resumed at the end of an epoch."""
