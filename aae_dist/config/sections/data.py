"""Section data: shards, decoding, sample order, cache and limits on bad samples."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from aae_dist.config.sections import Section

Urls = str | Annotated[tuple[str, ...], Field(min_length=1)]
ROOTED = r"^[/~]"


class Cache(Section):
    """Local copies of remote shards on each node, shared by the node's ranks."""

    dir: str | None = Field(default=None, pattern=ROOTED)
    """Absolute path on a local disk of the node; by default in XDG_CACHE_HOME (~/.cache), or
    /tmp."""
    max_bytes: PositiveInt | None = None
    """Hard limit on the size of the cache, in bytes; by default half of the free disk space."""
    shard_seconds: PositiveFloat = 240.0
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


class Data(Section):
    """Shards, and how their samples are decoded and ordered."""

    train: Urls
    """Training shards: a pattern, folder or manifest, or a list of them; local, s3://, gs://,
    az://, https:// or builtin://."""
    validation: Urls | None = None
    """Validation shards; without them there is no evaluation."""
    image_keys: tuple[str, ...] = ("png", "jpg", "jpeg", "webp")
    """Fields of a sample that may hold the image; the first one present is used. npy: arrays,
    vectors."""
    label_key: str | None = "cls"
    """Field of the integer label, or field:entry for an entry of a JSON object. Labels are used in
    pictures and by encode and reconstruct."""
    image_size: PositiveInt | None = None
    """Height and width in pixels after resizing; by default those of the first image."""
    resize: Literal["cover", "stretch", "crop", "none"] | None = None
    """cover: scale to cover the square, crop the rest. stretch: change the aspect ratio. crop: crop
    without scaling. none: refuse other sizes. By default cover with image_size, else none."""
    crop_size: PositiveInt | None = None
    """Side in pixels of a centre square cropped before resizing (CelebA: 148, then image_size
    64)."""
    channels: Literal[1, 3] | None = None
    """1 for grey, 3 for colour; by default as in the first image."""
    augment: Augment = Augment()
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
    threads: NonNegativeInt | None = None
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
