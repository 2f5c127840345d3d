"""Error and match of the default method at batch sizes from 64 to 2,048, at equal samples seen.

    python benchmarks/large_batch.py [--mnist DIR] [--samples 640000] [--rules keep sqrt]

All learning rates are multiplied by (batch / 128) to the power of the rule: 0 (keep), 0.5 (sqrt) or
1 (linear). Results are kept in benchmarks/results/large_batch.jsonl (or --results), so a run that
was stopped continues; the table is made from all results there.
"""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from balance import SETS, train, write_shards
from timing import print_header

RESULTS = Path(__file__).parent / "results" / "large_batch.jsonl"
DIGITS = "digits, 8"
BATCHES = (64, 128, 256, 512, 1024, 2048)
POWERS = {"keep": 0.0, "sqrt": 0.5, "linear": 1.0}
UNSCALED = 128
"""The batch size at which all rules agree."""
RATE = 2e-3
"""Learning rate of all phases there."""


def measure(batch: int, rule: str, samples: int, folder: Path, work: Path) -> dict[str, Any]:
    """Train once; return error and C2ST on validation data."""
    run, factor = f"{batch}-{rule}-{samples}", (batch / UNSCALED) ** POWERS[rule]
    phases = ("reconstruction", "discriminator", "generator")
    settings = [
        f"train.global_batch_size={batch}",
        *(f"phases.{phase}.optimizer.lr={RATE * factor}" for phase in phases),
        *SETS[DIGITS].settings,
    ]
    summary = train(run, 0, samples // batch, folder, work, *settings)
    if "error" in summary:
        raise SystemExit(f"{run}: {summary['error']}")
    metrics = summary["metrics"]
    return {"mse": metrics["reconstruction/mse"], "c2st": metrics["prior_match/c2st"]}


def print_table(results: Iterable[dict[str, Any]], samples: int) -> None:
    """Print error and C2ST of each batch size, one column per rule."""
    found = {(r["batch"], r["rule"]): r for r in results if r["samples"] == samples}
    print("| batch | steps | " + " | ".join(f"{rule}: mse, C2ST" for rule in POWERS) + " |")
    print("|---|---|" + "---|" * len(POWERS))
    for batch in BATCHES:
        rows = [found.get((batch, rule)) for rule in POWERS]
        cells = [f"{row['mse']:.4f}, {row['c2st']:.3f}" if row else "" for row in rows]
        print(f"| {batch} | {samples // batch} | " + " | ".join(cells) + " |")


def main() -> None:
    """Run what is missing, then print all results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mnist", type=Path, help="folder of MNIST's files; else shipped digits")
    parser.add_argument("--samples", type=int, default=640_000, help="seen in training")
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    parser.add_argument("--rules", nargs="+", choices=POWERS, default=["keep", "sqrt"])
    parser.add_argument("--work", type=Path, default=Path("runs/large_batch"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    work, file = arguments.work.resolve(), arguments.results
    work.mkdir(parents=True, exist_ok=True)
    results = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    done = {(r["batch"], r["rule"], r["samples"]) for r in results}
    print_header("Batch sizes at equal samples")
    folder = write_shards(DIGITS, arguments.mnist, work)
    for batch in arguments.batches:
        for rule in ["keep"] if batch == UNSCALED else arguments.rules:
            plan = (batch, rule, arguments.samples)
            if plan in done:
                continue
            scores = measure(*plan, folder, work)
            results.append(dict(zip(("batch", "rule", "samples"), plan, strict=True)) | scores)
            with file.open("a") as out:
                out.write(json.dumps(results[-1]) + "\n")
            print(results[-1], flush=True)
    print_table(results, arguments.samples)


if __name__ == "__main__":
    main()
