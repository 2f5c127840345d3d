"""Read and decode every sample of a data set, and report the bad ones."""

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from aae_dist.config.sections.run import Data
from aae_dist.data.bad_samples import printable
from aae_dist.data.cache.shard_cache import ShardCache, cache_of
from aae_dist.data.dataset import Dataset
from aae_dist.data.format.manifest import Shard
from aae_dist.data.index.build import listed_shards, try_count_shard
from aae_dist.errors import DataError, ShardError
from aae_dist.utils.text import ordered_map, progress

_ROWS_PER_READ = 256
_NUM_LISTED = 20


@dataclass
class Findings:
    """Result of reading every sample."""

    shards: int = 0
    samples: int = 0  # good samples
    bad_shards: dict[str, str] = field(default_factory=dict)  # address -> reason and message
    bad_samples: Counter[str] = field(default_factory=Counter)
    """Reason -> samples, those of bad shards not counted."""
    examples: list[str] = field(default_factory=list)  # the first bad: shard, key and problem
    notes: list[str] = field(default_factory=list)
    """What is not used as given; it makes no sample bad."""
    other_sizes: int = 0
    """Good samples of another size than the first one, where no size is chosen yet."""

    @property
    def num_bad(self) -> int:
        """Bad samples in shards that are otherwise sound."""
        return self.bad_samples.total()

    @property
    def is_sound(self) -> bool:
        """True when every sample of every shard can be used, and there is one."""
        return bool(self.samples) and not self.bad_shards and not self.num_bad

    def document(self) -> dict[str, Any]:
        """Return the findings as a JSON object."""
        return {**asdict(self), "bad_samples": dict(self.bad_samples), "sound": self.is_sound}

    def add(self, other: "Findings") -> None:
        """Add the findings of a shard."""
        self.shards += other.shards
        self.samples += other.samples
        self.other_sizes += other.other_sizes
        self.bad_shards |= other.bad_shards
        self.bad_samples += other.bad_samples
        self.examples = (self.examples + other.examples)[:_NUM_LISTED]


def verify(urls: str | Sequence[str], settings: Data, threads: int) -> Findings:
    """Read and decode every sample that `urls` name, against its manifest where there is one."""
    found = Findings()
    listed = listed_shards(urls)
    shards = listed.shards
    cache = cache_of(settings.cache)
    with (
        ThreadPoolExecutor(threads) as pool,
        progress("verifying", len(shards), "shards") as advance,
    ):
        # Count the shards that no manifest lists.
        sound: list[Shard] = []
        for shard, problem in ordered_map(pool, _with_count, [(each, cache) for each in shards]):
            if problem is None:
                sound.append(shard)
            else:
                found.add(_bad_shard(shard, problem))
                advance(1)
        if not any(shard.samples for shard in sound):
            found.shards += len(sound)
            return found
        # Read every sample of those that could be counted.
        dataset = Dataset(
            replace(listed, shards=tuple(sound)),
            settings.model_copy(update={"decoded": "none"}),
            try_all=True,
        )
        starts = np.cumsum(dataset.manifest.counts) - dataset.manifest.counts
        resized = _resized(dataset, settings)
        places = zip(sound, starts, strict=True)
        jobs = [(dataset, resized, shard, int(start)) for shard, start in places]
        for part in ordered_map(pool, _read_shard, jobs):
            found.add(part)
            advance(1)
    if found.other_sizes:
        _, height, width = dataset.image_shape
        found.notes.append(
            f"{found.other_sizes} of {len(dataset)} images are not {height} x {width} pixels, as "
            "the first one: to train on them give data.image_size"
        )
    found.notes += dataset.unused_lines(dataset.unused.counts, len(dataset))
    found.notes += dataset.unused_members()
    if listed.class_conflict:
        found.notes.append(f"numbers of classes differ: {listed.class_conflict}")
    return found


def _with_count(shard: Shard, cache: ShardCache) -> tuple[Shard, ShardError | None]:
    if shard.samples >= 0:
        return shard, None
    found = try_count_shard(shard, None, cache)
    return (shard, found) if isinstance(found, ShardError) else (found[0], None)


def _bad_shard(shard: Shard, error: ShardError) -> Findings:
    return Findings(shards=1, bad_shards={shard.url: f"{error.reason}: {printable(str(error))}"})


def _resized(dataset: Dataset, settings: Data) -> Dataset | None:
    """Return the data set with all images brought to one size; None where the size is chosen."""
    _, height, width = dataset.image_shape
    if settings.image_size or settings.resize or height == 1:
        return None
    changed = {"image_size": min(height, width), "resize": "cover", "decoded": "none"}
    return Dataset(dataset.manifest, settings.model_copy(update=changed), try_all=True)


def _read_shard(dataset: Dataset, resized: Dataset | None, shard: Shard, start: int) -> Findings:
    found = Findings(shards=1)
    for first in range(start, start + shard.samples, _ROWS_PER_READ):
        numbers = np.arange(first, min(first + _ROWS_PER_READ, start + shard.samples))
        bad = dataset.load(numbers).bad
        # Images of other sizes were not decoded: they may be sound.
        odd = [row for row, error in bad.items() if error.reason == "size"] if resized else []
        if resized and odd:
            again = resized.load(numbers[odd]).bad
            good = [row for place, row in enumerate(odd) if place not in again]
            bad = {row: error for row, error in bad.items() if row not in good}
            bad |= {odd[place]: error for place, error in again.items()}
            found.other_sizes += len(good)
        for row, error in bad.items():
            if isinstance(error, ShardError):
                return _bad_shard(shard, error)
            sample = dataset.bad_sample(int(numbers[row]), row, error)
            found.bad_samples[sample.reason] += 1
            if len(found.examples) < _NUM_LISTED:
                found.examples.append(f"{shard.url}, sample {sample.key!r}: {sample.detail}")
        found.samples += len(numbers) - len(bad)
    return found


def report(found: Findings) -> str:
    """Return the findings as lines for a person."""
    lines = [f"{found.shards} shards, {found.samples} good samples"]
    lines += [f"bad shard: {message}" for message in found.bad_shards.values()]
    lines += [f"bad samples: {n} ({reason})" for reason, n in sorted(found.bad_samples.items())]
    lines += [f"  {example}" for example in found.examples]
    if found.num_bad > len(found.examples):
        lines.append(f"  and {found.num_bad - len(found.examples)} more")
    lines += [f"not used as given: {note}" for note in found.notes]
    return "\n".join([*lines, "sound" if found.is_sound else "not sound"])


def refuse_if_unsound(found: Findings) -> None:
    """Raise DataError unless every sample can be used."""
    if not (found.samples or found.bad_shards or found.num_bad):
        raise DataError(f"{found.shards} shards without a sample; check what wrote them.")
    if not found.is_sound:
        raise DataError(
            f"{len(found.bad_shards)} bad shards and {found.num_bad} bad samples; write them "
            "again, or train without them (data.max_bad_fraction)."
        )
