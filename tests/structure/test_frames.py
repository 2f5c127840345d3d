"""How many frames of the package lie between the command line and a step, a loader and a decoder.

Counted in a real run: frames of libraries are left out, both ends are counted.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from helpers.golden import COMMON, MLP, write_data

import aae_dist
from aae_dist.cli import main
from aae_dist.methods import Method

PACKAGE = str(Path(aae_dist.__file__).parent)
MAX_FRAMES = 10


def package_frames(frame: FrameType | None) -> list[str]:
    """Return file:function of each frame of the package, outermost first."""
    found = []
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(PACKAGE):
            found.append(f"{file.removeprefix(PACKAGE + '/')}:{frame.f_code.co_name}")
        frame = frame.f_back
    return found[::-1]


def recording(function: Callable[..., Any], stacks: list[list[str]]) -> Callable[..., Any]:
    def call(*arguments: Any, **named: Any) -> Any:
        stacks.append([*package_frames(sys._getframe(1)), function.__name__])
        return function(*arguments, **named)

    return call


def decode_png(*arguments: Any) -> Any:
    """Decode, and put torch's own operator back in this one's place."""
    return torch.ops.image.__getattr__("decode_png")(*arguments)


@pytest.mark.run
def test_a_step_and_a_decoder_are_few_frames_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    to_step: list[list[str]] = []
    to_decoder: list[list[str]] = []
    for method in Method.__subclasses__():
        monkeypatch.setattr(method, "step", recording(method.step, to_step))
    monkeypatch.setattr(torch.ops.image, "decode_png", recording(decode_png, to_decoder), False)
    shards, items = write_data("grey", tmp_path), MLP[1:]
    assert main(["train", *COMMON, f"run.storage={tmp_path}/runs", *shards, *items]) == 0
    step, decoder = (max(stacks, key=len) for stacks in (to_step, to_decoder))
    assert len(step) <= MAX_FRAMES, "\n".join(step)
    assert len(decoder) <= MAX_FRAMES, "\n".join(decoder)
