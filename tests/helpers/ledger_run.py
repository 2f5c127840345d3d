"""`aae-dist train`, each rank of which writes down the sample keys of every step it trains on.

Usage: python -m helpers.ledger_run LEDGER_FOLDER train ARGUMENTS...

Each start and rank writes a file of its own.
"""

import json
import os
import sys
import time
from pathlib import Path

from aae_dist.cli import main
from aae_dist.data import Batch, Dataset
from aae_dist.methods import Losses
from aae_dist.training import trainer as train_module
from aae_dist.training.loop import TrainLoop

STEP_SECONDS = 0.03
"""Added to a step, so that a kill meets the run before its end."""


def write_ledger(folder: Path) -> None:
    """Let every step append {step, keys} to this process's file before it is trained."""
    rank = int(os.environ.get("RANK", "0"))
    ledger = (folder / f"{os.getpid()}-{rank}.jsonl").open("w")
    datasets: list[Dataset] = []
    open_loader, train_step = train_module.open_loader, TrainLoop.train_step

    def opened(data, *arguments, **options):  # noqa: ANN001, ANN002, ANN003, ANN202
        datasets.append(data.train)
        return open_loader(data, *arguments, **options)

    def step(self: TrainLoop, batch: Batch) -> Losses:
        numbers = batch.plan.indices[self.inputs.rows][batch.valid.numpy()]
        line = {"step": self.state.step + 1, "keys": datasets[-1].keys(numbers)}
        ledger.write(json.dumps(line) + "\n")
        ledger.flush()
        time.sleep(STEP_SECONDS)
        return train_step(self, batch)

    train_module.open_loader, TrainLoop.train_step = opened, step


if __name__ == "__main__":
    write_ledger(Path(sys.argv[1]))
    sys.exit(main(sys.argv[2:]))
