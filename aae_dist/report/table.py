"""The report's table: a row a trial, best first."""

from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import quote

from aae_dist.report.markup import Html, tag
from aae_dist.report.text import duration, label, number, spelled
from aae_dist.report.view import Row, View
from aae_dist.sweeps.folder import TRIALS


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
        Column("time", lambda row: _cell(duration(row.trial.seconds), row.trial.seconds, True)),
        Column("worker-hours", _cost, is_number=True),
    ]
    heads = [tag("th", c.heading, class_="number" if c.is_number else None) for c in columns]
    body = [
        tag("tr", *(c.cell(row) for c in columns), class_="best" if _is_best(row) else None)
        for row in view.rows
    ]
    inner = tag("table", tag("thead", tag("tr", *heads)), tag("tbody", *body))
    return tag("div", inner, class_="scroll")


def _is_best(row: Row) -> bool:
    return row.rank == 1 or row.on_front


def _cell(text: str, value: object, is_number: bool = False) -> Html:
    return tag("td", text, class_="number" if is_number else None, data_value=value)


def _number(value: float | None) -> Html:
    return _cell(number(value), "" if value is None else value, is_number=True)


def _link(row: Row) -> Html:
    trial = row.trial
    # Relative: a folder that was copied from a bucket, or moved, still finds its trials.
    anchor = tag("a", trial.id, href=f"{TRIALS}/{quote(trial.id)}/", title=trial.uri)
    return tag("td", f"#{trial.number} ", anchor, data_value=trial.number)


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
            return _cell("–", "")
        value = values[key]
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return _cell(spelled(value), value if is_number else spelled(value), is_number)

    return Column(key, cell)


def _objective(view: View) -> list[Column]:
    """Return the column of a weighted sum, which is not among the metrics."""
    name = view.objective.names[0]
    if name in view.objective.metrics:
        return []
    return [Column(name, lambda row: _number(row.score[0] if row.score else None), is_number=True)]


def _metric(name: str) -> Column:
    def cell(row: Row) -> Html:
        value, interval = row.metric(name), row.interval(name)
        if interval is None:
            return _number(value)
        small = tag("small", f"{number(interval[0], 3)} to {number(interval[1], 3)}")
        shown = "" if value is None else value
        return tag("td", number(value), small, class_="number", data_value=shown)

    return Column(label(name), cell, is_number=True)


def _cost(row: Row) -> Html:
    hours = row.trial.worker_hours
    return _cell(number(hours, 2), hours, is_number=True)
