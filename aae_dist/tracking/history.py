"""What a run keeps in memory of its metrics: newest values, first alarms and thinned curves.

A run of any length keeps at most 64 curves of 512 points, some 400 KB as JSON.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from aae_dist.storage.documents import Count, Document, Metrics, Number, parse_document

POINTS = 256
"""A curve that has twice as many points loses every other one: pictures are 400 pixels wide."""
MAX_CURVES = 64
CURVES = ("loss/", "reconstruction/", "prior_match/", "discriminator/")
"""First part of the names of metrics that pictures of losses show."""
ALARM = "alarm/"


class Curve:
    """Every n-th value of one metric; n doubles whenever there are too many."""

    def __init__(self) -> None:
        self.stride, self.seen = 1, 0
        self.x: list[float] = []
        self.y: list[float] = []

    def add(self, x: float, y: float) -> None:
        if self.seen % self.stride == 0:
            self.x.append(x)
            self.y.append(y)
            if len(self.x) > 2 * POINTS:
                self.x, self.y, self.stride = self.x[::2], self.y[::2], 2 * self.stride
        self.seen += 1


class CurveDocument(Document):
    """A curve as a digest stores it."""

    stride: Count
    seen: Count
    x: list[Number]
    y: list[Number]


class Digest(Document):
    """The history up to the end of a closed segment."""

    latest: Metrics
    alarms: dict[str, Count]
    curves: dict[str, CurveDocument]


class History:
    """The history of a run up to its newest log point, in bounded memory."""

    def __init__(self) -> None:
        self.latest: dict[str, float | None] = {}
        """Newest value of each metric; None for one that was not finite."""
        self.alarms: dict[str, int] = {}
        """Step at which each alarm was first raised."""
        self._curves: dict[str, Curve] = {}

    def add(self, record: Mapping[str, float | None]) -> None:
        """Take the next record, whose values are finite or None."""
        self.latest |= record
        x = record.get("samples_seen") or record["step"] or 0
        for name, value in record.items():
            if value is None:
                continue
            if name.startswith(CURVES):
                curve = self._curves.get(name)
                if curve is None and len(self._curves) < MAX_CURVES:
                    curve = self._curves[name] = Curve()
                if curve is not None:
                    curve.add(x, value)
            elif value and name.startswith(ALARM):
                self.alarms.setdefault(name.removeprefix(ALARM), int(record["step"] or 0))

    def points(self) -> list[dict[str, Any]]:
        """Return the curves as records for `loss_curves`, one per point, newest values included."""
        return list(self._points())

    def _points(self) -> Iterator[dict[str, Any]]:
        newest = self.latest.get("samples_seen") or self.latest.get("step") or 0
        for name, curve in self._curves.items():
            for x, y in zip(curve.x, curve.y, strict=True):
                yield {"step": x, "samples_seen": x, name: y}
            if curve.x[-1] < newest and (last := self.latest.get(name)) is not None:
                yield {"step": newest, "samples_seen": newest, name: last}

    def encode(self) -> bytes:
        """Return the digest as JSON."""
        curves = {name: vars(curve) for name, curve in self._curves.items()}
        document = {"latest": self.latest, "alarms": self.alarms, "curves": curves}
        return json.dumps(document, separators=(",", ":"), allow_nan=False).encode()

    @classmethod
    def decode(cls, data: bytes, name: str) -> "History":
        """Return the history of a digest called `name`; DataError if it is damaged."""
        digest = parse_document(data, name, Digest)
        found = cls()
        found.latest, found.alarms = dict(digest.latest), dict(digest.alarms)
        for key, saved in digest.curves.items():
            curve = found._curves[key] = Curve()
            curve.stride, curve.seen = max(1, saved.stride), saved.seen
            pairs = list(zip(saved.x, saved.y, strict=False))
            curve.x, curve.y = [x for x, _ in pairs], [y for _, y in pairs]
        return found
