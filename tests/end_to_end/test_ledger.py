"""kill -9 of two ranks at a random step, resumed with one and then three: each sample key once."""

import json
import random
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from helpers.runs import kill_all, run, start, wait_for_checkpoint
from helpers.shards import write_shards

pytestmark = [pytest.mark.distributed, pytest.mark.slow, pytest.mark.timeout(900)]

COUNTS = [400, 0, 730, 1, 869]
NUM_SAMPLES = sum(COUNTS)


def command(ledger: Path, ranks: int, *items: str) -> list[str]:
    ledger.mkdir(exist_ok=True)
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    return [sys.executable, *torchrun, "-m", "helpers.ledger_run", str(ledger), "train", *items]


def steps_of(ledger: Path) -> dict[int, list[str]]:
    """Return the keys of each step of one start, over its ranks."""
    steps: dict[int, list[str]] = {}
    for path in ledger.glob("*.jsonl"):
        for line in path.read_text().splitlines(keepends=True):
            if line.endswith("\n"):  # a kill may cut the last one
                entry = json.loads(line)
                steps.setdefault(entry["step"], []).extend(entry["keys"])
    return steps


def test_each_key_is_in_the_ledger_of_the_epoch_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row
) -> None:
    row(
        "21",
        "uneven shards, one of them empty; SIGKILL, then 1 rank, SIGKILL, then 3 ranks",
        "no rank waits for another; each key of the epoch once",
    )
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    write_shards(tmp_path / "shards", COUNTS)
    items = (
        f"data.train={tmp_path / 'shards'}",
        f"run.storage={tmp_path / 'runs'}",
        "run.name=run",
        "model={latent_dim: 2, encoder_widths: [32], decoder_widths: [32], "
        "discriminator_widths: [32]}",
        "train.global_batch_size=24",
        "train.epochs=1",
        "checkpoint.every_steps=3",
        "checkpoint.keep=1000",
        "launch.kind=local",
        "wandb.mode=disabled",
    )
    log = tmp_path / "log.txt"
    uri = str(tmp_path / "runs" / "run")
    ledgers = [tmp_path / f"ledger-{n}" for n in range(3)]
    for ledger, ranks, wait in ((ledgers[0], 2, 0.3), (ledgers[1], 1, 0.3)):
        process = start(command(ledger, ranks, *items), log)
        try:
            wait_for_checkpoint(uri, process, log, seconds=300)
            while not steps_of(ledger):
                assert process.poll() is None, log.read_text()[-3000:]
                time.sleep(0.02)
            time.sleep(random.uniform(0, wait))
            assert process.poll() is None, "the run ended before it was killed"
        finally:
            kill_all(process)
    assert run(command(ledgers[2], 3, *items), log, timeout=400) == 0, log.read_text()[-3000:]
    # What counts of each step is what its last start trained on: a kill undoes all after a save.
    steps: dict[int, list[str]] = {}
    for ledger in ledgers:
        started = steps_of(ledger)
        steps = {n: keys for n, keys in steps.items() if n < min(started)} | started
    assert sorted(steps) == list(range(1, -(-NUM_SAMPLES // 24) + 1))
    counts = Counter(key for keys in steps.values() for key in keys)
    assert counts == Counter({f"{n:06d}": 1 for n in range(NUM_SAMPLES)})
    assert len(steps_of(ledgers[2])) > 0
