"""Metrics in closed segments: what is uploaded, what a resume reads, what readers get."""

import json
import math
import tracemalloc
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from aae_dist.errors import LaunchError
from aae_dist.storage import Entry, LocalStorage
from aae_dist.tracking import metric_log
from aae_dist.tracking.metric_log import POINTS, History, MetricLog, newest_metrics, read_records


class CountingStorage(LocalStorage):
    """A folder in memory, without fsync; counts the bytes that are written and read."""

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder)
        self.files: dict[str, bytes] = {}
        self.written: list[tuple[str, int]] = []
        self.read_bytes = 0
        self.changes_left = 10**9
        """Writes and deletions until the process is killed."""

    def _change(self) -> None:
        if self.changes_left == 0:
            raise LaunchError("killed")
        self.changes_left -= 1

    def write(self, key: str, data: bytes) -> None:
        self._change()
        self.written.append((key, len(data)))
        self.files[key] = data

    def delete(self, key: str) -> None:
        self._change()
        self.files.pop(key, None)

    def read(self, key: str) -> bytes:
        if key not in self.files:
            raise FileNotFoundError(key)
        self.read_bytes += len(self.files[key])
        return self.files[key]

    def read_range(self, key: str, start: int, length: int) -> bytes:
        data = self.files[key][start : start + length]
        self.read_bytes += len(data)
        return data

    def size(self, key: str) -> int | None:
        return len(self.files[key]) if key in self.files else None

    def list(self, prefix: str = "") -> list[Entry]:
        top = f"{prefix}/" if prefix else ""
        keys = sorted(key for key in self.files if key.startswith(top))
        return [Entry(key, len(self.files[key])) for key in keys]


def record(step: int, **more: float) -> dict[str, float]:
    padding = {f"throughput/{n:030d}": step / 7 for n in range(10)}
    return {
        "step": step,
        "samples_seen": step * 48,
        "loss/reconstruction": 1 / step,
        **padding,
    } | more


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make segments of some 20 records, and a digest for every fourth."""
    monkeypatch.setattr(metric_log, "SEGMENT_BYTES", 10_000)
    monkeypatch.setattr(metric_log, "DIGEST_BYTES", 40_000)


def logged(storage: CountingStorage, steps: Iterator[int] | range, resumed: int = 0) -> MetricLog:
    log = MetricLog(storage, resumed)
    for step in steps:
        log.log(record(step))
        if step % 10 == 0:
            log.upload()
    log.upload()
    return log


def steps_in(storage: LocalStorage) -> list[int]:
    return [r["step"] for r in read_records(storage)]


def test_a_short_run_is_one_file_of_lines(tmp_path: Path) -> None:
    storage = CountingStorage(tmp_path)
    log = logged(storage, range(1, 11))
    log.log({"step": 11, "loss/x": math.nan})
    log.upload()
    lines = storage.files["metrics.jsonl"].splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 12))
    assert json.loads(lines[-1])["loss/x"] is None
    assert {key for key, _ in storage.written} == {"metrics.jsonl"}


@pytest.mark.usefixtures("small")
def test_what_was_uploaded_is_never_uploaded_again(tmp_path: Path) -> None:
    storage = CountingStorage(tmp_path)
    logged(storage, range(1, 2001))
    segments = [key for key, _ in storage.written if key.endswith(".jsonl") and "/" in key]
    assert len(segments) == len(set(segments)) > 50
    # Each upload is bounded by what is new and the open end, not by the length of the run.
    assert max(size for key, size in storage.written if key.endswith(".jsonl")) < 11_000
    assert steps_in(storage) == list(range(1, 2001))


@cache
def unbroken_log() -> tuple[MetricLog, dict[str, bytes]]:
    """Return the log of 2,500 records, and the files of 2,000 of them; with `small` segments."""
    storage = CountingStorage("unused")
    logged(storage, range(1, 2001))
    return logged(CountingStorage("unused"), range(1, 2501)), storage.files


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("resumed", [1, 19, 20, 500, 997, 1999, 2000, 3000])
def test_a_resumed_log_equals_one_that_was_never_interrupted(tmp_path: Path, resumed: int) -> None:
    unbroken, files = unbroken_log()
    storage = CountingStorage(tmp_path / "broken")
    storage.files = dict(files)
    log = logged(storage, range(min(resumed, 2000) + 1, 2501), resumed)
    assert steps_in(storage) == list(range(1, 2501))
    assert log.history.points() == unbroken.history.points()
    assert log.history.latest == unbroken.history.latest


@pytest.mark.usefixtures("small")
def test_a_rollback_drops_what_will_be_repeated(tmp_path: Path) -> None:
    storage = CountingStorage(tmp_path / "a")
    log = logged(storage, range(1, 1001))
    for step in range(1001, 1100):
        log.log(record(step))
    log.truncate(777)
    assert log.history.latest["step"] == 777
    log.upload()
    assert steps_in(storage) == list(range(1, 778))
    for step in range(778, 1301):
        log.log(record(step))
    log.upload()
    unbroken = logged(CountingStorage(tmp_path / "b"), range(1, 1301))
    assert steps_in(storage) == list(range(1, 1301))
    assert log.history.points() == unbroken.history.points()


@cache
def files_of_500() -> dict[str, bytes]:
    storage = CountingStorage("unused")
    logged(storage, range(1, 501))
    return storage.files


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("survives", range(12))
def test_a_crash_between_any_two_writes_loses_and_repeats_no_record(
    tmp_path: Path, survives: int
) -> None:
    storage = CountingStorage(tmp_path)
    storage.files = dict(files_of_500())
    log = MetricLog(storage, 390)
    for step in range(391, 601):
        log.log(record(step))
    storage.changes_left = survives
    with pytest.raises(LaunchError):
        log.upload()
    storage.changes_left = 10**9
    # Whatever a reader finds is in order and without gaps up to the step of the checkpoint.
    found = steps_in(storage)
    assert found[:390] == list(range(1, 391))
    assert found == sorted(set(found))
    again = logged(storage, range(391, 701), 390)
    assert steps_in(storage) == list(range(1, 701))
    assert again.history.latest["step"] == 700


@pytest.mark.usefixtures("small")
def test_an_upload_that_fails_is_made_up_for_by_the_next(tmp_path: Path) -> None:
    storage = CountingStorage(tmp_path)
    log = logged(storage, range(1, 101))
    storage.changes_left = 3
    for step in range(101, 301):
        log.log(record(step))
    with pytest.raises(LaunchError):
        log.upload()
    storage.changes_left = 10**9
    log.upload()
    assert steps_in(storage) == list(range(1, 301))


@pytest.mark.usefixtures("small")
def test_the_metrics_of_an_old_run_are_split_at_its_first_resume(tmp_path: Path) -> None:
    lines = b"".join(json.dumps(record(step)).encode() + b"\n" for step in range(1, 2001))
    storage = CountingStorage(tmp_path)
    storage.files["metrics.jsonl"] = lines + b'{"step": 20'
    assert steps_in(storage) == list(range(1, 2001))
    log = logged(storage, range(1901, 2101), 1900)
    assert steps_in(storage) == list(range(1, 2101))
    assert len(storage.files["metrics.jsonl"]) < 40_000
    unbroken = logged(CountingStorage(tmp_path / "whole"), range(1, 2101))
    assert log.history.points() == unbroken.history.points()


@pytest.mark.usefixtures("small")
def test_a_run_from_scratch_drops_all_metrics_of_an_earlier_one(tmp_path: Path) -> None:
    storage = CountingStorage(tmp_path)
    logged(storage, range(1, 501))
    logged(storage, range(1, 31))
    assert steps_in(storage) == list(range(1, 31))
    assert len(storage.list("metrics")) <= 2


@pytest.mark.usefixtures("small")
def test_a_resume_reads_a_bounded_part_of_a_long_run(tmp_path: Path) -> None:
    storage = CountingStorage(tmp_path)
    logged(storage, range(1, 20_001))
    total = sum(entry.size for entry in storage.list() if entry.key.endswith(".jsonl"))
    storage.read_bytes = 0
    tracemalloc.start()
    log = MetricLog(storage, 20_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert log.history.latest["step"] == 20_000
    assert total > 8 << 20
    assert storage.read_bytes < 150_000
    assert peak < 3 << 20
    storage.read_bytes = 0
    assert newest_metrics(storage)["step"] == 20_000
    assert storage.read_bytes < 150_000


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("text", [b"", b"{", b"[" * 10_000, b'{"latest": {"step": "x"}}'])
def test_a_damaged_digest_costs_time_and_no_number(tmp_path: Path, text: bytes) -> None:
    storage = CountingStorage(tmp_path)
    log = logged(storage, range(1, 501))
    for entry in storage.list("metrics"):
        if entry.key.endswith(".json"):
            storage.files[entry.key] = text
    assert MetricLog(storage, 500).history.points() == log.history.points()


def test_curves_are_bounded_and_keep_both_ends() -> None:
    history = History()
    for step in range(1, 100_001):
        history.add(
            {"step": step, "samples_seen": step, "loss/a": step / 2, "alarm/x": float(step > 70)}
        )
    points = [p for p in history.points() if "loss/a" in p]
    assert POINTS < len(points) <= 2 * POINTS + 1
    assert (points[0]["step"], points[-1]["step"]) == (1, 100_000)
    assert all(p["loss/a"] == p["step"] / 2 for p in points)
    assert history.alarms == {"x": 71}
    again = History.decode(history.encode(), "x")
    assert again.points() == history.points()
    assert len(history.encode()) < 40_000
