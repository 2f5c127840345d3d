"""A storage that fails while checkpoints are written: training goes on, nothing half is visible."""

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers.equality import assert_bit_equal
from helpers.faulty import PACE
from helpers.faulty_proxy import FaultyProxy, Rule, proxying
from helpers.fleet import finish, fleet

from aae_dist.checkpoints.format import MANIFEST
from aae_dist.checkpoints.store import CheckpointStore
from aae_dist.storage import open_storage

pytestmark = [pytest.mark.distributed, pytest.mark.slow, pytest.mark.timeout(580)]

STEPS = 60


def items(storage: str, name: str, *more: str) -> list[str]:
    return [
        f"run.storage={storage}",
        f"run.name={name}",
        f"train.steps={STEPS}",
        "train.log_every_steps=20",
        "checkpoint.every_steps=10",
        "checkpoint.keep=10",
        "data.validation=null",
        *more,
    ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the run that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    finish(folder, *items(str(folder), "whole"), ranks=1)
    return f"{folder}/whole"


@pytest.fixture
def proxy(s3: Callable[[], str], s3_server: str, monkeypatch) -> Iterator[FaultyProxy]:
    """Return a proxy through which this process and its children reach the S3 server."""
    with proxying(s3_server) as found:
        monkeypatch.setenv("AWS_ENDPOINT_URL", found.address)
        yield found


def environment() -> dict[str, str]:
    # Slow steps, so that no save is left out because the one before is still under way.
    names = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    return {**names, PACE: "0.1"}


def visible(uri: str) -> list[int]:
    """Return the steps of all finished checkpoints, each of which must verify."""
    store = CheckpointStore(open_storage(uri), keep=10)
    for step in store.steps():
        store.load(step)
    return store.steps()


MANIFESTS, MODELS = r"PUT .*checkpoints/.*MANIFEST\.json", r"PUT .*checkpoints/.*model"


@pytest.mark.parametrize(
    ("number", "what", "rules"),
    [
        ("13a", "503 SlowDown to every third write", [Rule("status", "PUT .*checkpoints", 6)]),
        ("13b", "500 to some writes", [Rule("status", "PUT .*checkpoints", 4, status=500)]),
        ("14a", "a reset in the middle of an upload, several times", [Rule("reset", MODELS, 3)]),
        ("14b", "the answer to a manifest's write is lost", [Rule("lost", MANIFESTS, 1)]),
        ("14c", "half of what is read back", [Rule("half", r"GET .*checkpoints/.*model", 2)]),
    ],
)
def test_a_passing_fault_of_the_bucket_is_retried(
    number: str,
    what: str,
    rules: list[Rule],
    tmp_path: Path,
    s3: Callable[[], str],
    proxy: FaultyProxy,
    whole: str,
    row,
) -> None:
    line = row(number, f"S3: {what}", "retried; the run ends bit-equal, every checkpoint verifies")
    bucket = s3()
    proxy.rules = rules
    log = finish(tmp_path, *items(bucket, "run"), ranks=1, **environment())
    assert all(rule.struck for rule in rules)
    assert "was not saved" not in log
    assert_bit_equal(f"{bucket}/run", whole, STEPS)
    assert STEPS in visible(f"{bucket}/run")
    line.seen.append(f"struck {sum(rule.struck for rule in rules)} times")


def test_a_bucket_that_forbids_writes_for_a_while(
    tmp_path: Path, s3: Callable[[], str], proxy: FaultyProxy, whole: str, row
) -> None:
    row(
        "13c",
        "S3: 403 to all writes of two checkpoints",
        "not retried, reported in one line, training continues; bit-equal",
    )
    bucket = s3()
    proxy.rules = [Rule("status", "PUT .*step-0000000[23]0", status=403)]
    log = finish(tmp_path, *items(bucket, "run"), ranks=1, **environment())
    assert "was not saved" in log
    assert "no permission (403)" in log
    assert_bit_equal(f"{bucket}/run", whole, STEPS)
    steps = visible(f"{bucket}/run")
    assert STEPS in steps
    assert not {20, 30} & set(steps)


def test_an_upload_that_stalls(
    tmp_path: Path, s3: Callable[[], str], proxy: FaultyProxy, whole: str, row
) -> None:
    line = row(
        "13d",
        "S3: an upload that stalls for 20 s",
        "training does not wait: saves at intervals are skipped meanwhile; bit-equal",
    )
    bucket = s3()
    proxy.rules = [Rule("stall", r"PUT .*step-000000010/model", 1, seconds=20)]
    with fleet(tmp_path, *items(bucket, "run"), ranks=1, **environment()) as run:
        run.wait_for("step 60/60", timeout=120)
        reached = time.monotonic()
        assert run.end(200) == [0], run.text()[-3000:]
        waited = time.monotonic() - reached
    line.seen.append(f"all steps were done {waited:.0f} s before the upload was")
    assert_bit_equal(f"{bucket}/run", whole, STEPS)
    visible(f"{bucket}/run")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a file system of its own with 3 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(file: Path) -> None:
    with contextlib.suppress(OSError), file.open("wb", 0) as out:
        while True:
            out.write(b"\0" * 4096)
    assert os.statvfs(file).f_bavail == 0


def test_a_full_disk(tmp_path: Path, small_disk: Path, whole: str, row) -> None:
    row(
        "12",
        "ENOSPC: the disk is full while checkpoints are written, then has room again",
        "reported in one line, training continues, older checkpoints stay; bit-equal",
    )
    ballast = small_disk / "ballast"
    more = ["checkpoint.keep=2"]
    with fleet(tmp_path, *items(str(small_disk), "run", *more), ranks=1, **{PACE: "0.2"}) as run:
        while not (small_disk / f"run/checkpoints/step-000000020/{MANIFEST}").exists():
            assert any(p.is_alive() for p in run.processes), run.text()[-3000:]
            time.sleep(0.05)
        fill(ballast)
        run.wait_for("no space left on the device", timeout=120)
        ballast.unlink()
        assert run.end(150) == [0], run.text()[-3000:]
    assert_bit_equal(f"{small_disk}/run", whole, STEPS)
    steps = visible(f"{small_disk}/run")
    assert steps[-1] == STEPS
    assert all(MANIFEST in names for names in _listing(small_disk / "run").values())


def _listing(run: Path) -> dict[str, list[str]]:
    return {p.name: os.listdir(p) for p in (run / "checkpoints").iterdir() if any(p.iterdir())}
