"""Whether unusual samples are found: one digit of MNIST is left out of training, ten times.

    python benchmarks/anomaly.py --mnist DIR [--steps 1500] [--width 400] [--folds 0,1,..]

Per fold an adversarial autoencoder trains on the other nine digits without the last 10,000 images;
of these, without the digit, one half calibrates `aae_dist.inference.anomaly` and the other half
says what part of ordinary samples gets a rank above 0.95. AUROC is that of the digit against the
other nine among the 10,000 test images: by each score, by the combined one, with the density of
codes by their neighbours and by a mixture of Gaussians fitted to training codes, and by the error
of a PCA of the same size. A fold that was run is read from the folder.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from timing import print_header

import aae_dist
from aae_dist.evaluation.linear import fit_pca
from aae_dist.inference.anomaly import Density, Neighbours, Reference, Scorer
from aae_dist.inference.samplers import fit_gmm

Array = NDArray[Any]
LATENT_DIM = 16
COLUMNS = ("error", "log_density", "discriminator", "combined")
CHUNK = 500
NUM_CODES = 5000
"""Training codes that the mixture is fitted to."""


def read_mnist(folder: Path, split: str) -> tuple[Array, Array]:
    """Return the images, uint8 (N, 28, 28), and the labels of a split: train or t10k."""
    images = np.frombuffer((folder / f"{split}-images-idx3-ubyte").read_bytes(), np.uint8, -1, 16)
    labels = np.frombuffer((folder / f"{split}-labels-idx1-ubyte").read_bytes(), np.uint8, -1, 8)
    return images.reshape(-1, 28, 28).copy(), labels.astype(np.int64)


def auroc(unusual: Array, is_left_out: Array) -> float:
    """Return the probability that a sample of the digit scores higher than another one."""
    order = np.argsort(unusual, kind="stable")
    _, first, counts = np.unique(unusual[order], return_index=True, return_counts=True)
    ranks = np.repeat(first + (counts + 1) / 2, counts)
    places = np.empty(len(unusual))
    places[order] = ranks
    num, rest = int(is_left_out.sum()), int((~is_left_out).sum())
    return float((places[is_left_out].sum() - num * (num + 1) / 2) / (num * rest))


def settings(digit: int, steps: int, width: int, work: Path) -> dict[str, Any]:
    """Return the configuration of a fold."""
    networks = ("encoder_widths", "decoder_widths", "discriminator_widths")
    return {
        "run": {"name": f"without-{digit}", "storage": str(work / "runs"), "seed": digit},
        "model": {"latent_dim": LATENT_DIM, **dict.fromkeys(networks, (width, width))},
        "train": {"steps": steps, "log_every_steps": steps},
        "wandb": {"mode": "disabled"},
    }


def scored(scorer: Scorer, images: Array) -> Array:
    """Return the scores of images, in chunks."""
    starts = range(0, len(images), CHUNK)
    return np.concatenate([scorer(images[at : at + CHUNK, None]) for at in starts])


def encoded(run: aae_dist.TrainedRun, images: Array) -> torch.Tensor:
    """Return the codes of images, float32 (N, Z), in chunks."""
    starts = range(0, len(images), CHUNK)
    return torch.cat([run.encode(images[at : at + CHUNK, None]) for at in starts]).float()


def one_fold(digit: int, steps: int, width: int, work: Path, mnist: Path) -> dict[str, Any]:
    """Train without a digit and return what finds it."""
    started = time.process_time()
    (images, labels), (test, test_labels) = (read_mnist(mnist, s) for s in ("train", "t10k"))
    known, held_out = images[:50_000][labels[:50_000] != digit], images[50_000:]
    held_out = held_out[labels[50_000:] != digit]
    aae_dist.train(settings(digit, steps, width, work), known[:, None], progress=False)
    run = aae_dist.load_run(str(work / "runs" / f"without-{digit}"))
    is_left_out = test_labels == digit
    found: dict[str, Any] = {"digit": digit, "steps": steps, "width": width}

    codes = encoded(run, known[:NUM_CODES])
    codes_nZ = encoded(run, held_out[::2])
    densities: dict[str, Density] = {
        "neighbours": Neighbours(codes_nZ),
        "gmm": fit_gmm(codes, 20, 0),
    }
    for name, density in densities.items():
        scorer = Scorer(run, density)
        table = scored(scorer, held_out[::2])
        reference = Reference(scorer.names, table, codes_nZ)
        rows = reference.rank(scored(scorer, test))
        columns = dict(zip(reference.columns, rows.T, strict=True))
        of_column = {n: columns[f"{n}_rank" if n in scorer.names else n] for n in COLUMNS}
        found[name] = {n: auroc(values, is_left_out) for n, values in of_column.items()}
        fresh = reference.rank(scored(scorer, held_out[1::2]))[:, -1]
        found[name]["above_0.95"] = float((fresh > 0.95).mean())

    mean, directions = fit_pca(torch.from_numpy(known[:10_000]).flatten(1) / 255, LATENT_DIM)
    centred = torch.from_numpy(test).flatten(1).double() / 255 - mean
    lost = centred.square().sum(1) - (centred @ directions).square().sum(1)
    found["pca"] = auroc(lost.numpy(), is_left_out)
    found["cpu_seconds"] = time.process_time() - started
    return found


def print_table(folds: list[dict[str, Any]]) -> None:
    """Print AUROC per fold and its mean, and what part of ordinary samples ranks above 0.95."""
    head = ["digit", *COLUMNS, "density: gmm", "combined: gmm", "PCA", "above 0.95"]
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    rows = []
    for fold in folds:
        near, gmm = fold["neighbours"], fold["gmm"]
        row = [near[name] for name in COLUMNS]
        rows.append([*row, gmm["log_density"], gmm["combined"], fold["pca"], near["above_0.95"]])
        print(f"| {fold['digit']} | " + " | ".join(f"{value:.3f}" for value in rows[-1]) + " |")
    print("| mean | " + " | ".join(f"{value:.3f}" for value in np.mean(rows, 0)) + " |")


def main() -> None:
    """Run the folds that are missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mnist", type=Path, required=True, help="folder of the idx files")
    parser.add_argument("--work", type=Path, default=Path("anomaly"))
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--width", type=int, default=400, help="units of each hidden layer")
    parser.add_argument("--folds", default="0,1,2,3,4,5,6,7,8,9")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    folds = []
    for digit in map(int, arguments.folds.split(",")):
        file = arguments.work / f"fold-{digit}.json"
        if not file.exists():
            sizes = (arguments.steps, arguments.width)
            result = one_fold(digit, *sizes, arguments.work, arguments.mnist)
            file.write_text(json.dumps(result, indent=1))
        folds.append(json.loads(file.read_text()))
    print_header("anomaly: one digit left out")
    print_table(folds)


if __name__ == "__main__":
    main()
