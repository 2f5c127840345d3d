"""What a run is worth, and what there is: evaluate, runs, report."""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from aae_dist.cli import options
from aae_dist.errors import ConfigError
from aae_dist.utils import text

if TYPE_CHECKING:
    from aae_dist.sweeps.listing import RunRow
    from aae_dist.sweeps.recommendation import Recommendation

EVALUATE_EXAMPLES = """\
examples:
  aae-dist evaluate runs/quickstart
  aae-dist evaluate runs/quickstart --data builtin://digits/train --json
  aae-dist evaluate runs/quickstart evaluation.features=wavelet
  aae-dist evaluate runs/mnist --parzen 10000
  torchrun --nproc-per-node 2 -m aae_dist evaluate runs/mnist --parzen 10000000
"""
RUNS_EXAMPLES = """\
examples:
  aae-dist runs runs
  aae-dist runs s3://bucket/runs/my-sweep/trials
  aae-dist runs --json | jq '.[] | select(.state == "running") | .name'
"""
REPORT_EXAMPLE = """\
example:
  aae-dist report s3://bucket/runs/priors-and-sizes
"""
MEANINGS = {
    "reconstruction/mse": "squared error per value",
    "reconstruction/sum_half": "half squared error per sample",
    "reconstruction/variance": "squared error of the mean",
    "reconstruction/pca": "squared error of a PCA of the same size",
    "evaluation/score": "0 is perfect; both goals",
    "prior_match/c2st": "0.5 is a perfect match",
    "prior_match/sliced_wasserstein": "1.0 is a perfect match",
    "prior_match/mmd": "1.0 is a perfect match",
    "prior_match/num_samples": "codes compared with the prior",
    "samples/frechet_distance": "of features of decoded prior samples",
    "samples/frechet_floor": "validation half against half",
    "samples/kernel_distance": "the same features; unbiased",
    "samples/kernel_floor": "validation half against half",
    "samples/precision": "samples that are near real ones",
    "samples/recall": "real ones that are near samples",
    "samples/density": "1: as dense as real samples",
    "samples/coverage": "real ones with a sample nearby",
    "samples/num_samples": "samples that were compared",
    "samples/features": "identity of the features",
    "reconstruction/frechet_distance": "of features of reconstructions",
    "reconstruction/kernel_distance": "the same features; unbiased",
    "parzen/log_likelihood": "nats per sample; blur gains, see the error",
    "parzen/standard_error": "of this mean over samples",
    "parzen/sigma": "standard deviation of the window",
    "parzen/num_samples": "decoded samples in the window",
    "codes/class_entropy": "1: all classes equally often",
    "codes/confidence": "1: every code is one class",
    "classification/error": "classes that are not the label",
    "codes/knn_error": "labels by the five nearest codes",
    "codes/linear_error": "labels by ridge regression on codes",
    "clustering/error": "of clusters named by one sample",
    "clustering/nmi": "1: clusters are the labels",
    "clustering/ari": "0 by chance; 1: they are the labels",
    "discriminator/accuracy_prior": "prior samples recognised",
    "discriminator/accuracy_codes": "latent codes recognised",
    "data/dimension_twonn": "intrinsic dimension of the data",
    "data/dimension_mle": "the same, from more neighbours",
    "codes/dimension_twonn": "intrinsic dimension of the codes",
    "codes/dimension_mle": "the same, from more neighbours",
    "samples_seen": "training samples, all ranks",
    "throughput/samples_per_second": "training samples, all ranks",
    "alarm/off_prior": "the codes are far from the prior",
    "alarm/unbalanced": "method.balance is none, with Adam",
    "alarm/lagging": "the discriminator does not keep up",
    "alarm/discriminator_wins": "the encoder learns little from it",
    "alarm/discriminator_dead": "it tells nothing apart",
    "alarm/collapsed_codes": "hardly any spread in some direction",
}  # what a metric says, short enough for a line of 80 characters; in the order of the table

_GROUPS = (
    *("reconstruction/", "evaluation/", "prior_match/", "samples/", "discriminator/", "loss/"),
)
COLUMNS = {
    "mse": "reconstruction/mse",
    "C2ST": "prior_match/c2st",
    "SW": "prior_match/sliced_wasserstein",
    "MMD": "prior_match/mmd",
}
MIN_WIDTH = 100  # columns of a table that goes into a file or a pipe


@options.verb("measure a trained run on data", EVALUATE_EXAMPLES)
@options.run_argument
@options.data_argument
@options.checkpoint_option
@options.data_option
@click.option(
    "--parzen",
    type=options.WholeNumber(1),
    metavar="N",
    help="also the Parzen log-likelihood by N decoded samples (the paper: 10000 and 10000000)",
)
@options.json_option
def evaluate(
    uri: str,
    items: tuple[str, ...],
    checkpoint: str,
    data: tuple[str, ...],
    parzen: int | None,
    as_json: bool,
) -> int:
    """Measure how well a run reconstructs data, and how well its latent codes match its prior.

    Under torchrun the ranks share the work; the scores are the same.
    """
    from aae_dist.distributed.world import from_environment
    from aae_dist.evaluation import why_no_pca
    from aae_dist.launch.local import process_group
    from aae_dist.training.folder import give_verdict

    patterns, overrides = options.data_and_overrides([*data, *items])
    run = options.open_run(uri, checkpoint, overrides)
    world = from_environment(run.device.type)
    if world.is_main:
        print(f"evaluating step {run.step:,} of {uri} ...", file=sys.stderr, flush=True)
    with process_group(world):
        metrics = run.evaluate(patterns, world).metrics
        if parzen is not None:
            shown = text.progress if world.is_main else text.no_progress
            with shown("Parzen window", parzen, "samples") as advance:
                metrics |= run.parzen(parzen, patterns, world, advance)
    if not world.is_main:
        return 0
    no_pca = why_no_pca(math.prod(run.image_shape), run.config.model.latent_dim)
    verdict = give_verdict(metrics, run.config, no_pca=no_pca)
    if as_json:
        print(json.dumps({"step": run.step, **metrics, "verdict": verdict}, indent=2))
    else:
        on = f" on {', '.join(patterns)}" if patterns else ""
        print_metrics(metrics, title=f"{uri} at step {run.step:,}{on}")
        print_verdict(verdict)
    return 0


def results(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics that tell how a run went, without those that serve to watch one."""
    return {
        name: value
        for name, value in metrics.items()
        if (name in MEANINGS or name.startswith((*_GROUPS, "skipped_updates/")))
        and (value or not name.startswith(("skipped_updates/", "alarm/")))
    }


def print_verdict(verdict: Mapping[str, Any] | None) -> None:
    """Print the lines of a verdict on stdout; none of a run of before there were any."""
    for line in (verdict or {}).get("text", ()):
        print(text.printable(line))


def print_metrics(metrics: Mapping[str, float], title: str) -> None:
    """Print one metric per line on stdout, known ones first, with what they mean."""
    from rich import box, console, table

    order = list(MEANINGS)
    lines = table.Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    lines.add_column("metric", no_wrap=True)
    lines.add_column("value", justify="right", no_wrap=True)
    lines.add_column("meaning")
    for name in sorted(metrics, key=lambda n: (order.index(n) if n in order else len(order), n)):
        shown = text.printable(name)
        lines.add_row(shown, text.number(metrics[name]), MEANINGS.get(name, ""))
    console.Console(markup=False, highlight=False).print(lines)


@options.verb("list runs with their state, step and scores", RUNS_EXAMPLES)
@click.argument(
    "uri",
    default="~/aae_dist/runs",
    metavar="STORAGE",
    type=options.Item(),
    help="run.storage of the runs (default ~/aae_dist/runs)",
)
@click.option("--json", "as_json", is_flag=True, help="print JSON with all metrics")
def runs(uri: str, as_json: bool) -> int:
    """List the runs in a folder or bucket.

    Shows the state (finished, running, interrupted, diverged, failed: ended by an error, stopped:
    its process died, new: nothing saved yet, unreadable), step, prior, latent size z, squared error
    per value, scores of the match with the prior, and how long ago the run last wrote; below the
    table, why runs failed or cannot be read. Of a sweep, its number of trials and its state.
    """
    from aae_dist.config.load import absolute_storage
    from aae_dist.storage import is_remote, open_storage
    from aae_dist.sweeps.listing import list_runs

    storage = open_storage(absolute_storage(uri))
    if not is_remote(storage.uri) and not Path(storage.uri).is_dir():
        raise ConfigError(f"{uri}: no such folder; give run.storage of the runs")
    rows = list_runs(storage)
    if as_json:
        print(json.dumps([_as_json(row) for row in rows], indent=2))
    elif rows:
        _print(rows, storage.uri)
    else:
        print(f"no runs in {storage.uri}")
    return 0


def _as_json(row: "RunRow") -> dict[str, Any]:
    return {
        "name": row.name,
        "state": row.state,
        "step": row.step,
        "total_steps": row.total_steps,
        "age_seconds": round(row.age_seconds, 1),
        "prior": _section(row.config, "prior").get("kind"),
        "latent_dim": _section(row.config, "model").get("latent_dim"),
        "num_trials": row.num_trials,
        "sweep_state": row.sweep_state,
        "cause": row.cause,
        "metrics": dict(row.metrics),
    }


def _print(rows: Sequence["RunRow"], uri: str) -> None:
    from rich import box, console, table

    lines = table.Table(title=f"{len(rows)} in {uri}", title_justify="left", box=box.SIMPLE_HEAD)
    lines.add_column("run", overflow="fold")
    lines.add_column("state", no_wrap=True)
    for name in ("step", "prior", "z", *COLUMNS, "age"):
        lines.add_column(name, justify="left" if name == "prior" else "right", no_wrap=True)
    for row in rows:
        found = [row.metrics.get(metric) for metric in COLUMNS.values()]
        scores = ["" if score is None else text.number(score) for score in found]
        kind = _section(row.config, "prior").get("kind", "")
        latent_dim = _section(row.config, "model").get("latent_dim", "")
        age = text.age(row.age_seconds) if row.modified else ""
        cells = [row.name, row.state, _step(row), str(kind), str(latent_dim), *scores, age]
        lines.add_row(*map(text.printable, cells))
    screen = console.Console(markup=False, highlight=False)
    screen.width = max(screen.width, 0 if screen.is_terminal else MIN_WIDTH)
    screen.print(lines)
    for row in rows:
        if row.cause:
            print(text.printable(f"{row.name}: {row.state}: {row.cause}"))


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = config.get(name)
    return section if isinstance(section, dict) else {}


def _step(row: "RunRow") -> str:
    if row.state == "sweep":
        return f"{row.num_trials} trials" + (f", {row.sweep_state}" if row.sweep_state else "")
    done = "-" if row.step is None else f"{row.step:,}"
    return f"{done}/{row.total_steps:,}" if row.total_steps else done


@options.verb("write the report of a sweep", REPORT_EXAMPLE)
@click.argument(
    "uri",
    metavar="SWEEP",
    type=options.Item(),
    help="a sweep's folder: a local path, s3://, gs:// or az://",
)
def report(uri: str) -> int:
    """Write the report of a sweep, while it runs or afterwards.

    report.html, one file to be read anywhere, and its pictures go into the sweep's folder. The
    sentence that recommends parameters is printed, too.
    """
    from aae_dist.report import make_report, recommendation_of

    print(f"Report: {make_report(uri)}")
    print_recommendation(recommendation_of(uri))
    return 0


def print_recommendation(recommendation: "Recommendation") -> None:
    """Print the answer of a sweep on stdout, and what would make it surer."""
    print(text.printable(recommendation.sentence))
    if recommendation.seeds:
        print(text.printable(recommendation.seeds))
