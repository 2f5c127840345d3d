"""`aae-dist evaluate`: the metrics of a trained run."""

import json
import sys
from collections.abc import Sequence

from aae_dist.commands.tables import print_metrics
from aae_dist.commands.trained import open_run
from aae_dist.config.paths import absolute_storage


def evaluate(
    uri: str,
    as_json: bool = False,
    data: Sequence[str] = (),
    step: int | None = None,
    overrides: Sequence[str] = (),
) -> int:
    """Measure a checkpoint of the run at `uri` on validation data and print it.

    Args:
        uri: the run's folder.
        as_json: print one JSON object, not a table.
        data: patterns of shards; none means the run's own validation shards.
        step: the checkpoint's step; by default the newest.
        overrides: of `data.*` and `train.device`.

    Raises:
        CheckpointError: the folder holds no checkpoint that verifies.
        ConfigError: no data is given and the run has none, or an override is wrong.
        DataError: the validation data is not there.
    """
    run = open_run(uri, step, overrides)
    print(f"evaluating step {run.step:,} of {uri} ...", file=sys.stderr, flush=True)
    metrics = run.evaluate([absolute_storage(pattern) for pattern in data]).metrics
    if as_json:
        print(json.dumps({"step": run.step, **metrics}, indent=2))
    else:
        on = f" on {', '.join(data)}" if data else ""
        print_metrics(metrics, title=f"{uri} at step {run.step:,}{on}")
    return 0
