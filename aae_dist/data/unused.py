"""What of the data is not used as given, counted by kind so that it is reported once.

Nothing here makes a sample bad: a label that cannot be read, an alpha channel or the lower bits of
a deep image are left out, and the sample is used.
"""

import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Literal

Kind = Literal["depth", "alpha", "flat", "colour", "frames", "label", "entry"]
TEXTS: Mapping[str, str] = {
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
MAX_NUMBERS = 1_000_000
"""Samples per kind whose numbers are kept (64 MB), so that each counts once in all epochs."""


class Unused:
    """Counts samples by kind, each once; any thread may add."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._numbers: dict[Kind, set[int]] = {}
        self._counts: Counter[str] = Counter()
        self.reported: set[str] = set()
        """Kinds that a line was written about."""
        self.first: dict[str, tuple[int, str]] = {}
        """Kind -> number of the first sample of this kind, and why."""

    def add(self, kind: Kind, number: int, detail: str = "") -> None:
        with self._lock:
            numbers = self._numbers.setdefault(kind, set())
            if number in numbers:
                return
            if len(numbers) < MAX_NUMBERS:
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
