"""The report as one HTML file: no network, readable on a phone, in print, in light and in dark."""

import hashlib
from base64 import b64encode
from collections.abc import Mapping, Sequence
from importlib import resources

from aae_dist.objective import NUM_SAMPLES
from aae_dist.report.markup import Html, join, tag
from aae_dist.report.table import table
from aae_dist.report.text import duration, label, measured, number, spelled
from aae_dist.report.view import PERFECT, Row, View
from aae_dist.sweeps.folder import BEST

Charts = Sequence[tuple[str, bytes]]
"""A caption and a PNG each."""
Pictures = Sequence[tuple[Row, Mapping[str, bytes]]]
"""Trials of the gallery with their PNGs by name."""


def page(view: View, charts: Charts, gallery: Pictures, has_best: bool) -> str:
    """Return the whole document; `has_best`: the best trial's configuration lies beside it."""
    css, script = (
        resources.files(__package__).joinpath(name).read_text() for name in ("page.css", "page.js")
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=_policy(script)),
        tag("title", f"{view.sweep.name}: sweep of {len(view.rows)} trials"),
        tag("style", Html(css)),
    )
    body = tag(
        "body",
        _header(view),
        *_notes(view),
        _section(
            "Scores", tag("div", *(_chart(*chart) for chart in charts), class_="charts"), charts
        ),
        _section("Best trials, side by side", _gallery(view, gallery), gallery),
        _section("Trials", join(_legend(has_best), table(view)), view.rows),
        tag("script", Html(script)),
    )
    return "<!doctype html>\n" + tag("html", head, body, lang="en") + "\n"


def _policy(script: str) -> str:
    """Return a policy by which this page loads nothing and runs its own script only."""
    digest = b64encode(hashlib.sha256(script.encode()).digest()).decode()
    mine = f"style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    return f"default-src 'none'; img-src data:; {mine}"


def _section(title: str, content: Html, shown_if: object) -> Html:
    return join(tag("h2", title), content) if shown_if else Html()


def _header(view: View) -> Html:
    sweep = view.sweep
    counts = [f"{n} {state}" for state, n in sweep.counts().items() if n]
    waiting = sweep.num_trials - len(sweep.trials)
    if waiting > 0 and sweep.state != "finished":
        counts.append(f"{waiting} not proposed yet")
    search = sweep.search.get("kind", "") if sweep.search else ""
    scheduler = sweep.scheduler.get("kind", "") if sweep.scheduler else ""
    how = ", ".join(str(part) for part in (search, scheduler) if part and part != "none")
    return tag(
        "header",
        tag("h1", sweep.name),
        tag("p", f"Sweep {sweep.state}: {', '.join(counts) or 'no trials'}. "
                 f"Looks for {view.objective}{f' ({how})' if how else ''}."),
        tag("p", f"Started {_moment(sweep.started_at)}, as of {_moment(sweep.updated_at)}. ",
            tag("code", sweep.uri), class_="faint"),
        _facts(view),
    )  # fmt: skip


def _facts(view: View) -> Html:
    trials = [row.trial for row in view.rows]
    best = next((row for row in view.rows if row.rank == 1), None)
    facts = []
    if best is not None:
        which = "one of the front" if view.objective.is_pareto else "best trial"
        values = ", ".join(
            f"{k.rsplit('.', 1)[-1]} {spelled(v)}" for k, v in best.trial.values.items()
        )
        facts.append((f"#{best.trial.number}", f"{which}: {values}"))
        facts += [
            (number(best.metric(m)), f"its {label(m)}{_perfect(m)}") for m in view.metrics[:3]
        ]
    hours = sum(trial.worker_hours for trial in trials)
    facts.append((duration(view.sweep.seconds), "time that the sweep took"))
    facts.append((number(hours, 3), "worker-hours of all trials"))
    return tag("div", *(tag("div", tag("b", big), small, class_="fact") for big, small in facts),
               class_="facts")  # fmt: skip


def _perfect(metric: str) -> str:
    return f" ({PERFECT[metric]:g} is a perfect match)" if metric in PERFECT else ""


def _notes(view: View) -> list[Html]:
    """Return what a reader must know before comparing the numbers."""
    notes = []
    sizes = sorted({n for row in view.rows if (n := row.metric(NUM_SAMPLES)) is not None})
    if len(sizes) > 1:
        shown = ", ".join(number(n) for n in sizes)
        notes.append(
            f"Trials were scored on different numbers of samples ({shown}), which "
            "cannot be compared: those with another number than most have no rank."
        )
    if alike := _alike(view):
        notes.append(alike)
    if any(row.trial.state == "finished" and row.rank is None for row in view.rows):
        missing = ", ".join(view.objective.metrics)
        notes.append(
            f"Some finished trials have no rank, as they lack a finite {missing}"
            " or were scored on another number of samples."
        )
    if view.plane is None and any(row.trial.state == "finished" for row in view.rows):
        notes.append(
            "No trial has both a reconstruction error and a score of its match with the prior, so "
            "there are no pictures of them; trials need data.validation for that."
        )
    elif view.plane is None and view.rows:
        notes.append("No trial has been evaluated yet.")
    return [tag("p", note, class_="note") for note in notes]


def _alike(view: View) -> str:
    """Say which trials cannot be told apart from the best by a metric with an interval."""
    name = view.objective.metrics[0]
    ranked = [row for row in view.rows if row.rank is not None]
    best = ranked[0].interval(name) if ranked and len(view.objective.metrics) == 1 else None
    if best is None:
        return ""
    intervals = [(row, row.interval(name)) for row in ranked[1:]]
    alike = [row for row, i in intervals if i and i[0] <= best[1] and best[0] <= i[1]]
    if not alike:
        return ""
    shown = ", ".join(f"#{row.trial.number}" for row in alike[:8]) + (", ..." if alike[8:] else "")
    return (
        f"By {label(name)} the best trial cannot be told apart from {len(alike)} more ({shown}): "
        "their 95 % intervals overlap. Look at the other scores, or repeat with more seeds."
    )


def _chart(caption: str, png: bytes) -> Html:
    image = tag("img", src=_data(png), alt=caption)
    return tag("figure", image, tag("figcaption", caption), class_="chart")


def _gallery(view: View, gallery: Pictures) -> Html:
    cards = []
    for row, pictures in gallery:
        group = view.group(row)
        title = f"{group}: " if group else ""
        values = ", ".join(f"{k} {spelled(v)}" for k, v in row.trial.values.items())
        scores = ", ".join(f"{label(m)} {measured(row.metric(m))}" for m in view.metrics[:3])
        images = [tag("img", src=_data(png), alt=name) for name, png in pictures.items()]
        cards.append(tag(
            "section",
            tag("h3", f"{title}trial #{row.trial.number}, rank {row.rank}"),
            tag("div", values, class_="faint"), tag("div", scores, class_="faint"), *images,
        ))  # fmt: skip
    return tag("div", *cards, class_="gallery")


def _legend(has_best: bool) -> Html:
    best = tag("a", BEST, href=BEST)
    parts: list[str] = ["Ranked: finished trials. Below a score: its 95 % interval. "]
    if has_best:
        parts += ["The best trial's configuration: ", best, ", ready for ",
                  tag("code", f"aae-dist train {BEST}"), "."]  # fmt: skip
    return tag("p", *parts, class_="faint")


def _data(png: bytes) -> str:
    return f"data:image/png;base64,{b64encode(png).decode()}"


def _moment(iso: str) -> str:
    return iso[:16].replace("T", " ") + " UTC"
