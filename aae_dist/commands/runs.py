"""`aae-dist runs`: a table of the runs in a folder."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from aae_dist.commands.tables import number
from aae_dist.config.paths import absolute_storage
from aae_dist.errors import ConfigError
from aae_dist.storage import is_remote, open_storage
from aae_dist.sweeps.listing import RunRow, list_runs

COLUMNS = {
    "mse": "reconstruction/mse",
    "C2ST": "prior_match/c2st",
    "SW": "prior_match/sliced_wasserstein",
    "MMD": "prior_match/mmd",
}
MIN_WIDTH = 100
"""Columns of a table that goes into a file or a pipe."""
UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def runs(uri: str, as_json: bool = False) -> int:
    """Print what is in the folder of runs at `uri`.

    Args:
        uri: `run.storage` of the runs, a sweep's `trials` folder, or one run.
        as_json: print a list of JSON objects with all metrics, not a table.

    Raises:
        ConfigError: there is no such folder.
        LaunchError: the storage cannot be read.
    """
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


def _as_json(row: RunRow) -> dict[str, Any]:
    return {
        "name": row.name,
        "state": row.state,
        "step": row.step,
        "total_steps": row.total_steps,
        "age_seconds": round(row.age_seconds, 1),
        "prior": _section(row.config, "prior").get("kind"),
        "latent_dim": _section(row.config, "model").get("latent_dim"),
        "num_trials": row.num_trials,
        "metrics": dict(row.metrics),
    }


def _print(rows: Sequence[RunRow], uri: str) -> None:
    table = Table(title=f"{len(rows)} in {uri}", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("run", overflow="fold")
    table.add_column("state", no_wrap=True)
    for name in ("step", "prior", "z", *COLUMNS, "age"):
        table.add_column(name, justify="left" if name == "prior" else "right", no_wrap=True)
    for row in rows:
        scores = [_score(row.metrics.get(metric)) for metric in COLUMNS.values()]
        kind = _section(row.config, "prior").get("kind", "")
        latent_dim = _section(row.config, "model").get("latent_dim", "")
        age = age_text(row.age_seconds)
        table.add_row(row.name, row.state, _step(row), str(kind), str(latent_dim), *scores, age)
    console = Console(markup=False, highlight=False)
    console.width = max(console.width, 0 if console.is_terminal else MIN_WIDTH)
    console.print(table)


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = config.get(name)
    return section if isinstance(section, dict) else {}


def _step(row: RunRow) -> str:
    if row.state == "sweep":
        return f"{row.num_trials} trials"
    done = "-" if row.step is None else f"{row.step:,}"
    return f"{done}/{row.total_steps:,}" if row.total_steps else done


def _score(value: float | None) -> str:
    return "" if value is None else number(value)


def age_text(seconds: float) -> str:
    """Return a length of time by its largest unit, say `3 min`."""
    size, unit = next(((s, u) for s, u in UNITS if seconds >= s), UNITS[-1])
    return f"{seconds / size:.0f} {unit}"
