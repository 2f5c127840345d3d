"""Faults that hit a process from inside, at one exact place: for tests that wrap the real training.

A fault is `ACTION at POINT step=S rank=R [part=P]` in the variable AAE_DIST_TEST_FAULT. It strikes
once: whoever strikes leaves a mark beside the run first, so a restarted run is left in peace.
"""

import functools
import os
import re
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VARIABLE = "AAE_DIST_TEST_FAULT"
PACE = "AAE_DIST_TEST_PACE"
"""Seconds to sleep after each step, so that a test can act between two of them."""
PHASES = ("reconstruction", "discriminator", "generator")
STEP_POINTS = [f"{phase}.{when}" for phase in PHASES for when in ("before", "reduced", "after")]
"""Before the phase, between all-reduce and optimizer step, after the optimizer step."""
SAVE_POINTS = ["copy", "model", "state", "rename", "manifest", "committed", "delete"]
"""Stages of a save: copy, two of the files, a rename, the manifest, after it, clean-up."""


@dataclass(frozen=True)
class Fault:
    action: str
    point: str
    step: int
    rank: int
    mark: str

    def encoded(self) -> str:
        return f"{self.action}|{self.point}|{self.step}|{self.rank}|{self.mark}"

    @classmethod
    def decoded(cls, text: str) -> "Fault":
        action, point, step, rank, mark = text.split("|")
        return cls(action, point, int(step), int(rank), mark)

    def strike(self, trainer: Any = None) -> None:
        try:
            os.close(os.open(self.mark, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            return
        if self.action in NUMERIC:
            NUMERIC[self.action](trainer)
        else:
            ACTIONS[self.action]()


def _signal(number: int) -> Callable[[], None]:
    def act() -> None:
        os.kill(os.getpid(), number)
        time.sleep(0.2)  # a signal to oneself may take a moment

    return act


def _hold_the_interpreter() -> None:
    re.match(r"(a+)+$", "a" * 60 + "b")  # hours in C, without letting another thread run


def _fail() -> None:
    raise RuntimeError("a fault of the model")


def _eat_memory() -> None:
    import resource

    now = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGESIZE")
    resource.setrlimit(resource.RLIMIT_AS, (now + (64 << 20), now + (64 << 20)))
    bytearray(1 << 30)


ACTIONS: dict[str, Callable[[], None]] = {
    "kill": _signal(signal.SIGKILL),
    "stop": _signal(signal.SIGSTOP),
    "term": _signal(signal.SIGTERM),
    "segv": _signal(signal.SIGSEGV),
    "exit": functools.partial(os._exit, 7),
    "fail": _fail,
    "hang": functools.partial(time.sleep, 3600),
    "gil": _hold_the_interpreter,
    "memory": _eat_memory,
}


def _flip(trainer: Any) -> None:
    """Flip one bit of the decoder's first number."""
    import torch

    with torch.no_grad():
        number = next(trainer.state.networks.decoder.parameters()).view(-1)[:1]
        number.view(torch.uint8)[2] ^= 1


def _nan(trainer: Any) -> None:
    """Make the next discriminator loss nan."""
    method, original = trainer.method, trainer.method.discriminator_loss

    def loss(coded: Any) -> Any:
        method.discriminator_loss = original
        loss, terms = original(coded)
        return loss * float("nan"), terms

    method.discriminator_loss = loss


NUMERIC: dict[str, Callable[[Any], None]] = {"flip": _flip, "nan": _nan}


def install() -> None:
    """Wrap what the fault of the environment is about; nothing without one."""
    if pace := float(os.environ.get(PACE, "0")):
        from aae_dist.training.trainer import Trainer

        _after(Trainer, "train_step", lambda: time.sleep(pace))
    text = os.environ.get(VARIABLE)
    if not text:
        return
    fault = Fault.decoded(text)
    if fault.rank != int(os.environ.get("RANK", "0")):
        return
    if fault.point in SAVE_POINTS:
        _install_in_save(fault)
    else:
        _install_in_step(fault)


def _install_in_step(fault: Fault) -> None:
    from aae_dist.training.trainer import Trainer

    phase, _, when = fault.point.partition(".")
    original = Trainer.train_step

    def train_step(self: Any, batch: Any) -> Any:
        if self.state.step == fault.step:
            optimizer = self.method.optimizers[phase]
            strike = functools.partial(fault.strike, self)
            if fault.action == "nan":
                strike()
            elif when == "reduced":
                _before(optimizer, "_step", strike)
            elif when == "before":
                _before(optimizer, "update", strike)
            else:
                _after(optimizer, "update", strike)
        return original(self, batch)

    Trainer.train_step = train_step  # type: ignore[method-assign]


def _install_in_save(fault: Fault) -> None:
    from aae_dist.checkpoints.store import CheckpointStore
    from aae_dist.storage import local
    from aae_dist.storage.local import LocalStorage

    now = {"step": -1}
    original_save = CheckpointStore.save

    def save(self: Any, step: int, *args: Any, **kwargs: Any) -> Any:
        now["step"] = step
        if fault.point == "copy" and step >= fault.step:
            fault.strike()
        return original_save(self, step, *args, **kwargs)

    CheckpointStore.save = save  # type: ignore[method-assign]

    def is_now(key: str, name: str) -> bool:
        return now["step"] >= fault.step and key.endswith(name)

    def wrap(owner: Any, name: str, wanted: str, point: str, before: bool = True) -> None:
        original = getattr(owner, name)

        def wrapper(self: Any, key: Any, *args: Any, **kwargs: Any) -> Any:
            strikes = fault.point == point and is_now(str(key), wanted)
            if strikes and before:
                fault.strike()
            value = original(self, key, *args, **kwargs)
            if strikes and not before:
                fault.strike()
            return value

        setattr(owner, name, wrapper)

    wrap(LocalStorage, "write", "model.safetensors", "model")
    wrap(LocalStorage, "write", "state.json", "state")
    wrap(LocalStorage, "create", "MANIFEST.json", "manifest")
    wrap(LocalStorage, "create", "MANIFEST.json", "committed", before=False)
    wrap(LocalStorage, "clear", "", "delete")
    if fault.point == "rename":
        replace = os.replace

        def rename(source: Any, target: Any, **folders: int) -> None:
            if is_now(str(target), "model.safetensors"):
                fault.strike()
            replace(source, target, **folders)

        assert local._write_file.__defaults__ == (replace,)
        local._write_file.__defaults__ = (rename,)


def _before(owner: Any, name: str, act: Callable[[], None]) -> None:
    original = getattr(owner, name)

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        act()
        return original(*args, **kwargs)

    setattr(owner, name, wrapper)


def _after(owner: Any, name: str, act: Callable[[], None]) -> None:
    original = getattr(owner, name)

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        value = original(*args, **kwargs)
        act()
        return value

    setattr(owner, name, wrapper)
