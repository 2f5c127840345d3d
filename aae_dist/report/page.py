"""The report as one HTML file: no network, readable on a phone, in print, in light and in dark.

It is made from the files in the sweep's folder, at any time, also while the sweep runs.
"""

import hashlib
import math
import re
import sys
from base64 import b64encode
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from aae_dist.config.metric_names import FEATURES, NUM_SAMPLES
from aae_dist.report import view as data
from aae_dist.report.charts import DOTS_PER_INCH, parameters, pareto, recommendation
from aae_dist.report.view import PERFECT, RankedTrial, ReportView, format_value, label, number
from aae_dist.storage import open_storage, read_or_none
from aae_dist.sweeps import folder, objective
from aae_dist.sweeps.recommendation import Recommendation
from aae_dist.utils.arrays import figure_to_png
from aae_dist.utils.text import duration

REPORT = "report.html"
CHARTS = {
    "recommendation": (recommendation.draw, recommendation.caption),
    "pareto": (pareto.draw, pareto.caption),
    "parameters": (parameters.draw, parameters.caption),
    "parallel": (parameters.draw_parallel, parameters.parallel_caption),
}
"""By the name of the picture's file; the functions that return the figure and its caption."""
GALLERY = ("reconstructions", "prior_samples", "latent_codes")
"""Pictures of a trial that the report shows."""
MAX_GALLERY_TRIALS = 4  # four stand side by side on a screen, and weigh about a megabyte
DIMENSION = "data/dimension"  # beginning of the names of the estimates
MAX_REMEDIES = 6  # pieces of advice that a note lists
MAX_NAMED_TRIALS = 8  # trials that a note lists by number


def write_report(uri: str) -> None:
    """Write the report of the sweep at `uri`; any error costs one line on standard error.

    For use while trials run: the file is replaced atomically, so a reader never sees half of it.
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
    view = data.make_view(folder.read_sweep(uri, histories=False))
    storage = open_storage(uri)
    charts = []
    for name, (draw, caption) in CHARTS.items():
        if (figure := draw(view)) is not None:
            picture = figure_to_png(figure, DOTS_PER_INCH)
            storage.write(f"pictures/{name}.png", picture)
            charts.append({"name": name, "caption": caption(view), "png": picture})
    has_best = storage.size(folder.BEST) is not None
    storage.write(REPORT, _render(view, charts, has_best).encode())
    return f"{storage.uri}/{REPORT}"


def recommendation_of(uri: str) -> Recommendation:
    """Return the recommendation of the sweep at `uri`; errors as for `make_report`."""
    return data.recommendation(folder.read_sweep(uri, histories=False))


def _render(view: ReportView, charts: list[dict[str, Any]], has_best: bool) -> str:
    """Return the whole document; `has_best`: the best trial's configuration lies next to it."""
    files = resources.files(__package__)
    css, script = (files.joinpath(name).read_text() for name in ("page.css", "page.js"))
    return _environment().get_template("page.html.j2").render(
        view=view,
        css=css,
        script=script,
        policy=_content_security_policy(script),
        counts=_counts(view),
        search=_search(view),
        facts=_facts(view),
        notes=list(_notes(view)),
        reasons=_reasons(view),
        charts=charts,
        gallery=_gallery(view),
        best_file=folder.BEST if has_best else None,
        trials=folder.TRIALS,
    )  # fmt: skip


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("aae_dist", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=lambda value: "" if value is None else value,
    )
    filters = (number, data.measured, duration, label, format_value)
    for function in (*filters, _breakable, _data_url, _time):
        environment.filters[function.__name__.strip("_")] = function
    environment.globals["NONE"] = data.NONE
    return environment


def _breakable(text: str) -> Markup:
    """Return escaped text that may wrap after each dot and slash, as in dotted keys."""
    return Markup("<wbr>").join(re.split(r"(?<=[./])", text))


def _data_url(picture: bytes) -> str:
    return f"data:image/png;base64,{b64encode(picture).decode()}"


def _time(iso: str) -> str:
    return iso[:16].replace("T", " ") + " UTC"


def _content_security_policy(script: str) -> str:
    """Return a policy by which this page loads nothing and runs its own script only."""
    digest = b64encode(hashlib.sha256(script.encode()).digest()).decode()
    own = f"style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    return f"default-src 'none'; img-src data:; {own}"


def _counts(view: ReportView) -> str:
    sweep = view.sweep
    counts = [f"{n} {state}" for state, n in sweep.counts().items() if n]
    waiting = sweep.num_trials - len(sweep.trials)
    if waiting > 0 and sweep.state != "finished":
        counts.append(f"{waiting} not proposed yet")
    return ", ".join(counts) or "no trials"


def _search(view: ReportView) -> str:
    sections = (view.sweep.search, view.sweep.scheduler)
    kinds = [str(section.get("kind", "")) for section in sections if section]
    return ", ".join(kind for kind in kinds if kind and kind != "none")


def _reasons(view: ReportView) -> list[str]:
    """Return the lines below the recommendation: its rule, what would change it, the seeds."""
    found = view.recommendation
    if found.state == "no_scores":
        return []
    dimension = [text] if (text := _dimension(view)) else []
    changes = [f"{change[0].upper()}{change[1:]}." for change in found.would_change]
    rule = [f"The rule: {found.rule}."] if found.state == "chosen" else []
    return [*rule, *dimension, *changes, *([found.seeds] if found.seeds else [])]


def _dimension(view: ReportView) -> str:
    """Return the intrinsic dimension of the data next to the sizes that were tried, or nothing."""
    sizes = sorted({c.size for c in view.recommendation.candidates if math.isfinite(c.size)})
    row = next((row for row in view.rows if row.metric(f"{DIMENSION}_twonn") is not None), None)
    if row is None or not sizes:
        return ""
    shown = [
        f"{name} {number(row.metric(f'{DIMENSION}_{key}'), 3)} "
        f"({' to '.join(number(end, 3) for end in row.interval(f'{DIMENSION}_{key}') or ())})"
        for key, name in (("twonn", "TwoNN"), ("mle", "MLE"))
    ]
    tried = ", ".join(f"{size:g}" for size in sizes)
    return f"Intrinsic dimension of the data: {' and '.join(shown)}; sizes tried: {tried}."


def _facts(view: ReportView) -> list[tuple[str, str]]:
    facts = []
    best = next((row for row in view.rows if row.rank == 1), None)
    if best is not None:
        which = f"one {objective.PARETO_PICK}" if view.objective.is_pareto else "best trial"
        named = [(k.rsplit(".", 1)[-1], format_value(v)) for k, v in best.trial.values.items()]
        values = ", ".join(f"{name} {value}" for name, value in named)
        facts.append((best.trial.label, f"{which}: {values}"))
        for name in view.metrics[:3]:
            perfect = f" ({PERFECT[name]:g} is a perfect match)" if name in PERFECT else ""
            facts.append((number(best.metric(name)), f"its {label(name)}{perfect}"))
    facts.append((duration(view.sweep.seconds), "time that the sweep took"))
    hours = sum(row.trial.worker_hours for row in view.rows)
    return [*facts, (number(hours, 3), "worker-hours of all trials")]


def _notes(view: ReportView) -> Iterator[str]:
    """Yield what a reader must know before comparing the numbers."""
    finished = [row for row in view.rows if row.trial.state == "finished"]
    sizes = sorted({n for row in view.rows if (n := row.metric(NUM_SAMPLES)) is not None})
    if len(sizes) > 1:
        shown = ", ".join(number(n) for n in sizes)
        yield (
            f"Trials were scored on different numbers of samples ({shown}), which "
            "cannot be compared: those with another number than most have no rank."
        )
    if len({row.metric(FEATURES) for row in view.rows} - {None}) > 1:
        yield (
            "Samples of the trials were scored by different features (samples/features), which "
            "cannot be compared: where these scores decide, trials with other features than most "
            "have no rank."
        )
    yield from _constraints(view, finished)
    yield from _ties(view)
    yield from _poor_matches(view)
    if any(row.rank is None for row in finished):
        text = f"as they lack a finite {', '.join(view.objective.inputs)} or were scored on"
        text += " another number of samples or by other features"
        yield f"Some finished trials have no rank, {text}."
    if view.plane is None and finished:
        yield (
            "No trial has both a reconstruction error and a score of its match with the prior, so "
            "there are no pictures of them; trials need data.validation for that."
        )
    elif view.plane is None and view.rows:
        yield "No trial has been evaluated yet."


def _constraints(view: ReportView, finished: Sequence[RankedTrial]) -> Iterator[str]:
    if not view.objective.constraints or not finished:
        return
    kept = [row for row in finished if view.objective.is_kept(row.trial.metrics)]
    bounds = " and ".join(f"{name} at most {bound:g}" for name, bound in view.objective.constraints)
    if kept:
        yield f"{len(kept)} of {len(finished)} finished trials keep {bounds}; they rank first."
    else:
        yield f"No trial keeps {bounds}: they rank by how far they are from it."


def _poor_matches(view: ReportView) -> Iterator[str]:
    finished = [row for row in view.rows if row.trial.state == "finished" and row.match]
    poor = [row for row in finished if row.match == "poor"]
    if poor:
        best = next((row for row in poor if row.is_best), None)
        which = f", the best one ({best.trial.label}) among them" if best else ""
        remedies = dict.fromkeys(a for row in poor for a in _advice(row))
        yield (
            f"{len(poor)} of {len(finished)} trials ended far from the prior (match: poor){which}: "
            "decoded samples of the prior will not look like the data."
            + (f" To try: {'; '.join(list(remedies)[:MAX_REMEDIES])}." if remedies else "")
        )


def _advice(row: RankedTrial) -> tuple[str, ...]:
    return row.trial.verdict.advice if row.trial.verdict else ()


def _ties(view: ReportView) -> Iterator[str]:
    name = view.objective.metrics[0]
    ranked = [row for row in view.rows if row.rank is not None]
    best = ranked[0].interval(name) if ranked and len(view.objective.metrics) == 1 else None
    if best is None:
        return
    intervals = [(row, row.interval(name)) for row in ranked[1:]]
    tied = [row for row, i in intervals if i and i[0] <= best[1] and best[0] <= i[1]]
    if tied:
        shown = ", ".join(row.trial.label for row in tied[:MAX_NAMED_TRIALS])
        shown += ", ..." if tied[MAX_NAMED_TRIALS:] else ""
        yield (
            f"By {label(name)} the best trial cannot be distinguished from {len(tied)} more "
            f"({shown}): their 95 % intervals overlap. Look at the other scores, or repeat with "
            "more seeds."
        )


def _gallery(view: ReportView) -> list[tuple[RankedTrial, dict[str, bytes]]]:
    """Return the best trial of each group, or the best trials, with their PNGs by name."""
    ranked = [row for row in view.rows if row.rank is not None]
    firsts = list({view.group(row): row for row in reversed(ranked)}.values())[::-1]
    chosen = firsts if len(firsts) > 1 else ranked
    shown = []
    for row in sorted(chosen[:MAX_GALLERY_TRIALS], key=lambda row: row.rank or 0):
        run = open_storage(row.trial.uri)
        read = {name: read_or_none(run, f"pictures/{name}.png") for name in GALLERY}
        shown.append((row, {name: png for name, png in read.items() if png is not None}))
    return shown
