"""A run leaves the process as it was: threads, random states, warnings, signal handlers."""

import logging
import os
import random
import signal
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from helpers.arrays import digits, small

import aae_dist

pytestmark = pytest.mark.run


def state() -> dict[str, Any]:
    return {
        "threads": torch.get_num_threads(),
        "handlers": [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)],
        "warnings": list(warnings.filters),
        "grad": torch.is_grad_enabled(),
        "dtype": torch.get_default_dtype(),
        "tf32": (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32),
        "deterministic": torch.backends.cudnn.deterministic,
        "python": random.getstate(),
        "numpy": [np.array(part).tolist() for part in np.random.get_state()],
        "torch": torch.get_rng_state().tolist(),
        "environment": dict(os.environ),
        "path": list(sys.path),
        "hooks": (sys.excepthook, threading.excepthook, sys.displayhook),
        "logging": [(x.level, list(x.handlers)) for x in map(logging.getLogger, ("", "aae_dist"))],
        "pictures": matplotlib.rcParams["backend"],
        "threads running": {t.name for t in threading.enumerate()},
    }


@pytest.mark.parametrize("ends", ["finished", "by an exception"])
def test_a_run_leaves_the_process_as_it_was(tmp_path: Path, ends: str) -> None:
    class Fails(aae_dist.Callback):
        def on_log(self, metrics):
            if ends != "finished":
                raise ZeroDivisionError

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 2)
        torch.manual_seed(5)
        before = state()
        with torch.no_grad():
            if ends == "finished":
                aae_dist.train(small(tmp_path), digits(200), [Fails()], progress=False)
            else:
                with pytest.raises(ZeroDivisionError):
                    aae_dist.train(small(tmp_path), digits(200), [Fails()], progress=False)
        after = state()
        assert after == before
    finally:
        torch.set_num_threads(threads)


def test_global_seeds_do_not_change_a_run(tmp_path: Path) -> None:
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)
        config = small(tmp_path, run={"name": f"run-{seed}"})
        found.append(aae_dist.train(config, digits(200), progress=False))
    first, second = ([r["loss/reconstruction"] for r in each.history] for each in found)
    assert first == second
