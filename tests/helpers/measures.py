"""What a rank can measure of its own steps; run by `helpers.ranks`."""

from typing import Any

import torch
import torch.distributed as dist
from helpers.steps import SHAPE, build, run_step, tiny_config
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from aae_dist.distributed.world import World
from aae_dist.distributed.wrappers import ComputeWrapper
from aae_dist.training.setup import Trial


def all_reduced_bytes(world: World, tree: dict[str, Any]) -> tuple[float, int]:
    """Return bytes all-reduced a step, and the minimum: encoder twice, the others once."""
    config = tiny_config(**tree)
    # What is exchanged does not depend on the kernels, and Inductor's take half a minute to make.
    ComputeWrapper.BACKEND = "aot_eager"
    networks, method, inputs = build(config, world)
    counted = 0

    def hook(state: object, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        nonlocal counted
        counted += bucket.buffer().numel() * bucket.buffer().element_size()
        return allreduce_hook(None, bucket)

    modules = method.modules
    for network in (modules.encoder, modules.decoder, modules.discriminator):
        assert isinstance(network, DistributedDataParallel)
        network.register_comm_hook(None, hook)
    for step in range(4):
        run_step(method, inputs, config, step)
    size = {
        name: sum(p.numel() * p.element_size() for p in network.parameters())
        for name, network in networks.named().items()
    }
    return counted / 4, 2 * size["encoder"] + size["decoder"] + size["discriminator"]


def buffers_to_broadcast(world: World, tree: dict[str, Any]) -> list[bool]:
    """Return of each network whether DDP broadcasts buffers before its forward pass."""
    _, method, _ = build(tiny_config(**tree), world)
    modules = (method.modules.encoder, method.modules.decoder, method.modules.discriminator)
    return [m.will_sync_module_buffers() for m in modules]  # type: ignore[union-attr,operator]


def steps_after_trials(world: World, tree: dict[str, Any]) -> list[float]:
    """Return losses of steps before which each rank tried another number of sizes."""
    config = tiny_config(**tree)
    _, method, inputs = build(config, world)
    trial = Trial(method.modules, (4, *SHAPE), inputs.dtype)
    assert all(trial(size) for size in range(1, 3 + world.rank))
    return [float(run_step(method, inputs, config, step)["loss/generator"]) for step in range(2)]


def first_gradients(world: World, tree: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return the averaged gradients of each phase's first update."""
    config = tiny_config(**tree)
    _, method, inputs = build(config, world)
    seen: dict[str, torch.Tensor] = {}
    for phase, optimizer in method.optimizers.items():

        def keep(_: object, __: object, ___: object, phase: str = phase) -> None:
            gradients = [p.grad for p in method.optimizers[phase].parameters if p.grad is not None]
            seen[phase] = torch.cat([g.flatten() for g in gradients]).clone()

        optimizer.optimizer.register_step_pre_hook(keep)
    run_step(method, inputs, config, 0)
    return seen


def poisoned_run(world: World, tree: dict[str, Any], bad_step: int, bad_rank: int) -> Any:
    """Return skip counts and networks of a run in which one rank's loss is nan in one step."""
    config = tiny_config(**tree)
    networks, method, inputs = build(config, world)
    before = None
    for step in range(bad_step + 3):
        if step == bad_step:
            before = [p.clone() for p in networks.discriminator.parameters()]  # type: ignore[union-attr]
            moments = {
                k: v.clone() for k, v in method.optimizers["discriminator"].state_dict().items()
            }
        poison = step == bad_step and world.rank == bad_rank
        original = method.discriminator_loss  # type: ignore[attr-defined]
        if poison:
            method.discriminator_loss = lambda c, f=original: (f(c)[0] * float("nan"), {})  # type: ignore[attr-defined]
        run_step(method, inputs, config, step)
        method.discriminator_loss = original  # type: ignore[attr-defined]
        if step == bad_step:
            after = list(networks.discriminator.parameters())  # type: ignore[union-attr]
            unchanged = all(map(torch.equal, before or [], after))
            state = method.optimizers["discriminator"].state_dict()
            kept = all(torch.equal(state[k], v) for k, v in moments.items() if ":" in k)
    skipped = {phase: int(o.skipped) for phase, o in method.optimizers.items()}
    in_a_row = {phase: int(o.skipped_in_a_row) for phase, o in method.optimizers.items()}
    flat = [
        torch.cat([p.detach().flatten() for p in n.parameters()]) for n in networks.named().values()
    ]
    return skipped, in_a_row, unchanged, kept, flat
