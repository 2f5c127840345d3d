"""How the match with the prior depends on the latent size, by method, on data of known dimension.

    python benchmarks/latent_size.py --work DIR [--quick] [SET ...]

Every set is one sweep of `aae-dist tune` with launch.kind=local in DIR: sizes x methods x seeds. A
study that was stopped continues with the same command, and a finished one only prints again. Per
set and method it fits C2ST as a logistic function of the logarithm of the size and prints d*, the
size where the fit crosses 0.65, with a 95 % interval from resampling seeds; next to it the true
dimension and what TwoNN and MLE say of the data before any training; and it draws all of them to
DIR/latent-size.png. On digits the sampling gap is how much farther decoded prior samples are from
the validation images than reconstructions are, by the Fréchet distance of wavelet packets. --quick
is the cut of 63 trials on digits.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from balance import _field, smooth_maps
from numpy.typing import NDArray
from timing import print_header
from webdataset import TarWriter

from aae_dist.cli.main import main as aae_dist
from aae_dist.sweeps import SweepRecord, read_sweep

Array = NDArray[Any]
CROSSING = 0.65
"""C2ST above which a match is called lost, as in sweeps with that constraint."""
NUM_RESAMPLES = 200
METHODS: Mapping[str, Mapping[str, Any]] = {
    "adversarial": {"kind": "adversarial"},
    "mmd": {"kind": "mmd"},
    "sliced_wasserstein": {"kind": "sliced_wasserstein"},
    "characteristic": {"kind": "characteristic"},
    "variational": {"kind": "variational"},
}
QUICK_METHODS = ("adversarial", "sliced_wasserstein", "characteristic")
SIZES, QUICK_SIZES = (2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128), (2, 4, 8, 12, 16, 32, 64)
KNOWN = {f"map of {d}": d for d in (2, 5, 10, 20)}
"""Sets of a known dimension: random smooth maps of Gaussians into 100 numbers."""
SETS = ("digits", *KNOWN)
SCORES = {"mse": "reconstruction/mse", "c2st": "prior_match/c2st"}
GAP = ("samples/frechet_distance", "reconstruction/frechet_distance")


Points = dict[str, dict[float, list[tuple[float, float, float]]]]
"""By method and size: (mse, c2st, sampling gap or NaN) per seed."""


def write_shards(name: str, work: Path) -> Path:
    """Write train.tar and validation.tar of a set of known dimension, once."""
    folder = work / "data" / name.replace(" ", "-")
    if (folder / "done").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    rows: Array = smooth_maps(KNOWN[name])(np.random.default_rng(0)).astype(np.float32)
    for split, part in (("validation", rows[:2000]), ("train", rows[2000:])):
        with TarWriter(str(folder / f"{split}.tar")) as tar:
            for number, row in enumerate(part):
                tar.write({"__key__": f"{number:06d}", **_field(row)})
    (folder / "done").touch()
    return folder


def overrides(name: str, options: argparse.Namespace) -> list[str]:
    """Return the configuration of a set's sweep."""
    work: Path = options.work
    methods = options.methods or (QUICK_METHODS if options.quick else tuple(METHODS))
    sizes = QUICK_SIZES if options.quick else SIZES
    posterior = "gaussian" if options.posterior == "gaussian" else "deterministic"
    if posterior == "deterministic":
        methods = tuple(method for method in methods if method != "variational")
    hidden = ", ".join(
        f"{part}_widths: [{options.width}, {options.width}]"
        for part in ("encoder", "decoder", "discriminator")
    )
    space = {
        "method": {"grid": [METHODS[method] for method in methods]},
        "model.latent_dim": {"grid": list(sizes)},
        "run.seed": {"grid": list(range(options.seeds))},
    }
    if name == "digits":
        data = ["data.train=builtin://digits/train", "data.validation=builtin://digits/validation"]
        data.append("evaluation.features=wavelet")
    else:
        folder = write_shards(name, work)
        data = [f"data.{k}={folder / v}" for k, v in (("train", "train.tar"),)]
        data += [f"data.validation={folder / 'validation.tar'}", "data.image_keys=[npy]"]
        data += ["model.decoder_output=linear"]
    label = [name.replace(" ", "-"), posterior, str(options.steps), *["quick"] * options.quick]
    label += options.methods
    return [
        *(f"sweep.name={'-'.join(label)}", f"run.storage={work}", *data),
        *(f"model={{{hidden}}}", f"posterior.kind={posterior}"),
        *(f"sweep.space={json.dumps(space)}", "sweep.metric=reconstruction/mse"),
        f"sweep.constraints={{prior_match/c2st: {CROSSING}}}",
        *(f"train.steps={options.steps}", "train.global_batch_size=128"),
        *("train.log_every_steps=500", f"checkpoint.every_steps={options.steps}"),
        *("launch.kind=local", "launch.cpus_per_worker=1", "wandb.mode=disabled"),
        *([f"sweep.max_concurrent={options.concurrent}"] if options.concurrent else []),
    ]


def run_sweep(name: str, options: argparse.Namespace) -> SweepRecord:
    """Run or resume the sweep of a set, and read it."""
    items = overrides(name, options)
    if code := aae_dist(["tune", *items]):
        raise SystemExit(code)
    sweep_name = items[0].removeprefix("sweep.name=")
    return read_sweep(str(options.work / sweep_name), histories=False)


def points_of(sweep: SweepRecord) -> Points:
    """Return the scores of the finished trials."""
    found: Points = {}
    for trial in sweep.trials:
        scores = [trial.metrics.get(metric) for metric in SCORES.values()]
        if trial.state != "finished" or None in scores:
            continue
        by_size = found.setdefault(trial.parameters["method"]["kind"], {})
        mse, c2st = (float(score or 0.0) for score in scores)
        samples, rebuilt = (trial.metrics.get(metric) or math.nan for metric in GAP)
        size = float(trial.parameters["model.latent_dim"])
        by_size.setdefault(size, []).append((mse, c2st, samples - rebuilt))
    return found


def logistic(x: Array, middle: Array, slope: Array, bottom: Array, top: Array) -> Array:
    """Return C2ST as a function of log2 of the size: `bottom` at small sizes, `top` at large."""
    curve: Array = bottom + (top - bottom) / (1 + np.exp(-slope * (x - middle)))
    return curve


@lru_cache
def curves(sizes: tuple[float, ...]) -> tuple[Array, Array]:
    """Return (middle, slope, bottom, top) of many curves, [M, 4], and their values, [M, n].

    A grid, since four parameters on few points have no reliable starting values. The bottom is what
    training of that length reaches at sizes that can be matched: not 0.5.
    """
    x = np.log2(np.array(sizes))
    middles, slopes = np.linspace(x.min() - 2, x.max() + 4, 91), (0.5, 0.75, 1, 1.5, 2, 3, 4, 6)
    bottoms, tops = np.linspace(0.5, CROSSING - 0.01, 8), np.linspace(CROSSING, 1.0, 8)
    grid = np.array(list(product(middles, slopes, bottoms, tops)))
    return grid, logistic(x, *(column[:, None] for column in grid.T))


def fit(sizes: Array, c2st: Array) -> tuple[float, float, float, float]:
    """Return (middle, slope, bottom, top) of the curve that is nearest to the values."""
    grid, values = curves(tuple(sizes))
    middle, slope, bottom, top = grid[np.square(values - c2st).sum(1).argmin()]
    return float(middle), float(slope), float(bottom), float(top)


def crossing(sizes: Array, c2st: Array) -> float:
    """Return the size where the fitted C2ST crosses 0.65; infinite where it stays below.

    Also infinite if it would cross only beyond twice the largest size.
    """
    middle, slope, bottom, top = fit(sizes, c2st)
    share = (CROSSING - bottom) / (top - bottom)
    if share >= 1:
        return math.inf
    size = float(2 ** (middle + math.log(share / (1 - share)) / slope))
    return size if size <= 2 * max(sizes) else math.inf


def interval(by_size: Mapping[float, Sequence[tuple[float, ...]]]) -> tuple[float, float, float]:
    """Return d* and its 95 % interval, from resampling the seeds of each size."""
    sizes = np.array(sorted(by_size))
    values = [np.array([seed[1] for seed in by_size[size]]) for size in sizes]
    draw = np.random.default_rng(0)

    def of(choose: Callable[[Array], Array]) -> float:
        return crossing(sizes, np.array([choose(seeds).mean() for seeds in values]))

    resampled = [of(lambda s: draw.choice(s, len(s))) for _ in range(NUM_RESAMPLES)]
    low, high = np.quantile(np.array(resampled), (0.025, 0.975), method="nearest")
    return of(lambda seeds: seeds), float(low), float(high)


def report(name: str, sweep: SweepRecord) -> dict[str, float]:
    """Print the table of a set; return its d* by method."""
    found = points_of(sweep)
    first = next((t.metrics for t in sweep.trials if "data/dimension_mle" in t.metrics), {})
    estimates = [first.get(f"data/dimension_{by}") or math.nan for by in ("twonn", "mle")]
    truth = KNOWN.get(name, "unknown")
    print(f"\n{name}: true dimension {truth}, TwoNN {estimates[0]:.1f}, MLE {estimates[1]:.1f}")
    print("| method | size | mse | C2ST | sampling gap | seeds |")
    print("|---|---|---|---|---|---|")
    for method, by_size in found.items():
        for size, seeds in sorted(by_size.items()):
            mse, c2st, gap = np.array(seeds).mean(0)
            scores = f"{mse:.5f} | {c2st:.3f} | {gap:.4f}"
            print(f"| {method} | {size:g} | {scores} | {len(seeds)} |")
    critical = {}
    for method, by_size in found.items():
        value, low, high = interval(by_size)
        critical[method] = value
        print(f"d* of {method}: {value:.1f} (95 % interval {low:.1f} to {high:.1f})")
    return critical


def draw(found: Mapping[str, Points], path: Path) -> None:
    """Draw C2ST with its fit and mse against size: one column per set, one colour per method."""
    figure, grid = plt.subplots(2, len(found), figsize=(3.4 * len(found), 5.2), squeeze=False)
    for (top, bottom), (name, points) in zip(grid.T, found.items(), strict=True):
        for method, by_size in points.items():
            color = f"C{list(METHODS).index(method)}"
            sizes = np.array(sorted(by_size))
            mean = np.array([np.mean(by_size[size], 0) for size in sizes])
            for size in sizes:
                top.scatter(
                    [size] * len(by_size[size]), [seed[1] for seed in by_size[size]], 8, color
                )
            x = np.linspace(np.log2(sizes[0]), np.log2(sizes[-1]))
            top.plot(2**x, logistic(x, *map(np.array, fit(sizes, mean[:, 1]))), color, label=method)
            bottom.plot(sizes, mean[:, 0], color, marker="o", markersize=3)
        top.axhline(CROSSING, color="grey", linestyle=":")
        top.set(title=name, ylim=(0.45, 1.02))
        bottom.set(xlabel="latent size", ylim=(0, None))
        for axes in (top, bottom):
            axes.set_xscale("log", base=2)
            if name in KNOWN:
                axes.axvline(KNOWN[name], color="grey", linewidth=0.8)
    grid[0, 0].set_ylabel("C2ST")
    grid[1, 0].set_ylabel("mean squared error")
    grid[0, 0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Return Spearman's rank correlation of values without ties."""
    ranks = [np.argsort(np.argsort(np.array(values))) for values in (a, b)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def main() -> None:
    """Run the study and print it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("sets", nargs="*", choices=[*SETS, []], default=[], metavar="SET")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--quick", action="store_true", help="7 sizes, 3 methods, 3 seeds, digits")
    parser.add_argument("--posterior", choices=("deterministic", "gaussian"), default="gaussian")
    parser.add_argument("--methods", nargs="*", choices=[*METHODS, []], default=[])
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--width", type=int, default=400)
    parser.add_argument("--concurrent", type=int)
    options = parser.parse_args()
    options.work = options.work.resolve()
    print_header("The match with the prior by latent size")
    sets = options.sets or (["digits"] if options.quick else list(SETS))
    started, critical = time.monotonic(), dict[str, dict[str, float]]()
    found = dict[str, Points]()
    for name in sets:
        sweep = run_sweep(name, options)
        found[name], critical[name] = points_of(sweep), report(name, sweep)
    draw(found, options.work / "latent-size.png")
    known = [name for name in sets if name in KNOWN]
    if len(known) > 2:
        truth = [float(KNOWN[name]) for name in known]
        for method in METHODS:
            values = [critical[name][method] for name in known if method in critical[name]]
            if len(values) == len(truth):
                print(f"{method}: rank correlation {rank_correlation(truth, values):.2f}")
    print(f"{time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
