"""Error and match of every method on unlike data, with the defaults of the project.

    python benchmarks/balance.py [--mnist DIR] [--seeds 3] [--quick] [--work DIR] [SET ...]

Each data set is here or is made by a seed. Results are kept in benchmarks/results/balance.jsonl (or
--results), so a run that was stopped continues; the table and the picture, a panel per set, are
made from all results there. Delete its lines of a method whose defaults have changed.
"""

import argparse
import contextlib
import gzip
import io
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from timing import print_header
from webdataset import TarWriter

from aae_dist import load_run
from aae_dist.cli.main import main as aae_dist
from aae_dist.data.dataset import open_dataset
from aae_dist.evaluation.prior_match import c2st
from aae_dist.utils.arrays import stratified

Array = NDArray[Any]
NUM_SCORED = 2000
"""Training samples whose codes are scored; validation sets have as many."""


def counts(numbers: np.random.Generator) -> Array:
    """Log counts as of single cells: 5 types, unequal library sizes, 4,000 x 500."""
    types, genes, num, dispersion = 5, 500, 4000, 2.0
    mean = np.exp(numbers.normal(-1, 1.2, (1, genes)) + numbers.normal(0, 0.9, (types, genes)))
    rate = mean[numbers.integers(0, types, num)] * numbers.lognormal(0, 0.4, num)[:, None]
    drawn = numbers.negative_binomial(dispersion, dispersion / (dispersion + rate))
    logs: Array = np.log1p(drawn / np.maximum(drawn.sum(1, keepdims=True), 1) * 1e4)
    return logs


def table(numbers: np.random.Generator) -> Array:
    """A table of 50 features, heavy-tailed, on scales from 0.03 to 20."""
    factors = numbers.standard_t(4, (6000, 6))
    mixed = np.tanh(factors @ numbers.normal(size=(6, 50)) / 2.4)
    mixed += 0.12 * factors @ numbers.normal(size=(6, 50)) + 0.1 * numbers.standard_t(
        5, mixed.shape
    )
    scales = np.exp(numbers.uniform(math.log(0.03), math.log(20), 50))
    return mixed * scales + 5 * numbers.normal(size=50)


def smooth_maps(dimension: int) -> Callable[[np.random.Generator], Array]:
    """Return a maker of vectors of a known dimension: a random smooth map of a Gaussian."""

    def make(numbers: np.random.Generator) -> Array:
        u = numbers.normal(size=(8000, dimension))
        inner = numbers.normal(size=(dimension, 64)) / math.sqrt(dimension)
        waves = np.sin(u @ inner + numbers.uniform(0, 2 * math.pi, 64))
        return waves @ numbers.normal(size=(64, 100)) / 4 + 0.02 * numbers.normal(size=(8000, 100))

    return make


def breast_cancer(_: np.random.Generator) -> Array:
    """The table of 30 features that comes with scikit-learn, on scales from 0.001 to 1,000."""
    from sklearn.datasets import load_breast_cancer  # an extra of this benchmark

    data: Array = load_breast_cancer().data
    return data


@dataclass(frozen=True)
class DataSet:
    """Samples and the settings that belong to them; all else is default."""

    make: Callable[[np.random.Generator], Array] | None
    """Vectors (N, D); None for images of digits."""
    settings: tuple[str, ...]
    steps: int = 3000
    colour: bool = False


def widths(latent_dim: int) -> str:
    """Return the setting of networks of two layers of 256."""
    sizes = ", ".join(f"{part}_widths: [256, 256]" for part in ("encoder", "decoder"))
    return f"model={{latent_dim: {latent_dim}, {sizes}, discriminator_widths: [256, 256]}}"


VECTORS = ("data.image_keys=[npy]", "model.decoder_output=linear")
GAUSSIAN = "posterior.kind=gaussian"
SETS = {
    "digits, 8": DataSet(None, (widths(8),)),
    "digits, 32": DataSet(None, (widths(32),)),
    "digits, 64": DataSet(None, (widths(64),)),
    "digits, 128": DataSet(None, (widths(128),)),
    "mixture, 2": DataSet(None, (widths(2), GAUSSIAN, "prior.kind=mixture")),
    "swiss roll, 2": DataSet(None, (widths(2), GAUSSIAN, "prior.kind=swiss_roll")),
    "colour, 16": DataSet(
        None,
        ("model={kind: conv, latent_dim: 16, discriminator_widths: [256, 256]}",),
        steps=1000,
        colour=True,
    ),
    "counts, 10": DataSet(counts, (widths(10), GAUSSIAN, *VECTORS)),
    "table, 8": DataSet(table, (widths(8), *VECTORS)),
    "map of 5, 5": DataSet(smooth_maps(5), (widths(5), *VECTORS)),
    "map of 10, 16": DataSet(smooth_maps(10), (widths(16), *VECTORS)),
    "breast cancer, 2": DataSet(breast_cancer, (widths(2), *VECTORS), steps=1000),
}
"""By name: kind of data, latent size."""
METHODS = {
    "adversarial": (),
    "sliced_wasserstein": ("method.kind=sliced_wasserstein",),
    "mmd": ("method.kind=mmd",),
    "variational": ("method.kind=variational", GAUSSIAN),
    "autoencoder": ("method.kind=autoencoder",),
    "former defaults": (
        "method.balance=none",
        "data.standardize=false",
        "phases.reconstruction.optimizer.lr=2e-3",
        "phases.discriminator.optimizer.lr=1e-3",
        "phases.generator.optimizer={lr: 1e-3, betas: [0.5, 0.999], eps: 1e-3}",
    ),
}


def read_digits(mnist: Path | None) -> Array:
    """Return uint8 (N, 28, 28): MNIST of a folder of its files, or the digits that are shipped."""
    if mnist is None:
        dataset = open_dataset("builtin://digits/train", _data_settings("builtin://digits/train"))
        images = dataset.load(np.arange(len(dataset))).images
        digits: Array = images[:, 0].numpy()
        return digits
    [file] = mnist.glob("train-images-idx3-ubyte*")
    content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    return np.frombuffer(content[16:], np.uint8).reshape(-1, 28, 28)[:20000]


def _data_settings(train: str) -> Any:
    from aae_dist.config import load_config

    overrides = ["run.name=x", "train.steps=1", f"data.train={train}"]
    return load_config([], overrides).config.data


def turned(digits: Array, seed: int) -> Array:
    """Return uint8 (N, 32, 32, 3): digits turned by up to 60 degrees, in two colours each."""
    draw = torch.Generator().manual_seed(seed)
    x = F.pad(torch.from_numpy(digits[:12000].copy()).float()[:, None] / 255, (2, 2, 2, 2))
    angle = (torch.rand(len(x), generator=draw) * 2 - 1) * math.pi / 3
    c, s, zero = angle.cos(), angle.sin(), torch.zeros(len(x))
    turn = torch.stack([torch.stack([c, -s, zero], 1), torch.stack([s, c, zero], 1)], 1)
    grid = F.affine_grid(turn, [len(x), 1, 32, 32], align_corners=False)
    x = F.grid_sample(x, grid, align_corners=False)
    ink = torch.rand(len(x), 3, 1, 1, generator=draw)
    paper = 0.5 * torch.rand(len(x), 3, 1, 1, generator=draw)
    painted: Array = (255 * (x * ink + (1 - x) * paper)).round().byte().permute(0, 2, 3, 1).numpy()
    return painted


def write_shards(name: str, mnist: Path | None, work: Path) -> Path:
    """Write train.tar and validation.tar of a set, once; return their folder."""
    folder = work / "data" / name.replace(" ", "_").replace(",", "")
    if (folder / "done").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    chosen, numbers = SETS[name], np.random.default_rng(0)
    if chosen.make is not None:
        rows = chosen.make(numbers).astype(np.float32)
    else:
        rows = read_digits(mnist)
        rows = turned(rows, 0) if chosen.colour else rows
    rows = rows[np.random.default_rng(1).permutation(len(rows))]
    held = min(NUM_SCORED, len(rows) // 5)
    for split, part in (("validation", rows[:held]), ("train", rows[held:])):
        with TarWriter(str(folder / f"{split}.tar")) as tar:
            for number, row in enumerate(part):
                tar.write({"__key__": f"{number:06d}", **_field(row)})
    (folder / "done").touch()
    return folder


def _field(row: Array) -> dict[str, Any]:
    if row.dtype == np.uint8:
        return {"png": row}
    buffer = io.BytesIO()
    np.save(buffer, row)
    return {"npy": buffer.getvalue()}


def train(run: str, seed: int, steps: int, folder: Path, work: Path, *settings: str) -> Any:
    """Train on a set's shards with one thread; return summary.json, or `error`."""
    overrides = [
        *(f"run.name={run}", f"run.storage={work / 'runs'}", f"run.seed={seed}"),
        *(f"data.train={folder / 'train.tar'}", f"data.validation={folder / 'validation.tar'}"),
        *(f"train.steps={steps}", "train.global_batch_size=128", "train.log_every_steps=500"),
        *("launch.kind=local", "launch.cpus_per_worker=1", "wandb.mode=disabled"),
        *settings,
    ]
    with contextlib.redirect_stdout(io.StringIO()) as said:
        code = aae_dist(["train", *overrides])
    if code:
        return {"error": said.getvalue().strip().splitlines()[-1:] or code}
    return json.loads((work / "runs" / run / "summary.json").read_text())


def measure(name: str, method: str, seed: int, steps: int, folder: Path, work: Path) -> Any:
    """Train once; return its scores."""
    run = f"{name}-{method}-{seed}-{steps}".replace(" ", "_").replace(",", "")
    started = time.perf_counter()
    settings = (*SETS[name].settings, *METHODS[method])
    summary = train(run, seed, steps, folder, work, *settings)
    if "error" in summary:
        return summary
    trained = load_run(str(work / "runs" / run))
    dataset = open_dataset(str(folder / "train.tar"), trained.config.data, trained.image_shape)
    images = dataset.load(stratified(min(NUM_SCORED, len(dataset)), len(dataset))).images
    draw = torch.Generator().manual_seed(seed)
    codes = trained.encode(images, generator=draw).float()
    own = c2st(codes, trained.prior.sample(len(codes), draw).float(), draw).value
    names = ("reconstruction/mse", "prior_match/c2st", "prior_match/sliced_wasserstein")
    return {
        **{short: summary["metrics"][long] for short, long in zip(SCORES, names, strict=False)},
        "train_c2st": own,
        "seconds": round(time.perf_counter() - started, 1),
        "alarms": sorted(summary.get("alarms", [])),
    }


RESULTS = Path(__file__).parent / "results" / "balance.jsonl"
SCORES = ("mse", "c2st", "sliced_wasserstein")


def planned(arguments: argparse.Namespace) -> Iterator[tuple[str, str, int, int]]:
    """Yield set, method, seed and steps of each run."""
    for seed in range(1 if arguments.quick else arguments.seeds):
        for name in arguments.sets or SETS:
            for method in METHODS:
                if method == "variational" and "prior.kind=swiss_roll" in SETS[name].settings:
                    continue  # it has no density
                yield name, method, seed, SETS[name].steps // (3 if arguments.quick else 1)


def print_table(results: list[dict[str, Any]], work: Path) -> None:
    """Print the means over seeds, mark the front of each set, and draw it."""
    print(
        "| data, latent size | method | mse | C2ST | on train | alarms | seconds | on the front |"
    )
    print("|---|---|---|---|---|---|---|---|")
    fronts = {}
    for name in SETS:
        rows: dict[str, list[Any]] = {}
        for result in results:
            if result["set"] == name and "mse" in result:
                rows.setdefault(result["method"], []).append(result)
        means = {
            method: [
                statistics.fmean(r[key] for r in found) for key in ("mse", "c2st", "train_c2st")
            ]
            for method, found in rows.items()
        }
        for method, (mse, match, train) in means.items():
            better = [m for m in means.values() if m[0] < mse and m[1] < match]
            alarmed = sum(bool(r["alarms"]) for r in rows[method])
            seconds = statistics.fmean(r["seconds"] for r in rows[method])
            print(
                f"| {name} | {method} | {mse:.4g} | {match:.3f} | {train:.3f} | "
                f"{alarmed}/{len(rows[method])} | {seconds:.0f} | {'' if better else 'yes'} |"
            )
        if means:
            fronts[name] = means
    if fronts:
        draw_fronts(fronts, work / "balance.png")


def draw_fronts(found: dict[str, dict[str, list[float]]], path: Path) -> None:
    """Draw error against match of every method, one panel per set."""
    columns = 5
    rows = -(-len(found) // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(2.9 * columns, 2.6 * rows), squeeze=False)
    for axes, (name, means) in zip(grid.flat, found.items(), strict=False):
        for number, method in enumerate(METHODS):
            if method in means:
                mse, match, _ = means[method]
                axes.scatter(mse, match, color=f"C{number}", marker="os^Dv*"[number], label=method)
        axes.axhline(0.5, color="grey", linestyle=":")
        axes.set(ylim=(0.48, 1.02), title=name)
        axes.xaxis.set_major_locator(MaxNLocator(3))
    for axes in grid.flat[len(found) :]:
        axes.axis("off")
    for axes in grid[-1]:
        axes.set_xlabel("mean squared error")
    for axes in grid[:, 0]:
        axes.set_ylabel("C2ST")
    lines = max((axes.get_legend_handles_labels() for axes in grid.flat), key=lambda h: len(h[1]))
    figure.legend(*lines, loc="outside lower right", ncols=len(METHODS))
    figure.tight_layout(rect=(0, 0.04, 1, 1))
    figure.savefig(path, dpi=80)
    plt.close(figure)


def main() -> None:
    """Run what is missing, then print all results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sets", nargs="*", metavar="SET", help=", ".join(SETS))
    parser.add_argument("--mnist", type=Path, help="folder of MNIST's files; else shipped digits")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one seed, a third of the steps")
    parser.add_argument("--work", type=Path, default=Path("runs/balance"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if unknown := set(arguments.sets) - set(SETS):
        parser.error(f"no such set: {', '.join(sorted(unknown))}; use {', '.join(SETS)}")
    work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    file = arguments.results
    results = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    keys = ("set", "method", "seed", "steps")
    done = {tuple(r[key] for key in keys) for r in results}
    print_header("Balance of error and match")
    for plan in planned(arguments):
        if plan in done:
            continue
        name, method, seed, steps = plan
        folder = write_shards(name, arguments.mnist, work)
        result = dict(zip(keys, plan, strict=True)) | measure(*plan, folder, work)
        results.append(result)
        with file.open("a") as out:
            out.write(json.dumps(result) + "\n")
        print(f"{name}, {method}, seed {seed}: {result}", flush=True)
    wanted = {plan[3] for plan in planned(arguments)}
    print_table([r for r in results if r["steps"] in wanted], work)


if __name__ == "__main__":
    main()
