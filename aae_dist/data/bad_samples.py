"""Samples that cannot be used, listed, counted and limited; parts of others that are not used.

A bad sample is masked: its slot in the global batch has weight zero, and no other sample moves; the
slot is called a hole. Every rank knows the holes of the whole batch, so all of them stop at the
same step. Where a label that cannot be read, an alpha channel or the lower bits of a deep image are
left out, the sample is used: `Unused` counts these, so that each kind is reported once.
"""

import json
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from aae_dist.errors import DataError

MAX_LISTED = 100_000
"""Entries of the list, some 200 bytes each, in every checkpoint; a whole shard is one entry.

No setting raises it: a sample that is not listed would look like a new bad sample in the next
epoch, and a run would no longer count each one once.
"""
MAX_LISTED_BYTES = 32 << 20
"""Bytes of the list in a checkpoint. Entries of up to 335 bytes reach `MAX_LISTED`; one with long
names outside ASCII has up to 17 KB."""
UnusedKind = Literal["depth", "alpha", "flat", "colour", "frames", "label", "entry"]
UNUSED_TEXTS: Mapping[str, str] = {
    "depth": "images have 16 bits per channel, of which the upper 8 are used: of 12-bit data 16 "
    "grey values are left; write them with 8 bits, or as float32 arrays (.npy)",
    "alpha": "images have an alpha channel, which is left out",
    "flat": "images with an alpha channel have one colour without it; put them on a background",
    "colour": "images in colour are made grey, as the first one is; data.channels=3 keeps colour",
    "frames": "images are animated: the first frame is used",
    "label": "labels cannot be read: these samples have none",
    "entry": "samples lack what data.label_key names: they have no label",
}
"""By kind: what follows 'N of M'."""
MAX_UNUSED_NUMBERS = 1_000_000
"""Samples per kind whose numbers are kept (64 MB), so that each counts once in all epochs."""
_COMPACT = json.JSONEncoder(separators=(",", ":"))


@dataclass(frozen=True)
class BadSample:
    """One slot of a global batch whose sample cannot be used."""

    slot: int  # row of the global batch
    shard: str  # name of its shard in the manifest
    sample: int  # number of the sample in its shard
    key: str | None  # its WebDataset key; None when the whole shard cannot be used
    reason: str  # reason of the error, for counters; of a whole shard it begins with 'shard '
    detail: str  # the error's message
    shard_samples: int = 0  # samples of the shard when all of them are lost, else 0

    @property
    def location(self) -> tuple[str, int]:
        """Identity for counting: shard and sample number, -1 for a whole shard."""
        return self.shard, -1 if self.shard_samples else self.sample


@dataclass(frozen=True)
class Limits:
    """Bounds on the bad samples of a run."""

    num_samples: int  # samples of the data set
    max_samples: int | None
    max_fraction: float
    max_consecutive: int


@dataclass
class BadSamples:
    """The bad samples that a run has met so far; a part of its state."""

    entries: list[dict[str, Any]] = field(default_factory=list)
    """Lines of bad_samples.jsonl: each is a sample, or a whole shard (`sample` is null)."""
    num_holes: int = 0  # slots masked for bad samples; one sample counts once per epoch
    in_a_row: int = 0  # holes since the last good slot, in the order of slots

    def __post_init__(self) -> None:
        self.entries = list(self.entries)  # a rollback may load the checkpoint again
        self._most_consecutive = self.in_a_row
        self._locations = {
            (e["shard"], -1 if e["sample"] is None else e["sample"]) for e in self.entries
        }
        self._listed = Counter(shard for shard, _ in self._locations)
        self._bytes = len(_COMPACT.encode(self.entries))
        self.num_samples = sum(e["samples"] for e in self.entries)
        """Different samples lost so far; a shard that cannot be used counts whole."""

    def add(
        self, bad: Sequence[BadSample], valid: np.typing.NDArray[np.bool_], step: int, epoch: int
    ) -> int:
        """Add all ranks' holes of a batch with slots `valid`, bool [G]; return the new entries."""
        self.num_holes += len(bad)
        self._count_consecutive({one.slot for one in bad}, valid)
        before = len(self.entries)
        for one in bad:
            if one.location not in self._locations and (one.shard, -1) not in self._locations:
                self._list(one, step, epoch)
        return len(self.entries) - before

    def _count_consecutive(self, slots: set[int], valid: np.typing.NDArray[np.bool_]) -> None:
        if not slots:
            self.in_a_row = 0
            return
        for slot in np.flatnonzero(valid).tolist():
            self.in_a_row = self.in_a_row + 1 if slot in slots else 0
            self._most_consecutive = max(self._most_consecutive, self.in_a_row)

    def _list(self, one: BadSample, step: int, epoch: int) -> None:
        samples = 1
        if one.shard_samples:
            samples = max(0, one.shard_samples - self._listed[one.shard])
        self._locations.add(one.location)
        self._listed[one.shard] += 1
        self.num_samples += samples
        entry = {
            "shard": one.shard,
            "sample": None if one.shard_samples else one.sample,
            "key": one.key,
            "reason": one.reason,
            "detail": one.detail,
            "samples": samples,
            "step": step,
            "epoch": epoch,
        }
        self.entries.append(entry)
        self._bytes += len(_COMPACT.encode(entry)) + 1

    def check(self, limits: Limits) -> None:
        """Raise DataError when more is bad than `limits` allow; the same on every rank."""
        by_fraction = int(limits.max_fraction * limits.num_samples)
        count, problem, advice = self.num_samples, "", "or raise that limit"
        if limits.max_samples is not None and count > limits.max_samples:
            problem = f"{count} are bad, more than data.max_bad_samples={limits.max_samples}"
        elif count > by_fraction:
            problem = (
                f"{count} of {limits.num_samples} are bad, more than the {by_fraction} that "
                f"data.max_bad_fraction={limits.max_fraction} allows"
            )
        elif self._most_consecutive > limits.max_consecutive:
            problem = (
                f"{self._most_consecutive} consecutive ones are bad, more than "
                f"data.max_consecutive_bad_samples={limits.max_consecutive}"
            )
        elif len(self.entries) > MAX_LISTED or self._bytes > MAX_LISTED_BYTES:
            most = f"the {MAX_LISTED} single ones"
            if self._bytes > MAX_LISTED_BYTES:
                most = f"the {MAX_LISTED_BYTES} bytes of names and causes"
            problem = f"more than {most} that a run can list, whatever it allows"
            advice = "or leave them out: write the shards again without them"
        if problem:
            of_labels = all(entry["reason"] == "label" for entry in self.entries)
            fix = "correct the labels" if of_labels else "repair the shards, check data.image_keys"
            raise DataError(
                f"Too many bad samples: {problem} ({self.summary()}). The run's bad_samples.jsonl "
                f"lists them; {fix}, {advice}."
            )

    def summary(self) -> str:
        """Return the counts by reason, with the first detail of each."""
        counts: Counter[str] = Counter()
        first: dict[str, str] = {}
        for entry in self.entries:
            counts[entry["reason"]] += entry["samples"]
            name = entry["shard"] + ("" if entry["sample"] is None else f", {entry['key']}")
            first.setdefault(entry["reason"], f"{name}: {entry['detail']}")
        return "; ".join(f"{n} x {reason}, first {first[reason]}" for reason, n in counts.items())

    def lines(self, last: int | None = None) -> bytes:
        """Return the content of bad_samples.jsonl, or the lines of its `last` entries alone."""
        entries = self.entries if last is None else self.entries[len(self.entries) - last :]
        return "".join(json.dumps(entry) + "\n" for entry in entries).encode()

    def document(self) -> dict[str, Any]:
        """Return the state that a checkpoint stores."""
        return {
            "entries": list(self.entries),
            "num_holes": self.num_holes,
            "in_a_row": self.in_a_row,
        }


def printable(text: str) -> str:
    """Return `text` for logs: at most 200 characters, without control characters."""
    return repr(text)[1:-1][:200]


def to_json(bad: Iterable[BadSample]) -> list[dict[str, Any]]:
    """Return bad samples as they are sent to other ranks."""
    return [asdict(one) for one in bad]


def from_json(per_rank: Iterable[Sequence[Mapping[str, Any]]]) -> tuple[BadSample, ...]:
    """Return the holes of all ranks in the order of slots."""
    found = [BadSample(**one) for bad in per_rank for one in bad]
    return tuple(sorted(found, key=lambda one: one.slot))


class Unused:
    """Counts samples by kind, each once; any thread may add."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._numbers: dict[UnusedKind, set[int]] = {}
        self._counts: Counter[str] = Counter()
        self.reported: set[str] = set()
        """Kinds that a line was written about."""
        self.first: dict[str, tuple[int, str]] = {}
        """UnusedKind -> number of the first sample of this kind, and why."""

    def add(self, kind: UnusedKind, number: int, detail: str = "") -> None:
        with self._lock:
            numbers = self._numbers.setdefault(kind, set())
            if number in numbers:
                return
            if len(numbers) < MAX_UNUSED_NUMBERS:
                numbers.add(number)
            self._counts[kind] += 1
            self.first.setdefault(kind, (number, detail))

    @property
    def counts(self) -> dict[str, int]:
        """Samples by kind."""
        with self._lock:
            return dict(self._counts)


def sum_counts(per_rank: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Return the counts of all ranks together."""
    total: Counter[str] = Counter()
    for counts in per_rank:
        total.update(counts)
    return dict(total)
