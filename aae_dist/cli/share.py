"""A trained run for others: export, push, pull."""

import sys
from collections.abc import Callable
from typing import Any

import click

from aae_dist.cli import options

EXPORT_EXAMPLES = """\
examples:
  aae-dist export runs/quickstart --out exported
  aae-dist export runs/quickstart --format onnx --license apache-2.0 --out exported
"""
PUSH_EXAMPLES = """\
examples:
  aae-dist push runs/quickstart me/digits --license apache-2.0
  aae-dist push exported me/digits --public
"""
PULL_EXAMPLES = """\
examples:
  aae-dist pull me/digits digits
  aae-dist sample digits --num 64 --out samples.png
"""
card_option = options.titled_option("options of the model card")


def card_options(verb: Callable[..., Any]) -> Callable[..., Any]:
    """Add what a model card says that a run does not know."""
    for name, text in (
        ("--data-license", "licence of the data"),
        ("--data-name", "name of the data, in words or as the hub's data set OWNER/NAME"),
        ("--license", "licence of the weights, such as apache-2.0"),
    ):
        verb = card_option(name, metavar="TEXT" if "name" in name else "ID", help=text)(verb)
    return verb


@options.verb("write encoder and decoder as programs of their own", EXPORT_EXAMPLES)
@options.run_argument
@options.checkpoint_option
@options.folder_option
@click.option(
    "--format",
    type=options.Choice(("torch", "onnx")),
    default="torch",
    help="torch: .pt2, for torch.export.load; onnx: .onnx, for any ONNX runtime",
)
@card_options
def export(uri: str, checkpoint: str, out: str, format: str, **card: str | None) -> int:
    """Write a run's encoder and decoder as programs that run without aae_dist.

    The encoder maps pixels in [0, 1] to codes, the means of q(z|x); the decoder maps codes to
    pixels. Both take batches of any size, in float32. Each is loaded again and compared with the
    run; export.json says what they take and give.

    Next to them lies the run for others: weights, configuration without private addresses, scores
    and README.md, a model card to edit. aae_dist.load_run loads the folder; push uploads it.
    """
    from aae_dist.config.load import absolute_storage
    from aae_dist.inference.early_checks import check_format
    from aae_dist.storage import open_storage

    check_format(format)  # torch takes seconds to import
    from aae_dist.api.card import Card
    from aae_dist.api.sharing import check_replaceable, share
    from aae_dist.inference import export as exporting

    known = Card(**card)
    run = options.open_run(uri, checkpoint)
    target = open_storage(absolute_storage(out))
    check_replaceable(target)
    print(f"exporting step {run.step:,} of {uri} ...", file=sys.stderr, flush=True)
    images = exporting.validation_images(run, lambda note: print(note, file=sys.stderr))
    differences = exporting.export(run, target, format, images)
    suffix = exporting.WRITERS[format][1]
    for name, difference in differences.items():
        print(
            f"{target.uri}/{name}.{suffix}: equal to the run within {difference:.1e} "
            f"(tolerance {exporting.TOLERANCE:g})"
        )
    share(run, target, known)
    print(f"{target.uri}/README.md: model card of the run, which load_run loads from this folder")
    return 0


@options.verb("upload a run with a model card to the Hugging Face hub", PUSH_EXAMPLES)
@options.run_argument
@click.argument("repo", metavar="OWNER/NAME", help="repository of the hub; created if absent")
@options.checkpoint_option
@click.option("--public", is_flag=True, help="a repository that is created is seen by everybody")
@card_options
def push(uri: str, repo: str, checkpoint: str, public: bool, **card: str | None) -> int:
    """Upload a run to the Hugging Face hub, or to the server of HF_ENDPOINT.

    Uploaded are weights, configuration without private addresses, scores, a picture of decoded
    prior samples and a model card: no data, no optimizer state, no pickle. The card of a folder
    that export wrote is kept. The token is read from the variable HF_TOKEN. Needs
    pip install 'aae_dist[hub]'.
    """
    import aae_dist

    page = aae_dist.push(uri, repo, checkpoint=checkpoint, public=public, **card)
    print(f"pushed: {page}")
    return 0


@options.verb("download a run from the Hugging Face hub", PULL_EXAMPLES)
@click.argument("repo", metavar="OWNER/NAME", help="repository of the hub")
@click.argument("folder", metavar="FOLDER", help="local folder, absent or of an earlier pull")
@click.option("--revision", metavar="NAME", help="branch, tag or commit (default: main)")
def pull(repo: str, folder: str, revision: str | None) -> int:
    """Download a run that push has uploaded; the folder is a run for all other verbs.

    Only files that push writes are downloaded, and none of them is executed. The token, for
    private repositories, is read from the variable HF_TOKEN. Needs pip install 'aae_dist[hub]'.
    """
    import aae_dist

    print(f"pulled: {aae_dist.pull(repo, folder, revision=revision)}")
    return 0
