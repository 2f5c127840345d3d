"""A rank whose memory is hit: one bit of one of its networks flips."""

import torch
from helpers.steps import build, run_step, tiny_config

from aae_dist.distributed.world import RankComparison, World


@torch.no_grad()
def flip_a_bit(network: torch.nn.Module) -> None:
    next(network.parameters()).view(-1)[:1].view(torch.uint8)[2] ^= 1


def answer_after_a_flip(world: World, bad_rank: int) -> tuple[str, str]:
    """Return what the comparison says before and after a bit of `bad_rank`'s decoder flips."""
    config = tiny_config()
    networks, method, inputs = build(config, world)
    comparison = RankComparison(networks.named(), world)
    run_step(method, inputs, config, 0)
    comparison.ask(6)
    before = comparison.answer()
    if world.rank == bad_rank:
        flip_a_bit(networks.decoder)
    comparison.ask(7)
    return before, comparison.answer()
