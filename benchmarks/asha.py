"""What stopping early saves: sixteen trials in full against the same sixteen under ASHA.

python benchmarks/asha.py [--steps 900] [--out FOLDER]

Both sweeps are `aae-dist tune` commands on this machine, one after the other, from the start of the
command to its end. Printed: how many trials were stopped early, how far ASHA's best trial is from
the best of the full grid, the seconds that trials held workers, and the wall time.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from aae_dist.sweeps import SweepRecord, read_sweep

METRIC = "loss/reconstruction"
COMMON = (
    "data.train=builtin://digits/train",
    "model={encoder_widths: [256], decoder_widths: [256], discriminator_widths: [256]}",
    "train.global_batch_size=256",
    "launch.workers=1",
    "wandb.mode=disabled",
    f"sweep.metric={METRIC}",
    "sweep.space.model.latent_dim={grid: [2, 8]}",
    "sweep.space.phases.reconstruction.optimizer.lr="
    "{grid: [1e-5, 3e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 4e-3]}",
)


def main() -> None:
    """Run both sweeps and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=900, help="length of a full trial")
    parser.add_argument("--out", help="where the sweeps go; by default a temporary folder")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        place = args.out or temporary
        grace = args.steps // 9
        common = [f"train.steps={args.steps}", f"train.log_every_steps={grace}"]
        asha = f"sweep.scheduler={{kind: asha, grace: {grace}, reduction_factor: 3}}"
        full, full_seconds = run(place, "full", common)
        early, early_seconds = run(place, "asha", [*common, asha])
    show(full, full_seconds, early, early_seconds)


def run(place: str, name: str, items: list[str]) -> tuple[SweepRecord, float]:
    """Return a finished sweep and the seconds of its command."""
    command = [sys.executable, "-m", "aae_dist", "tune", *COMMON, *items]
    command += [f"run.storage={place}", f"sweep.name={name}"]
    began = time.monotonic()
    log = Path(place, f"{name}.log")
    with log.open("wb") as out:
        done = subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, env=os.environ)
    if done.returncode:
        raise SystemExit(log.read_text())
    return read_sweep(f"{place}/{name}"), time.monotonic() - began


def best(sweep: SweepRecord) -> float:
    """Return the lowest score of the trials that ran to their end."""
    scores = [t.metrics[METRIC] for t in sweep.trials if t.state == "finished"]
    return min(score for score in scores if score is not None)


def show(full: SweepRecord, full_seconds: float, early: SweepRecord, early_seconds: float) -> None:
    """Print what ASHA stopped, found and saved."""
    stopped = early.counts()["pruned"]
    worker = [sum(trial.seconds for trial in sweep.trials) for sweep in (full, early)]
    steps = [sum(trial.step for trial in sweep.trials) for sweep in (full, early)]
    print(f"stopped early: {stopped} of {len(early.trials)} trials")
    print(f"best score: full {best(full):.4f}, ASHA {best(early):.4f}", end="")
    print(f" ({100 * (best(early) / best(full) - 1):+.1f} %)")
    print(f"steps trained: full {steps[0]}, ASHA {steps[1]} ({steps[1] / steps[0]:.2f} x)")
    print(f"worker seconds: full {worker[0]:.0f}, ASHA {worker[1]:.0f} ", end="")
    print(f"({100 * (1 - worker[1] / worker[0]):.0f} % saved)")
    print(f"wall seconds: full {full_seconds:.0f}, ASHA {early_seconds:.0f} ", end="")
    print(f"({100 * (1 - early_seconds / full_seconds):.0f} % saved)")


if __name__ == "__main__":
    main()
