"""The report's table: a row a trial, best first."""

from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import quote

from aae_dist.report.markup import Html, breakable, tag
from aae_dist.report.text import NONE, duration, label, measured, number, spelled
from aae_dist.report.view import Row, View
from aae_dist.sweeps.folder import TRIALS

SHORT = 28
"""Characters of a swept value up to which it stands on one line."""


@dataclass(frozen=True)
class Column:
    """A heading and how a row fills the cell below it."""

    heading: str
    cell: Callable[[Row], Html]
    is_number: bool = False


def table(view: View) -> Html:
    """Return the table of all trials."""
    columns = [
        Column("rank", lambda row: _number(row.rank), is_number=True),
        Column("trial", _link),
        Column("state", _state),
        *(_parameter(key) for key in view.sweep.space),
        *_objective(view),
        *(_metric(name) for name in view.metrics),
        Column("steps", lambda row: _number(row.trial.step), is_number=True),
        Column("time", _time, is_number=True),
        Column("worker-hours", _cost, is_number=True),
    ]
    heads = [
        tag("th", breakable(c.heading), class_="number" if c.is_number else None) for c in columns
    ]
    body = [
        tag("tr", *(c.cell(row) for c in columns), class_="best" if row.is_best else None)
        for row in view.rows
    ]
    inner = tag("table", tag("thead", tag("tr", *heads)), tag("tbody", *body))
    return tag("div", inner, class_="scroll")


def _cell(text: str, value: object, is_number: bool = False) -> Html:
    return tag("td", text, class_="number" if is_number else None, data_value=value)


def _number(value: float | None) -> Html:
    return _cell(number(value), "" if value is None else value, is_number=True)


def _link(row: Row) -> Html:
    trial = row.trial
    # Relative: a folder that was copied from a bucket, or moved, still finds its trials.
    place = f"{TRIALS}/{quote(trial.id)}/"
    has_folder = trial.state != "waiting"
    name = f"#{trial.number}"
    anchor = tag("a", name, href=place, title=trial.uri) if has_folder else name
    return tag("td", anchor, tag("small", trial.id), class_="trial", data_value=trial.number)


def _state(row: Row) -> Html:
    trial = row.trial
    lines = [trial.cause] if trial.cause else []
    lines += [
        f"step {event['step']}: went on from {event['donor']}, step {event['donor_step']}"
        for event in trial.lineage
    ]
    small = [tag("small", line) for line in lines]
    front = " · on the front" if row.on_front else ""
    return tag(
        "td",
        tag("span", trial.state, class_=f"state {trial.state}"),
        front,
        *small,
        class_="cause" if small else None,
        data_value=trial.state,
    )


def _parameter(key: str) -> Column:
    def cell(row: Row) -> Html:
        values = row.trial.values
        if key not in values:
            return _cell(NONE, "")
        value = values[key]
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if is_number:
            return _cell(spelled(value), value, is_number=True)
        text = spelled(value)
        return tag("td", text, class_="short" if len(text) <= SHORT else None, data_value=text)

    return Column(key, cell)


def _objective(view: View) -> list[Column]:
    """Return the column of a weighted sum, which is not among the metrics."""
    name = view.objective.names[0]
    if name in view.objective.metrics:
        return []
    return [Column(name, _score, is_number=True)]


def _score(row: Row) -> Html:
    value = row.score[0] if row.score else None
    return _cell(measured(value), "" if value is None else value, is_number=True)


def _metric(name: str) -> Column:
    def cell(row: Row) -> Html:
        value, interval = row.metric(name), row.interval(name)
        small = Html()
        if interval is not None:
            small = tag("small", f"{interval[0]:.3f} to {interval[1]:.3f}")
        shown = "" if value is None else value
        return tag("td", measured(value), small, class_="number", data_value=shown)

    return Column(label(name), cell, is_number=True)


def _time(row: Row) -> Html:
    seconds = row.trial.seconds
    return _cell(duration(seconds) if seconds else NONE, seconds, is_number=True)


def _cost(row: Row) -> Html:
    hours = row.trial.worker_hours
    return _cell(number(hours, 2), hours, is_number=True)
