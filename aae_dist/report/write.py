"""Reads a sweep's folder and writes its report there, at any time, also while the sweep runs."""

import sys

from aae_dist.drawing import png
from aae_dist.report.page import page
from aae_dist.report.parallel_picture import parallel
from aae_dist.report.parameter_picture import keys_of, parameters
from aae_dist.report.pareto_picture import noted_key, pareto
from aae_dist.report.style import DOTS_PER_INCH
from aae_dist.report.text import label
from aae_dist.report.view import SEED, Row, View, make_view
from aae_dist.storage import Storage, open_storage, read_or_none
from aae_dist.sweeps import read_sweep
from aae_dist.sweeps.folder import BEST

REPORT = "report.html"
GALLERY = ("reconstructions", "prior_samples", "latent_codes")
"""Pictures of a trial that the report shows."""
MAX_SHOWN = 4
"""Trials of the gallery: four stand side by side on a screen, and weigh about a megabyte."""


def write_report(uri: str) -> None:
    """Write the report of the sweep at `uri`; whatever goes wrong costs one line on stderr.

    For use while trials run: the file is replaced at once, a reader never sees half of it.
    """
    try:
        make_report(uri)
    except Exception as error:  # a report is never worth a trial
        first = (str(error).splitlines() or [""])[0]
        print(f"the report of {uri} was not written: {type(error).__name__}: {first}",
              file=sys.stderr, flush=True)  # fmt: skip


def make_report(uri: str) -> str:
    """Write `report.html` and `pictures/*.png` into the sweep's folder; return the report's URI.

    Raises:
        DataError: there is no sweep at `uri`.
        LaunchError: the storage cannot be read or written.
    """
    view = make_view(read_sweep(uri, histories=False))
    storage = open_storage(uri)
    charts = []
    for name, caption, draw in CHARTS:
        figure = draw(view)
        if figure is not None:
            charts.append((caption(view), png(figure, DOTS_PER_INCH)))
            storage.write(f"pictures/{name}.png", charts[-1][1])
    has_best = storage.size(BEST) is not None
    document = page(view, charts, _gallery(view), has_best)
    storage.write(REPORT, document.encode())
    return f"{storage.uri}/{REPORT}"


def _gallery(view: View) -> list[tuple[Row, dict[str, bytes]]]:
    """Return the best trial of each group, or the best trials, with their pictures."""
    ranked = [row for row in view.rows if row.rank is not None]
    firsts = list({view.group(row): row for row in reversed(ranked)}.values())[::-1]
    chosen = firsts if len(firsts) > 1 else ranked
    chosen = sorted(chosen[:MAX_SHOWN], key=lambda row: row.rank or 0)
    return [(row, _pictures(open_storage(row.trial.uri))) for row in chosen]


def _pictures(run: Storage) -> dict[str, bytes]:
    found = {name: read_or_none(run, f"pictures/{name}.png") for name in GALLERY}
    return {name: png for name, png in found.items() if png is not None}


def _pareto_caption(view: View) -> str:
    x, y = view.plane or ("", "")
    noted = noted_key(view)
    return (
        f"{label(x)} against {label(y)}, a point a trial"
        f"{f' with its {noted}' if noted else ''}. The line joins the trials of the Pareto "
        "front; bars are 95 % intervals; the dashed line is a perfect match."
    )


def _parameters_caption(view: View) -> str:
    others = [key for key in view.varied if key not in (view.group_key, *keys_of(view)[:1])]
    spread = ", ".join(others) if others else f"repeats with other values of {SEED}"
    return (
        "Scores by swept parameter: dots are finished trials, lines their means; the band from "
        f"lowest to highest is the spread over everything else that was varied ({spread})."
    )


def _parallel_caption(view: View) -> str:
    return (
        "Each line is a finished trial, through its parameters and its scores; the better its "
        "rank, the stronger its colour, the best one bold."
    )


CHARTS = (
    ("pareto", _pareto_caption, pareto),
    ("parameters", _parameters_caption, parameters),
    ("parallel", _parallel_caption, parallel),
)
