"""A bare Ray Train program, as its documentation writes it: the floor of `benchmarks/launch.py`."""

import sys

import ray.train
import ray.train.torch
import torch


def train_loop() -> None:
    """Take one step of a tiny model on every worker."""
    model = ray.train.torch.prepare_model(torch.nn.Linear(4, 4))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    if ray.train.get_context().get_world_rank() == 0:
        print("first step", flush=True)
    ray.train.report({"loss": 0.0})


if __name__ == "__main__":
    trainer = ray.train.torch.TorchTrainer(
        train_loop,
        scaling_config=ray.train.ScalingConfig(num_workers=2),
        run_config=ray.train.RunConfig(name="hello", storage_path=sys.argv[1]),
    )
    trainer.fit()
