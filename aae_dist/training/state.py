"""Everything that a resumed run needs, listed in one place."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from aae_dist.checkpoints.weights import WeightAverage, load_weights, weights_to_use
from aae_dist.data.bad_samples import BadSamples
from aae_dist.distributed.optimizer import SynchronizedOptimizer
from aae_dist.models import Networks

Tensors = dict[str, dict[str, Tensor]]


@dataclass
class TrainState:
    """Networks, optimizers, two integers and the list of bad samples.

    Random draws and order are functions of these.
    """

    networks: Networks
    optimizers: Mapping[str, SynchronizedOptimizer]
    average: WeightAverage | None = None
    prior_vectors: Tensor | None = None
    """What a prior that is a set of vectors draws from; never changes."""
    step: int = 0
    """Steps done, one global batch each."""
    position: int = 0
    """Samples consumed per lane since the start of training."""
    best: float | None = None
    """Lowest value of `train.best_metric` so far."""
    micro_batch: list[int] = field(default_factory=list)
    """Samples of a forward pass that were found to fit, and for which ranks and global batch."""
    best_of: str = ""
    """Metric and validation shards that `best` is of; empty in checkpoints of older versions."""
    best_num_samples: float | None = None
    """Samples that this run's scores of the match are of; those of other numbers are not compared.
    """
    samples_shift: int = 0
    """Samples seen beyond what the position tells: earlier epochs may have had other shards."""
    bad: BadSamples = field(default_factory=BadSamples)
    lr_factor: float = 1.0
    """Factor on all learning rates: halved by roll backs (see `train.max_rollbacks`)."""

    def tensors(self) -> Tensors:
        """Return the tensors of a checkpoint by file name; they are the live ones, not copies."""
        model = {
            f"{name}.{key}": tensor
            for name, network in self.networks.named().items()
            for key, tensor in network.state_dict().items()
        }
        optimizers = {f"optimizer-{n}": o.state_dict() for n, o in self.optimizers.items()}
        tensors = {"model": model, **optimizers}
        if self.average is not None:
            tensors["ema"] = self.average.tensors()
        if self.prior_vectors is not None:
            tensors["prior"] = {"vectors": self.prior_vectors}
        return tensors

    def document(self) -> dict[str, Any]:
        """Return the numbers of a checkpoint."""
        return {
            "step": self.step,
            "position": self.position,
            "best": self.best,
            "samples_shift": self.samples_shift,
            "bad_samples": self.bad.document(),
            "lr_factor": self.lr_factor,
            "micro_batch": self.micro_batch,
            "best_of": self.best_of,
            "best_num_samples": self.best_num_samples,
            "average_is_inherited": self.average is not None and self.average.is_inherited,
        }

    def load(
        self, tensors: Mapping[str, Mapping[str, Tensor]], document: Mapping[str, Any]
    ) -> None:
        """Continue from what `tensors` and `document` returned when they were saved."""
        self.load_weights(tensors["model"])
        if self.average is not None:
            load_weights(self.average.networks, weights_to_use(tensors))
            self.average.is_inherited = document.get("average_is_inherited", False)
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(tensors[f"optimizer-{name}"])
        self.step, self.position = document["step"], document["position"]
        self.best, self.samples_shift = document["best"], document.get("samples_shift", 0)
        self.micro_batch = document.get("micro_batch", [])
        self.best_of = document.get("best_of", "")
        self.best_num_samples = document.get("best_num_samples")
        self.bad = BadSamples(**document.get("bad_samples", {}))
        self.scale_lr(document.get("lr_factor", 1.0))

    def judge_by(self, what: str) -> None:
        """Forget the best value if it was of another metric, or of other validation shards."""
        if self.best_of not in ("", what):
            self.best = self.best_num_samples = None
        self.best_of = what

    def scale_lr(self, factor: float) -> None:
        """Multiply the configured learning rates of all phases by `factor`."""
        self.lr_factor = factor
        for optimizer in self.optimizers.values():
            optimizer.lr_factor = factor

    def start_from(self, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Take another run's weights, and its average of them where both runs have one.

        Raises:
            CheckpointError: names what does not fit.
        """
        self.load_weights(tensors["model"])
        if self.average is not None and "ema" in tensors:
            load_weights(self.average.networks, weights_to_use(tensors))
            self.average.is_inherited = True

    @torch.no_grad()
    def load_weights(self, model: Mapping[str, Tensor]) -> None:
        """Copy weights into the networks; CheckpointError names what does not fit."""
        load_weights(self.networks, model)
        if self.average is not None:
            self.average.restart()
