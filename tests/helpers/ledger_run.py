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
from aae_dist.data import Batch
from aae_dist.methods import Losses
from aae_dist.training.trainer import Trainer

STEP_SECONDS = 0.03
"""Added to a step, so that a kill meets the run before its end."""


def write_ledger(folder: Path) -> None:
    """Let every step append {step, keys} to this process's file before it is trained."""
    rank = int(os.environ.get("RANK", "0"))
    ledger = (folder / f"{os.getpid()}-{rank}.jsonl").open("w")
    train_step = Trainer.train_step

    def step(self: Trainer, batch: Batch) -> Losses:
        numbers = batch.plan.indices[self.inputs.rows][batch.valid.numpy()]
        line = {"step": self.state.step + 1, "keys": self.setup.data.train.keys(numbers)}
        ledger.write(json.dumps(line) + "\n")
        ledger.flush()
        time.sleep(STEP_SECONDS)
        return train_step(self, batch)

    Trainer.train_step = step  # type: ignore[method-assign]


if __name__ == "__main__":
    write_ledger(Path(sys.argv[1]))
    sys.exit(main(sys.argv[2:]))
