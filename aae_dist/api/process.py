"""What a run changes in its process, and undoes when it ends."""

import os
import random
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from aae_dist.launch.ending import StopToken


@contextmanager
def unchanged_process() -> Iterator[None]:
    """Restore threads, random states, warnings, variables and precision on leaving."""
    threads, grad = torch.get_num_threads(), torch.is_grad_enabled()
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    on_cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    matmul, cudnn = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    deterministic, environment = torch.backends.cudnn.deterministic, dict(os.environ)
    try:
        with warnings.catch_warnings(), torch.enable_grad():
            yield
    finally:
        torch.set_num_threads(threads)
        torch.set_grad_enabled(grad)
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if on_cuda is not None:
            torch.cuda.set_rng_state_all(on_cuda)
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, cudnn
        torch.backends.cudnn.deterministic = deterministic
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)


class GentleSignals:
    """While entered, Ctrl-C and SIGTERM request a stop: the run saves a checkpoint and returns.

    A second Ctrl-C raises KeyboardInterrupt, as it does without a run; the process, which may be a
    notebook's, stays. SIGTERM is sent again once its former handler is back: the process then ends
    as it would have. In another thread than the main one this changes nothing.
    """

    def __init__(self) -> None:
        self.token = StopToken()
        self._previous: dict[signal.Signals, Any] = {}
        self._terminated = False

    def __enter__(self) -> StopToken:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is not None:  # set by other code than Python's
                    self._previous[number] = signal.signal(number, self._handle)
        return self.token

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self._terminated:
            os.kill(os.getpid(), signal.SIGTERM)

    def _handle(self, number: int, frame: object) -> None:
        if number == signal.SIGTERM:
            self._terminated = True
        elif self.token.requested:
            raise KeyboardInterrupt
        self.token.request()
