"""Watch what this process opens, runs, unpickles and connects to, by Python's own audit events."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_watching: list[list[str]] = []
_hooked = False
FORBIDDEN = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "pickle.find_class")
CODE = tuple(os.path.realpath(p) for p in (sys.prefix, sys.base_prefix, Path(__file__).parents[2]))


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watching:
        return
    if event in FORBIDDEN or event == "socket.connect":
        _watching[-1].append(f"{event} {arguments!r:.200}")
    elif event == "open" and isinstance(arguments[0], str | bytes):
        _watching[-1].append("open " + os.path.realpath(os.fsdecode(arguments[0])))


@contextmanager
def nothing_but(folder: Path) -> Iterator[None]:
    """Fail when the body opens a file outside `folder` and the code, or runs or unpickles anything.

    An audit hook cannot be taken away again: one stays for the process, and sleeps.
    """
    global _hooked
    if not _hooked:
        sys.addaudithook(_hook)
        _hooked = True
    events: list[str] = []
    _watching.append(events)
    try:
        yield
    finally:
        _watching.remove(events)
    # Decoded samples of data sets that are collected meanwhile leave the shared memory.
    allowed = (os.path.realpath(folder), f"/dev/shm/aae_dist-{os.getuid()}/", *CODE)
    outside = [
        event
        for event in events
        if not (event.startswith("open ") and event.removeprefix("open ").startswith(allowed))
    ]
    assert outside == [], outside
