"""What is fitted to a trained run, and scores of single samples: fit-sampler and score."""

from dataclasses import replace
from typing import TYPE_CHECKING

import click

from aae_dist.cli import images, options

if TYPE_CHECKING:
    from aae_dist.inference.dataset_job import DatasetJob
    from aae_dist.inference.trained_run import TrainedRun

FIT_EXAMPLES = """\
examples:
  aae-dist fit-sampler runs/quickstart
  aae-dist sample runs/quickstart --sampler gmm --out samples.png
  aae-dist fit-sampler runs/quickstart --kind flow
"""
SCORE_EXAMPLES = """\
examples:
  aae-dist score runs/quickstart builtin://digits/train --out scores
  aae-dist score runs/quickstart 's3://bucket/new/*.tar' --out s3://bucket/scores --sampler gmm
"""
MIN_CODES = 100


@options.verb("fit a density to a run's codes, to sample from", FIT_EXAMPLES)
@options.run_argument
@options.data_argument
@options.checkpoint_option
@click.option(
    "--kind",
    type=options.Choice(("gmm", "flow")),
    default="gmm",
    help="gmm: a mixture of Gaussians, by scikit-learn; flow: a neural spline flow, by zuko",
)
@click.option(
    "--components", type=options.WholeNumber(1), default=20, help="Gaussians of the mixture"
)
@options.seed_option
def fit_sampler(
    uri: str, items: tuple[str, ...], checkpoint: str, kind: str, components: int, seed: int
) -> int:
    """Fit a density to the codes of a run.

    Where codes do not match the prior, as those of a plain autoencoder, decoded samples of the
    fitted density look like the data and samples of the prior do not. It is fitted to the codes of
    DATA, by default of at most 100,000 training samples, and saved in the run's folder for `sample
    --sampler` and `score --sampler`. It is compared with validation codes as the prior is: by
    C2ST, 0.5 for a perfect match.
    """
    from aae_dist.errors import DataError
    from aae_dist.inference import samplers
    from aae_dist.utils.text import progress

    samplers.check_packages(kind)
    patterns, overrides = options.data_and_overrides(items)
    run = options.open_run(uri, checkpoint, overrides)
    with progress("encoding", samplers.MAX_CODES, "samples") as advance:
        data = patterns or run.config.data.train
        codes = samplers.codes_of(run, data, samplers.MAX_CODES, advance)
    if len(codes) < max(MIN_CODES, components):
        raise DataError(
            f"{len(codes)} codes are too few to fit a sampler to; give at least "
            f"{max(MIN_CODES, components)}"
        )
    print(f"fitting to {len(codes):,} codes of step {run.step:,} ...", flush=True)
    fitted: samplers.Sampler
    if kind == "gmm":
        fitted = samplers.fit_gmm(codes, components, seed)
    else:
        fitted = samplers.fit_flow(codes, seed)
    about = {"num_codes": len(codes), "seed": seed, "components": components}
    where = samplers.save_sampler(run, kind, fitted, about)
    if run.config.data.validation is not None:
        held_out, of = samplers.codes_of(run, None, samplers.MAX_COMPARED), "validation"
    else:
        held_out, of = codes[:: -(-len(codes) // samplers.MAX_COMPARED)], "the same"
    for name, source in ((kind, fitted), (run.config.prior.kind, run.prior)):
        found = samplers.match(source, held_out, seed)
        print(
            f"C2ST of samples of {name} against {len(held_out):,} {of} codes: {found.value:.3f} "
            f"({found.low:.3f} to {found.high:.3f})"
        )
    print(f"Sampler: {where}")
    return 0


@options.verb("score how unusual each sample of a data set is", SCORE_EXAMPLES)
@options.run_argument
@options.data_argument
@options.checkpoint_option
@options.folder_option
@click.option("--format", type=options.Choice(("parquet", "csv")), default="parquet")
@click.option(
    "--sampler",
    type=options.Choice(("gmm", "flow")),
    help="take the density of codes from what `aae-dist fit-sampler` has fitted",
)
@click.option(
    "--reference",
    multiple=True,
    type=options.Item(),
    metavar="PATTERN",
    help="shards of ordinary samples to rank among (default: the run's validation shards)",
)
def score(
    uri: str,
    items: tuple[str, ...],
    checkpoint: str,
    out: str,
    format: str,
    sampler: str | None,
    reference: tuple[str, ...],
) -> int:
    """Score how unusual each sample of a data set is to a run.

    For every sample the key, the label, and up to three scores: error (squared, per value),
    log_density of the code among validation codes (in nats) and the discriminator's logit, of runs
    that have one. NAME_rank is the part of at most 10,000 validation samples that are less unusual
    by that score. combined adds up -log of what the ranks of error and log_density lack of 1, and
    rank is its rank: 0.99 is more unusual than 99 % of validation samples, whatever the run.
    Files are written as by encode: in shards, each of which appears whole, with equal bytes for any
    number of workers.
    """
    from aae_dist.config.load import absolute_storage
    from aae_dist.distributed.world import from_environment
    from aae_dist.utils.text import no_progress, progress

    def scoring(run: "TrainedRun", job: "DatasetJob") -> "DatasetJob":
        from aae_dist.inference.anomaly import MAX_REFERENCE, reference_of
        from aae_dist.inference.samplers import load_sampler

        density = None if sampler is None else load_sampler(run, sampler)
        shown = progress if from_environment("cpu").is_main else no_progress
        patterns = [absolute_storage(pattern) for pattern in reference]
        with shown("scoring validation samples", MAX_REFERENCE, "samples") as advance:
            known = reference_of(run, patterns or None, density, advance)
        return replace(job, sampler=sampler, scores=known.names, reference=known.to_bytes())

    return images.write_dataset(uri, items, out, f"scores-{format}", checkpoint, scoring)
