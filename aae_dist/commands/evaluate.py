"""`aae-dist evaluate`: the metrics of a trained run."""

import json

import torch

from aae_dist import load_run
from aae_dist.commands.tables import print_metrics


def evaluate(uri: str, as_json: bool = False) -> int:
    """Measure the newest checkpoint of the run at `uri` on its validation data and print it.

    Raises:
        CheckpointError: the folder holds no checkpoint that verifies.
        DataError: the validation data is not there, or the run has none.
    """
    run = load_run(uri)
    # As many as in training: matrix products round differently with another number of threads.
    torch.set_num_threads(run.config.launch.cpus_per_worker)
    metrics = run.evaluate().metrics
    if as_json:
        print(json.dumps({"step": run.step, **metrics}, indent=2))
    else:
        print_metrics(metrics, title=f"{uri} at step {run.step:,}")
    return 0
