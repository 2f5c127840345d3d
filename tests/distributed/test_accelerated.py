"""What compiled code needs: a compiler on the machine, and on CUDA no choice by the clock."""

import shutil

import pytest
import torch
from torch import nn

from aae_dist.distributed.accelerated import Accelerated, accelerated, fresh_compiler
from aae_dist.errors import ConfigError


def compiled_on(device: str) -> nn.Module:
    return accelerated(nn.Linear(2, 2, device=device), bfloat16=False, compiled=True)


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
    assert accelerated(nn.Linear(2, 2, device=device), bfloat16=True, compiled=False)


@pytest.mark.run
def test_on_cuda_no_order_of_sums_is_chosen_by_the_clock() -> None:
    from torch._inductor import config

    with config.patch(deterministic=False):
        fresh_compiler(torch.device("cpu"))
        assert not config.deterministic
        fresh_compiler(torch.device("cuda"))
        assert config.deterministic


def test_one_of_triton_s_compilers_is_enough_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(torch, "compile", lambda forward, **how: forward)  # its import takes 10 s
    monkeypatch.setattr(shutil, "which", lambda name: name if name == "clang" else None)
    assert isinstance(compiled_on("meta"), Accelerated)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setenv("CC", "/opt/cc")
    assert isinstance(compiled_on("meta"), Accelerated)
