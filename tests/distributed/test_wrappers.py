"""What compiled code needs: a compiler on the machine, and on CUDA no choice by the clock."""

import shutil
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from aae_dist.distributed.wrappers import ComputeWrapper, inductor_options, wrap_compute
from aae_dist.errors import ConfigError


def compiled_on(device: str) -> nn.Module:
    return wrap_compute(nn.Linear(2, 2, device=device), bfloat16=False, compiled=True)


# No machine of the tests has CUDA; any device that is not the CPU is treated as it.
@pytest.mark.parametrize(
    ("device", "there", "missing"),
    [("cpu", "gcc", r"C\+\+ compiler"), ("meta", "g++", "C compiler on CUDA.*gcc.*CC")],
)
def test_code_without_a_compiler_is_refused(
    monkeypatch: pytest.MonkeyPatch, device: str, there: str, missing: str
) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: name if name == there else None)
    with pytest.raises(ConfigError, match=missing):
        compiled_on(device)
    assert wrap_compute(nn.Linear(2, 2, device=device), bfloat16=True, compiled=False)


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.filterwarnings("ignore::UserWarning:torch.*")
def test_on_cuda_no_order_of_sums_is_chosen_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import config
    from torch._inductor.graph import GraphLowering

    seen: list[tuple[bool, bool]] = []

    run = GraphLowering.run

    def look(lowering: GraphLowering, *arguments: Any) -> Any:
        seen.append((lowering.is_backward, config.deterministic))
        return run(lowering, *arguments)

    options = inductor_options(torch.device("cuda"))
    monkeypatch.setattr(GraphLowering, "run", look)
    monkeypatch.setattr(f"{wrap_compute.__module__}.inductor_options", lambda device: options)

    # In each thread, since settings are of one: code of an earlier test run would not be made.
    def without_caches(work: Callable[[], Any]) -> Any:
        with config.patch(force_disable_caches=True):
            return work()

    loss = without_caches(lambda: compiled_on("cpu")(torch.rand(3, 2)).sum())
    # As on CUDA, where autograd has a thread of its own for the device.
    thread = threading.Thread(target=without_caches, args=(loss.backward,))
    thread.start()
    thread.join()
    assert seen == [(False, True), (True, True)]
    assert inductor_options(torch.device("cpu")) is None


def test_one_of_triton_s_compilers_is_enough_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(torch, "compile", lambda forward, **how: forward)  # its import takes 10 s
    monkeypatch.setattr(shutil, "which", lambda name: name if name == "clang" else None)
    assert isinstance(compiled_on("meta"), ComputeWrapper)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setenv("CC", "/opt/cc")
    assert isinstance(compiled_on("meta"), ComputeWrapper)
