"""The metrics of a run in its folder: closed segments, and an open end.

    metrics/000000000050-000000012800.jsonl   a closed segment of 256 KiB: it never changes
    metrics/000000204800.json                 a digest of all up to that step, every 4 MiB
    metrics.jsonl                             the open end; the whole of a short or an old run

A checkpoint uploads new segments and the open end, never what was uploaded before. A resumed run
reads the newest digest and what follows it, whatever the length of the run. Readers take records in
the order of their steps, so that a segment that was closed while the open end still held it, as
after a crash between two writes, counts once.

In memory a run of any length keeps newest values, first alarms and 64 curves of 512 points, some
400 KB as JSON.
"""

import json
import re
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from aae_dist.errors import DataError
from aae_dist.storage import Storage, read_or_none
from aae_dist.storage.documents import Count, Document, Metrics, Number, parse_document
from aae_dist.tracking.sinks import Record, Summary, finite, parse_record

METRICS, SEGMENTS = "metrics.jsonl", "metrics"
SEGMENT_BYTES = 256 << 10
DIGEST_BYTES = 4 << 20
"""Records between two digests: a digest has up to 400 KB, and 4 MiB are parsed in 30 ms."""
TAIL_BYTES = 256 << 10  # end of the open end that a listing reads: some 500 log points
OLD_SEGMENTS = 64  # segments into which the metrics of an old run are split
POINTS = 256
"""A curve that has twice as many points loses every other one: pictures are 400 pixels wide."""
MAX_CURVES = 64
CURVES = ("loss/", "reconstruction/", "prior_match/", "discriminator/")
"""First part of the names of metrics that pictures of losses show."""
ALARM = "alarm/"
_CHUNK_BYTES = 4 << 20
_MAX_LINE_BYTES = 1 << 20
_NAME = re.compile(SEGMENTS + r"/(\d{12,18})-(\d{12,18})\.jsonl")
_Record = dict[str, Any]


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


@dataclass(frozen=True, order=True)
class Segment:
    """A closed part of the metrics, by the steps of its first and last record."""

    first: int
    last: int

    @property
    def key(self) -> str:
        return f"{SEGMENTS}/{self.first:012d}-{self.last:012d}.jsonl"

    @property
    def digest_key(self) -> str:
        return f"{SEGMENTS}/{self.last:012d}.json"


@dataclass(frozen=True)
class _Closed:
    """A segment that is not uploaded yet."""

    segment: Segment
    data: bytes
    digest: bytes | None


class MetricLog:
    """The sink that keeps all records; `upload` writes to the run's folder what is new.

    Records are logged by one thread; `upload` may be called by another one.
    """

    def __init__(self, storage: Storage, resumed_step: int = 0) -> None:
        """Continue the log in a run's folder; records after `resumed_step` are dropped."""
        self._storage = storage
        self._lock, self._upload_lock = threading.RLock(), threading.Lock()
        self._segments: list[Segment] = []  # uploaded
        self._closed: list[_Closed] = []
        self._stale: list[Segment] = []
        self._tail: list[bytes] = []
        self._tail_bytes, self._since_digest = 0, 0
        self._first = self._last = -1  # steps of the open end
        self._uploaded: bytes | None = None
        self._segment_bytes = SEGMENT_BYTES
        self.history = History()
        listed, digests = _listed(storage)
        size = storage.size(METRICS)
        self._stale = [segment for segment in listed if segment.last > resumed_step]
        kept = listed[: len(listed) - len(self._stale)]
        if not resumed_step:
            self._uploaded = b"" if size is None else None
            return
        self._segment_bytes = max(SEGMENT_BYTES, (size or 0) // OLD_SEGMENTS)
        self._restart(kept, digests)
        spanning = (record for s in self._stale[:1] for record in _read_segment(storage, s))
        self._continue(spanning, resumed_step)
        last = listed[-1].last if listed else -1
        self._continue((r for r in _read_tail(storage) if r["step"] > last), resumed_step)
        self._segment_bytes = SEGMENT_BYTES

    # The sink.

    def log(self, record: Record) -> None:
        self._append(finite(record))

    def picture(self, name: str, png: bytes, step: int) -> None:
        pass

    def close(self, summary: Summary, state: str) -> None:
        pass

    def truncate(self, step: int) -> None:
        """Drop the records after `step`, which the run will repeat."""
        with self._upload_lock, self._lock:
            closed, tail = self._closed, self._tail
            stale = [s for s in self._segments if s.last > step]
            kept = [s for s in self._segments if s.last <= step]
            self._stale = [*stale, *self._stale]
            self._restart(kept, {s for s in _listed(self._storage)[1] if s.last <= step})
            old = [r for s in stale[:1] for r in _read_segment(self._storage, s)]
            old += [r for data in [*(c.data for c in closed), *tail] for r in _records(data)]
            self._continue(old, step)

    # Uploading.

    def upload(self) -> None:
        """Write what is new to the run's folder; LaunchError or OSError leaves it to the next."""
        with self._upload_lock:
            self._upload_closed()
            self._upload_tail()

    def _upload_closed(self) -> None:
        with self._lock:
            closed, stale = list(self._closed), list(self._stale)
            tail = b"".join([*(c.data for c in closed), *self._tail])
        if stale:
            # Their records up to the step of the resume are in the open end from now on.
            self._storage.write(METRICS, tail)
            for segment in sorted(stale, reverse=True):
                self._storage.delete(segment.digest_key)
                self._storage.delete(segment.key)
        for one in closed:
            if one.digest is not None:
                self._storage.write(one.segment.digest_key, one.digest)
            self._storage.write(one.segment.key, one.data)
        with self._lock:
            self._stale = self._stale[len(stale) :]
            self._closed = self._closed[len(closed) :]
            self._segments += [one.segment for one in closed]

    def _upload_tail(self) -> None:
        with self._lock:
            if self._closed:  # closed meanwhile: the next upload takes both
                return
            tail = b"".join(self._tail)
        if tail != self._uploaded:
            self._storage.write(METRICS, tail)
            self._uploaded = tail

    # The records in memory.

    def _restart(self, kept: list[Segment], digests: set[Segment]) -> None:
        """Set the log to the end of the segments `kept`."""
        self._segments, self._closed, self._tail, self._tail_bytes = kept, [], [], 0
        self._first = self._last = -1
        self._uploaded, self.history, self._since_digest = None, History(), 0
        start = 0
        for place in reversed(range(len(kept))):
            found = _digest(self._storage, kept[place]) if kept[place] in digests else None
            if found is not None:
                self.history, start = found, place + 1
                break
        for segment in kept[start:]:
            for record in _read_segment(self._storage, segment):
                self.history.add(record)
            self._since_digest += SEGMENT_BYTES

    def _continue(self, records: Iterable[_Record], last_step: int) -> None:
        """Log records of an earlier start again, up to a step."""
        for record in records:
            if record["step"] <= last_step:
                self._append(record)
                is_old = self._segment_bytes > SEGMENT_BYTES and not self._stale
                if is_old and self._closed:
                    self._upload_closed()  # of an old run: its file may be larger than the memory

    def _append(self, record: dict[str, Any]) -> None:
        line = json.dumps(record, allow_nan=False).encode() + b"\n"
        with self._lock:
            if self._tail_bytes >= self._segment_bytes and record["step"] > self._last:
                self._close_segment()
            if not self._tail:
                self._first = record["step"]
            self._tail.append(line)
            self._tail_bytes += len(line)
            self._last = record["step"]
            self.history.add(record)

    def _close_segment(self) -> None:
        self._since_digest += self._tail_bytes
        digest = None
        if self._since_digest >= DIGEST_BYTES:
            digest, self._since_digest = self.history.encode(), 0
        segment = Segment(self._first, self._last)
        self._closed.append(_Closed(segment, b"".join(self._tail), digest))
        self._tail, self._tail_bytes = [], 0


# Readers.


def read_records(storage: Storage) -> Iterator[dict[str, Any]]:
    """Yield the records of a run's folder in order, of old and new runs; skip damaged lines."""
    segments, _ = _listed(storage)
    for segment in segments:
        yield from _read_segment(storage, segment)
    last = segments[-1].last if segments else -1
    yield from (record for record in _read_tail(storage) if record["step"] > last)


def newest_metrics(storage: Storage) -> dict[str, Any]:
    """Return the newest value of each metric, from less than a megabyte whatever the length."""
    newest: dict[str, Any] = {}
    size = storage.size(METRICS)
    start = max(0, (size or 0) - TAIL_BYTES)
    if not start:
        segments, digests = _listed(storage)
        with_digest = [segment for segment in segments if segment in digests]
        for segment in with_digest[-1:]:
            newest |= (_digest(storage, segment) or History()).latest
        for segment in segments[-1:]:
            for record in _read_segment(storage, segment):
                newest |= record
    if size:
        for record in _records(storage.read_range(METRICS, start, TAIL_BYTES)):
            newest |= record if record["step"] >= newest.get("step", 0) else {}
    return newest


def _listed(storage: Storage) -> tuple[list[Segment], set[Segment]]:
    """Return the segments in order, and those with a digest; overlapping ones are left out."""
    keys = {entry.key for entry in storage.list(SEGMENTS)}
    matches = (_NAME.fullmatch(key) for key in keys)
    found = sorted(Segment(int(m[1]), int(m[2])) for m in matches if m)
    segments: list[Segment] = []
    for segment in found:
        before = segments[-1].last if segments else -1
        if before < segment.first <= segment.last:
            segments.append(segment)
    return segments, {segment for segment in segments if segment.digest_key in keys}


def _digest(storage: Storage, segment: Segment) -> History | None:
    """Return a stored digest, None if it is damaged: then the segments are read."""
    try:
        data = read_or_none(storage, segment.digest_key)
        return None if data is None else History.decode(data, segment.digest_key)
    except DataError:
        return None


def _read_segment(storage: Storage, segment: Segment) -> Iterator[_Record]:
    return _records(read_or_none(storage, segment.key) or b"")


def _records(content: bytes) -> Iterator[_Record]:
    records = map(parse_record, content.splitlines())
    return (record for record in records if record is not None)


def _read_tail(storage: Storage) -> Iterator[_Record]:
    """Yield the records of metrics.jsonl in bounded memory: that of an old run may be large."""
    rest, size = b"", storage.size(METRICS) or 0
    for start in range(0, size, _CHUNK_BYTES):
        chunk = storage.read_range(METRICS, start, min(_CHUNK_BYTES, size - start))
        whole, newline, rest = (rest + chunk).rpartition(b"\n")
        yield from _records(whole)
        rest = rest if len(rest) <= _MAX_LINE_BYTES else b""
        del newline
    yield from _records(rest)
