"""One phase's optimizer: schedules, clipping, skipped updates, exact resume. One process."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from aae_dist.config.sections import method as sections
from aae_dist.distributed.optimizer import SynchronizedOptimizer, build_schedule
from aae_dist.methods import build_optimizer

ADAM = sections.Phase(optimizer=sections.Adam(lr=1e-2), schedule=sections.ConstantSchedule())
SGD = sections.Phase(
    optimizer=sections.Sgd(lr=1e-2, momentum=0.9), schedule=sections.ConstantSchedule()
)


def make(config: sections.Phase, seed: int = 0) -> tuple[nn.Module, SynchronizedOptimizer]:
    torch.manual_seed(seed)
    network = nn.Linear(3, 2)
    return network, build_optimizer(config, {"network": network})


def loss_on(network: nn.Module, scale: float = 1.0):  # type: ignore[no-untyped-def]
    return lambda x: scale * network(x).square().sum()


def batch(step: int) -> list[Tensor]:
    return [torch.randn(4, 3, generator=torch.Generator().manual_seed(step))]


@pytest.mark.parametrize("config", [ADAM, SGD])
@pytest.mark.run
def test_ten_updates_equal_plain_torch(config: sections.Phase) -> None:
    network, optimizer = make(config)
    other = copy.deepcopy(network)
    plain = (
        torch.optim.Adam(other.parameters(), lr=1e-2)
        if config is ADAM
        else torch.optim.SGD(other.parameters(), lr=1e-2, momentum=0.9)
    )
    for step in range(10):
        optimizer.update(loss_on(network), batch(step))
        plain.zero_grad()
        loss_on(other)(batch(step)[0]).backward()
        plain.step()
    for ours, theirs in zip(network.parameters(), other.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("config", [ADAM, SGD])
@pytest.mark.parametrize("bad_step", [0, 2])
def test_a_skipped_update_leaves_no_trace(config: sections.Phase, bad_step: int) -> None:
    network, optimizer = make(config)
    twin, twin_optimizer = make(config)
    for step in range(5):
        if step == bad_step:
            optimizer.update(loss_on(network, math.nan), batch(99))
            assert int(optimizer.skipped_in_a_row) == 1
        optimizer.update(loss_on(network), batch(step))
        twin_optimizer.update(loss_on(twin), batch(step))
    assert int(optimizer.skipped) == 1
    assert int(optimizer.skipped_in_a_row) == 0
    for ours, theirs in zip(network.parameters(), twin.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("config", [ADAM, SGD])
def test_resume_continues_bit_for_bit(config: sections.Phase) -> None:
    network, optimizer = make(config)
    for step in range(3):
        optimizer.update(loss_on(network), batch(step))
    saved = {key: value.clone() for key, value in optimizer.state_dict().items()}
    resumed, resumed_optimizer = make(config, seed=1)
    resumed.load_state_dict(copy.deepcopy(network.state_dict()))
    resumed_optimizer.load_state_dict(saved)
    for step in range(3, 6):
        optimizer.update(loss_on(network), batch(step))
        resumed_optimizer.update(loss_on(resumed), batch(step))
    assert torch.equal(network.weight, resumed.weight)  # type: ignore[arg-type]
    for key, value in optimizer.state_dict().items():
        assert torch.equal(value, resumed_optimizer.state_dict()[key])


def test_clipping_bounds_the_gradient_of_the_whole_phase() -> None:
    config = sections.Phase(
        optimizer=sections.Sgd(lr=1.0, momentum=0.0),
        schedule=sections.ConstantSchedule(),
        clip_norm=0.5,
    )
    network, optimizer = make(config)
    before = torch.cat([p.detach().flatten().clone() for p in network.parameters()])
    optimizer.update(loss_on(network, 100.0), batch(0))
    after = torch.cat([p.detach().flatten() for p in network.parameters()])
    assert float((after - before).norm()) == pytest.approx(0.5, rel=1e-4)
    assert float(optimizer.gradient_norm) > 0.5


@pytest.mark.parametrize(
    ("schedule", "points"),
    [
        (sections.ConstantSchedule(), {0.0: 1.0, 1.0: 1.0}),
        (sections.LinearSchedule(), {0.0: 1.0, 0.5: 1.0, 0.75: 0.5, 1.0: 0.0}),
        (sections.CosineSchedule(final=0.1), {0.0: 1.0, 0.5: 0.55, 1.0: 0.1}),
        (sections.StepSchedule(milestones=(0.1, 0.5)), {0.05: 1.0, 0.1: 0.1, 0.9: 0.01}),
        (sections.ConstantSchedule(warmup=0.2), {0.0: 0.0, 0.1: 0.5, 0.2: 1.0}),
    ],
)
def test_schedules_are_functions_of_progress(
    schedule: sections.Schedule, points: dict[float, float]
) -> None:
    factor = build_schedule(schedule)
    for progress, expected in points.items():
        assert factor(progress) == pytest.approx(expected)


def test_micro_batches_add_up() -> None:
    network, optimizer = make(ADAM)
    twin, twin_optimizer = make(ADAM)
    whole = batch(0)[0]
    loss = optimizer.update(loss_on(network), list(whole.split(1)))
    assert float(loss) == pytest.approx(float(twin_optimizer.update(loss_on(twin), [whole])))
    for ours, theirs in zip(network.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)
