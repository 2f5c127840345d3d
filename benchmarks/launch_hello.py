"""Bare Ray programs, as its documentation writes them: the floors of `benchmarks/launch.py`.

python benchmarks/launch_hello.py train|tune FOLDER
"""

import sys
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
from ray import tune


def take_step(model: torch.nn.Module) -> None:
    """Take one step of a tiny model."""
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()


def train_loop() -> None:
    """Take one step on every worker."""
    take_step(ray.train.torch.prepare_model(torch.nn.Linear(4, 4)))
    if ray.train.get_context().get_world_rank() == 0:
        print("first step", flush=True)
    ray.train.report({"loss": 0.0})


def trial(config: dict[str, Any]) -> None:
    """Take one step and say so."""
    take_step(torch.nn.Linear(4, 4))
    Path(config["folder"], f"started-{config['number']}").touch()
    tune.report({"loss": 0.0})


def main(kind: str, folder: str) -> None:
    """Run two workers, or two trials."""
    if kind == "tune":
        space = {"folder": folder, "number": tune.grid_search([0, 1])}
        results = tune.Tuner(
            trial,
            param_space=space,
            run_config=tune.RunConfig(name="hello", storage_path=folder),
        ).fit()
        raise SystemExit(bool(results.errors))
    ray.train.torch.TorchTrainer(
        train_loop,
        scaling_config=ray.train.ScalingConfig(num_workers=2),
        run_config=ray.train.RunConfig(name="hello", storage_path=folder),
    ).fit()


if __name__ == "__main__":
    main(*sys.argv[1:])
