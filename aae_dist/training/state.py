"""The training state: everything that a resumed run needs, in one place."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from aae_dist.checkpoints.format import WeightAverage, load_weights, weights_to_use
from aae_dist.config.metric_names import FEATURES, basis_of
from aae_dist.data.bad_samples import BadSamples
from aae_dist.distributed.optimizer import SynchronizedOptimizer
from aae_dist.methods.method import LabelledSet
from aae_dist.models import Networks

Tensors = dict[str, dict[str, torch.Tensor]]


@dataclass
class TrainState:
    """Networks, optimizers, two integers and the list of bad samples.

    Random draws and order are functions of these.
    """

    networks: Networks
    optimizers: Mapping[str, SynchronizedOptimizer]
    average: WeightAverage | None = None
    prior_vectors: torch.Tensor | None = None
    """Vectors of a prior that is a set of them; constant."""
    labelled: LabelledSet | None = None
    """Labelled samples of a semi-supervised run; constant."""
    step: int = 0
    """Steps done, one global batch each."""
    position: int = 0
    """Samples consumed per lane since the start of training."""
    best: float | None = None
    """Lowest value of `train.best_metric` so far."""
    micro_batch: list[int] = field(default_factory=list)
    """Samples per forward pass that fit, with the number of ranks and global batch they are for."""
    best_metric_id: str = ""
    """Metric and validation shards of `best`; empty in checkpoints of older versions."""
    best_num_samples: float | None = None
    """Samples of this run's prior-match scores; scores of other numbers are not comparable."""
    samples_shift: int = 0
    """Samples seen in addition to the position: earlier epochs may have had other shards."""
    bad: BadSamples = field(default_factory=BadSamples)
    lr_factor: float = 1.0
    """Factor on all learning rates: halved by rollbacks (see `train.max_rollbacks`)."""

    def tensors(self) -> Tensors:
        """Return the tensors of a checkpoint by file name: the live ones, not copies."""
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
        if self.labelled is not None:
            tensors["labelled"] = {"images": self.labelled.images, "labels": self.labelled.labels}
        return tensors

    def metadata(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "position": self.position,
            "best": self.best,
            "samples_shift": self.samples_shift,
            "bad_samples": self.bad.document(),
            "lr_factor": self.lr_factor,
            "micro_batch": self.micro_batch,
            "best_of": self.best_metric_id,
            "best_num_samples": self.best_num_samples,
            "average_is_inherited": self.average is not None and self.average.is_inherited,
        }

    def load(
        self, tensors: Mapping[str, Mapping[str, torch.Tensor]], metadata: Mapping[str, Any]
    ) -> None:
        """Continue from the saved values of `tensors` and `metadata`."""
        self.load_weights(tensors["model"])
        if self.average is not None:
            load_weights(self.average.networks, weights_to_use(tensors))
            self.average.is_inherited = metadata.get("average_is_inherited", False)
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(tensors[f"optimizer-{name}"])
        self.step, self.position = metadata["step"], metadata["position"]
        self.best, self.samples_shift = metadata["best"], metadata.get("samples_shift", 0)
        self.micro_batch = metadata.get("micro_batch", [])
        self.best_metric_id = metadata.get("best_of", "")
        self.best_num_samples = metadata.get("best_num_samples")
        self.bad = BadSamples(**metadata.get("bad_samples", {}))
        self.scale_lr(metadata.get("lr_factor", 1.0))

    def set_best_metric(self, metric_id: str) -> None:
        """Reset the best value if it is of another metric, or of other validation shards."""
        if self.best_metric_id not in ("", metric_id):
            self.best = self.best_num_samples = None
        self.best_metric_id = metric_id

    def other_num_samples(self, name: str, evaluated: Mapping[str, float]) -> float | None:
        """Return the number of samples of a score that does not compare with those before."""
        for basis in basis_of((name,)):
            if basis == FEATURES or basis not in evaluated:
                continue  # of other features, the best metric is another one
            if self.best_num_samples is None:
                self.best_num_samples = evaluated[basis]
            return None if evaluated[basis] == self.best_num_samples else evaluated[basis]
        return None

    def scale_lr(self, factor: float) -> None:
        """Multiply the configured learning rates of all phases by `factor`."""
        self.lr_factor = factor
        for optimizer in self.optimizers.values():
            optimizer.lr_factor = factor

    def start_from(self, tensors: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
        """Load the weights of another run, and their average where both runs have one."""
        self.load_weights(tensors["model"])
        if self.average is not None and "ema" in tensors:
            load_weights(self.average.networks, weights_to_use(tensors))
            self.average.is_inherited = True

    @torch.no_grad()
    def load_weights(self, model: Mapping[str, torch.Tensor]) -> None:
        """Copy weights into the networks; CheckpointError names what does not fit."""
        load_weights(self.networks, model)
        if self.average is not None:
            self.average.restart()
