"""The paper's tables on MNIST, from one command, through `aae-dist tune`.

    python benchmarks/paper.py --work DIR --mnist DATA [--quick] [--seeds N] [ROW ...]

Every variant of a row is a sweep with launch.kind=local in DIR; its trials are seeds. What was
stopped continues with the same command. Finished trials are added to docs/paper.jsonl, and the
table of docs/paper.md is written from that file; a trial that is in it does not run again. A seed
is another labelled set, or another run.seed in rows without one. --quick trains networks of 128 for
half an epoch, to see that all works, and writes nothing to docs.
"""

import argparse
import json
import math
import statistics
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from paper_scores import clusters_of_kmeans, parzen, style_swaps_and_probe
from timing import print_header

from aae_dist.cli.main import main as command
from aae_dist.sweeps import TrialRecord, read_sweep

ROOT = Path(__file__).parents[1]
RESULTS, PAGE = ROOT / "docs" / "paper.jsonl", ROOT / "docs" / "paper.md"
MARKS = ("<!-- table: benchmarks/paper.py -->", "<!-- end of table -->")
OFF = 1e-30
"""Learning rate, or weight, of what changes nothing."""
Scores = dict[str, float]
After = Callable[[str, argparse.Namespace], Scores]
"""(URI of a run, options) -> scores that the run itself does not measure."""


def off(*phases: str) -> tuple[str, ...]:
    """Return the keys that switch phases off."""
    return tuple(f"phases.{phase}.optimizer.lr={OFF}" for phase in phases)


@dataclass(frozen=True)
class Variant:
    """A way to train a row's networks: what differs from the row's own configuration."""

    title: str
    items: tuple[str, ...] = ()
    after: After | None = None
    metric: str | None = None
    """The row's, unless another one is compared with the paper's."""


OURS = {"ours": Variant("ours")}
WITH_LABELS = {
    **OURS,
    "unsmoothed": Variant("without smoothness", ("method.smoothness=0",)),
    "unmatched": Variant(
        "without adversaries", (f"method.weight={OFF}", "method.distance_weight=0")
    ),
    "unreconstructed": Variant("without reconstruction", off("reconstruction")),
    "labels": Variant("labels alone", off("reconstruction", "generator")),
}
CLUSTERS = {
    **OURS,
    "unsmoothed": Variant("without smoothness", ("method.smoothness=0",)),
    "kmeans": Variant(
        "k-means on codes of a plain autoencoder",
        ("method={kind: autoencoder}", "prior={kind: gaussian}", "model.latent_dim=10"),
        after=clusters_of_kmeans,
        metric="kmeans/codes_error",
    ),
}


@dataclass(frozen=True)
class Row:
    """A number of the paper, and what is to be met here."""

    title: str
    paper: str
    public: str
    target: float
    metric: str
    items: tuple[str, ...]
    files: tuple[str, ...] = ()
    labels: int | None = None
    variants: Mapping[str, Variant] = field(default_factory=lambda: OURS)
    percent: bool = True
    more_is_better: bool = False
    guided: bool = False
    """Whether the labels are those of `data.train`, next to samples without."""
    wide_target: float | None = None
    """That of networks of 1,000 units."""


FEW = ("configs/method/semi_supervised.yaml",)
CLUSTERING = ("configs/method/clustering.yaml",)
REDUCTION = ("configs/method/reduction.yaml",)
RATES = {"reconstruction": 2e-4, "generator": 2e-4, "classification": 4e-4}
"""Of both files, for networks of 1,000 units."""
NOT_KNOWN = "none known"
ROWS: Mapping[str, Row] = {
    "labels-100": Row(
        "100 labels, error", "1.90 +- 0.10", "about 5 (no code); 21.8 with code", 8.0,
        "classification/error", (), FEW, 100, WITH_LABELS, wide_target=5.0,
    ),
    "labels-1000": Row(
        "1,000 labels, error", "1.60 +- 0.08", "4.0 to 6.9", 4.0,
        "classification/error", (), FEW, 1000, WITH_LABELS,
    ),
    "labels-all": Row(
        "all labels, error", "0.85 +- 0.02", NOT_KNOWN, 2.0, "classification/error", (), FEW,
        60_000, {"ours": OURS["ours"], "labels": WITH_LABELS["labels"]},
    ),
    "guided-10000": Row(
        "prior guided by 10,000 labels: codes nearest to another mode", "pictures only",
        NOT_KNOWN, 10.0, "classification/error", (), ("configs/method/label_guided.yaml",),
        10_000, guided=True,
    ),
    "clusters-16": Row(
        "16 clusters, error", "9.55 +- 2.05", NOT_KNOWN, 20.0, "clustering/error", (), CLUSTERING,
        variants=CLUSTERS, wide_target=12.0,
    ),
    "clusters-30": Row(
        "30 clusters, error", "4.10 +- 1.13", NOT_KNOWN, 20.0, "clustering/error",
        (
            "model.latent_dim=35",
            "prior.parts=[{dims: 30, prior: {kind: categorical}}, {dims: 5}]",
        ),
        CLUSTERING,
    ),
    "reduction-100": Row(
        "2-D, 100 labels, error", "6.08", "about 26", 10.0, "classification/error", (), REDUCTION,
        100,
    ),
    "reduction-1000": Row(
        "2-D, 1,000 labels, error", "4.20", NOT_KNOWN, 8.0, "classification/error", (), REDUCTION,
        1000,
    ),
    "reduction-20": Row(
        "2-D, no labels, 20 clusters, error", "13.95", NOT_KNOWN, 20.0, "clustering/error",
        (
            "model={latent_dim: 22, cluster_heads: {}}",
            "prior.parts=[{dims: 20, prior: {kind: categorical}}, {dims: 2}]",
        ),
        CLUSTERING,
    ),
    "style": Row(
        "style swaps read as the class asked for", "pictures only", NOT_KNOWN, 95.0,
        "style/swaps_right", (), ("configs/method/supervised.yaml",),
        variants={"ours": Variant("ours", after=style_swaps_and_probe)}, more_is_better=True,
    ),
    "parzen": Row(
        "Parzen log-likelihood, 10,000 samples, nats", "340 +- 2", "340.1, 377.5", 335.0,
        "parzen/log_likelihood", ("model.latent_dim=6", "method.weight=0.42"),
        variants={"ours": Variant("ours", after=parzen)}, percent=False, more_is_better=True,
    ),
}  # fmt: skip


def packed(options: argparse.Namespace, labels: int | None, seed: int) -> Path:
    """Return MNIST's shards in the work folder, with so many labels, packed once."""
    name = "mnist" if labels is None else f"mnist-{labels}-{seed}"
    folder: Path = options.work / "data" / name
    if not (folder / "validation" / "manifest.json").exists():
        few = () if labels is None else ("--labelled", str(labels), "--seed", str(seed))
        arguments = ["data", "pack", "mnist", "--root", str(options.mnist), "--out", str(folder)]
        if code := command([*arguments, *few]):
            raise SystemExit(code)
    return folder


def overrides(row: Row, name: str, variant: Variant, options: argparse.Namespace) -> list[str]:
    """Return the arguments of `aae-dist tune` for a variant's sweep over its seeds."""
    seeds, plain = list(range(options.seeds)), packed(options, None, 0)
    if row.labels is None:
        space: dict[str, Any] = {"run.seed": {"grid": seeds}}
    else:
        sets = [packed(options, row.labels, seed) for seed in seeds]
        labelled = [str(folder / "labelled") for folder in sets]
        both = [[str(folder / "labelled"), str(folder / "train")] for folder in sets]
        space = (
            {"data.train": {"grid": both}} if row.guided else {"data.labelled": {"grid": labelled}}
        )
    width = f"[{options.width}, {options.width}]"
    # Rates in proportion to the width: those of 400 units lose the labels' classes with 1,000.
    rates = (
        f"phases.{phase}.optimizer.lr={rate * min(2.5, 1000 / options.width):g}"
        for phase, rate in (RATES.items() if row.files in (FEW, REDUCTION) else ())
    )
    widths = (f"model.{n}_widths={width}" for n in ("encoder", "decoder", "discriminator"))
    per_epoch = 60_000 // options.batch
    steps = max(1, round(options.epochs * per_epoch))
    return [
        *(str(ROOT / file) for file in row.files),
        *(f"run.storage={options.work}", f"sweep.name={name}", f"sweep.space={json.dumps(space)}"),
        *("sweep.metric=reconstruction/mse", "sweep.max_concurrent=1"),
        *(f"data.train={plain / 'train'}", f"data.validation={plain / 'validation'}"),
        *row.items,
        *widths,
        *rates,
        *(f"train.steps={steps}", f"train.global_batch_size={options.batch}"),
        *(f"train.log_every_steps={per_epoch // 2}", f"checkpoint.every_steps={5 * per_epoch}"),
        f"train.evaluate_every_steps={max(1, steps // options.evaluations)}",
        f"train.precision={options.precision}",
        *("launch.kind=local", "launch.cpus_per_worker=1", "wandb.mode=disabled"),
        *variant.items,
    ]


Result = dict[str, Any]


def settings(key: str, variant: str, seed: int, options: argparse.Namespace) -> Result:
    """Return what names a result: two results with the same are the same trial."""
    return {
        **{"row": key, "variant": variant, "seed": seed},
        **{"epochs": options.epochs, "width": options.width, "batch": options.batch},
        "precision": options.precision,
    }


def run(key: str, name: str, options: argparse.Namespace, known: list[Result]) -> Iterable[Result]:
    """Run or resume a variant's sweep, and yield the results that are not known yet."""
    row, variant = ROWS[key], ROWS[key].variants[name]
    wanted = {seed: settings(key, name, seed, options) for seed in range(options.seeds)}
    missing = {s: w for s, w in wanted.items() if not any(w.items() <= k.items() for k in known)}
    if not missing:
        return
    sweep = f"{key}-{name}-{options.width}-{options.epochs:g}".replace(".", "_")
    if code := command(["tune", *overrides(row, sweep, variant, options)]):
        raise SystemExit(code)
    for trial in read_sweep(str(options.work / sweep)).trials:
        (place,) = trial.parameters.values()
        place = place[0] if isinstance(place, list) else place
        seed = place if isinstance(place, int) else int(Path(place).parent.name.rpartition("-")[2])
        if trial.state == "finished" and seed in missing:
            metric = variant.metric or row.metric
            more = variant.after(trial.uri, options) if variant.after else {}
            yield {**missing[seed], **result(trial, metric, more), "metric": metric}


KEPT = (
    "reconstruction/mse",
    "prior_match/c2st",
    "codes/class_entropy",
    "codes/confidence",
    "clustering/nmi",
)


def result(trial: TrialRecord, metric: str, more: Scores) -> Result:
    """Return a finished trial's score, its curve over epochs, and what else it measured."""
    scores = {**trial.metrics, **more}
    points = [(p.get("epoch"), p[metric]) for p in trial.history if p.get(metric) is not None]
    return {
        "value": scores[metric],
        "seconds": round(trial.seconds),
        "curve": [[round(float(epoch or 0), 2), round(value, 4)] for epoch, value in points],
        "scores": {n: scores[n] for n in (*KEPT, *more) if scores.get(n) is not None},
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
    }


def read_results(path: Path) -> list[Result]:
    """Return the results of a file, one per line; none if it is not there."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


HALF_WIDTH = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306}
"""By number of seeds: 0.975 quantile of Student's t; beyond, 10 seeds' 2.262 is used."""


def interval(values: Sequence[float]) -> str:
    """Return the mean and the half-width of its 95 % interval; of one value, the value."""
    mean = statistics.fmean(values)
    if len(values) == 1:
        return f"{mean:.2f}"
    half = HALF_WIDTH.get(len(values), 2.262) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:.2f} +- {half:.2f}"


def verdict(row: Row, mean: float, width: int) -> str:
    """Return in plain words whether a mean meets the target of a width and the paper."""
    target = row.wide_target if width >= 1000 and row.wide_target else row.target
    paper = float(row.paper.split()[0]) if row.paper[0].isdigit() else None
    sign = 1 if row.more_is_better else -1

    def words(limit: float | None, name: str) -> str:
        if limit is None:
            return ""
        return f"{name} {limit:g} {'met' if sign * (mean - limit) >= 0 else '**not met**'}"

    return ", ".join(filter(None, (words(target, "target"), words(paper, "paper"))))


def table(results: list[Result]) -> list[str]:
    """Return the lines of the table: every row and variant, what was not run too."""
    lines = [
        "| | variant | paper | best public | here | seeds | epochs, units | seconds per seed | |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for key, row in ROWS.items():
        for name, variant in row.variants.items():
            own = [r for r in results if (r["row"], r["variant"]) == (key, name)]
            compared = name == "ours"
            start = f"| {row.title} | {variant.title} |"
            start += f" {row.paper} | {row.public} |" if compared else " | |"
            groups = sorted({(r["epochs"], r["width"]) for r in own})
            if not groups:
                lines.append(f"{start} not run | | | | |")
            for epochs, width in groups:
                chosen = [r for r in own if (r["epochs"], r["width"]) == (epochs, width)]
                values = [r["value"] * (100 if row.percent else 1) for r in chosen]
                seconds = statistics.fmean(r["seconds"] for r in chosen)
                words = verdict(row, statistics.fmean(values), width) if compared else ""
                lines.append(
                    f"{start} {interval(values)} | {len(values)} | {epochs:g}, {width} | "
                    f"{seconds:.0f} | {words} |"
                )
    return lines


def curves(results: list[Result]) -> list[str]:
    """Return the lines of the scores over epochs, of the first seed of each variant."""
    lines = ["", "Over epochs, first seed:", ""]
    for r in results:
        if r["seed"] == 0 and len(r["curve"]) > 1:
            points = ", ".join(f"{epoch:g}: {value:.4g}" for epoch, value in r["curve"])
            place = f"{r['row']}, {ROWS[r['row']].variants[r['variant']].title}"
            text = f"- {place} ({r['epochs']:g} epochs, {r['width']} units): {points}"
            lines += textwrap.wrap(text, 98, subsequent_indent="  ")
    return lines if len(lines) > 3 else []


def write_page(lines: list[str]) -> None:
    """Put the table between its marks."""
    before, _, rest = PAGE.read_text().partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    PAGE.write_text("\n".join([before + MARKS[0], "", *lines, "", MARKS[1] + after]))


def main() -> None:
    """Run the rows and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("rows", nargs="*", choices=[*ROWS, []], default=[], metavar="ROW")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--mnist", type=Path, required=True, help="folder that has MNIST/raw")
    parser.add_argument("--quick", action="store_true", help="half an epoch, networks of 128")
    parser.add_argument("--variants", nargs="*", help="of each row; by default all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=float, default=15)
    parser.add_argument("--evaluations", type=int, default=5, help="per trial")
    parser.add_argument("--width", type=int, default=400)
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--parzen-samples", type=int, default=10_000)
    parser.add_argument("--print", action="store_true", help="only write the page again")
    options = parser.parse_args()
    options.work = options.work.resolve()
    if options.quick:
        options.seeds, options.epochs, options.width, options.evaluations = 1, 0.5, 128, 1
        options.parzen_samples = 1000
    print_header("The paper's tables")
    path = options.work / "quick.jsonl" if options.quick else RESULTS
    results = read_results(path)
    for key in [] if options.print else (options.rows or list(ROWS)):
        for name in ROWS[key].variants:
            if options.variants and name not in options.variants:
                continue
            for found in run(key, name, options, results):
                results.append(found)
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("a") as file:
                    file.write(json.dumps(found) + "\n")
    lines = [*table(results), *curves(results)]
    print("\n".join(lines))
    if not options.quick:
        write_page(lines)


if __name__ == "__main__":
    main()
