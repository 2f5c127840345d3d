"""Thousands of shards in a bucket: seconds of CPU and memory, which a busy machine changes little.

`benchmarks/many_shards.py` measures, against a server in a process of its own.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[3] / "benchmarks" / "many_shards.py"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def measured(*arguments: str) -> list[dict[str, float]]:
    command = [sys.executable, str(BENCHMARK), *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_20_000_shards_without_a_manifest_are_counted_by_little_cpu_and_memory() -> None:
    [found] = measured("--start", "0")
    assert found["shards"] == 20_000
    # 0.3 to 0.45 ms on the machine of docs/reliability.md; 0.93 at worst, in an older version.
    assert found["ms_cpu_per_shard"] < 0.7
    assert found["peak_mib"] < 300


def test_100_000_shards_with_a_manifest_start_soon_anywhere_in_the_epoch() -> None:
    begin, late = measured("--count", "0")
    for found in (begin, late):
        assert found["s_cpu"] < 10
        assert found["written_mib"] - found["imports_written_mib"] < 100, "ours, not torch's"
    assert late["s_cpu"] < 1.2 * begin["s_cpu"]


def test_shards_without_a_manifest_are_not_counted_one_round_trip_after_the_other() -> None:
    [found] = measured("--start", "0", "--count", "3000", "--delay-ms", "30")
    assert found["shards_per_second"] > 16 / 0.030, "what 16 requests at a time would give"
