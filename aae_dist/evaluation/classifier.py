"""The two-sample test's classifier: a small network trained from an explicit generator."""

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own name for it)
from torch import Tensor

HIDDEN = 256
EPOCHS = 20
BATCH = 256
LEARNING_RATE = 1e-3


class FlatAdam:
    """Adam with torch's defaults on one flat vector of parameters.

    Creating a `torch.optim` optimizer imports `torch._dynamo`, which takes seconds; one vector also
    needs five kernels a step instead of five per tensor.
    """

    def __init__(self, parameters: Tensor, lr: float) -> None:
        """Start with zero moments; `parameters` is updated in place."""
        self._parameters, self._lr, self._steps = parameters, lr, 0
        self._first, self._second = torch.zeros_like(parameters), torch.zeros_like(parameters)

    def step(self, gradient: Tensor) -> None:
        """Update the parameters with one gradient (Kingma and Ba 2015, algorithm 1)."""
        beta1, beta2, eps = 0.9, 0.999, 1e-8
        self._steps += 1
        self._first.lerp_(gradient, 1 - beta1)
        self._second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        root = (self._second / (1 - beta2**self._steps)).sqrt_().add_(eps)
        self._parameters.addcdiv_(self._first, root, value=-self._lr / (1 - beta1**self._steps))


def accuracy_of_trained_classifier(
    train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor, generator: torch.Generator
) -> float:
    """Train on one half, return the accuracy on the other.

    Args:
        train_x: Standardised rows, float [m, Z].
        train_y: 1 for one class and 0 for the other, float [m].
        test_x: Held-out rows, float [k, Z].
        test_y: Their classes, float [k].
        generator: CPU generator of the weights and the order of batches.
    """
    with torch.inference_mode(mode=False), torch.enable_grad():
        layers = _train(train_x, train_y, generator)
    with torch.no_grad():
        called_one = _logits(layers, test_x) > 0
    return (called_one == (test_y > 0.5)).double().mean().item()


def _train(x: Tensor, y: Tensor, generator: torch.Generator) -> list[Tensor]:
    flat, layers = _initial_layers(x.shape[1], x.dtype, generator)
    adam = FlatAdam(flat, LEARNING_RATE)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(x), generator=generator).split(BATCH):
            loss = F.binary_cross_entropy_with_logits(_logits(layers, x[rows]), y[rows])
            gradients = torch.autograd.grad(loss, layers)
            adam.step(torch.cat([g.reshape(-1) for g in gradients]))
    return layers


def _initial_layers(
    num_inputs: int, dtype: torch.dtype, generator: torch.Generator
) -> tuple[Tensor, list[Tensor]]:
    """Return one flat vector and the layers that view it, drawn as torch.nn.Linear draws them."""
    sizes = [(num_inputs, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, 1)]
    shapes = [shape for fan_in, fan_out in sizes for shape in ((fan_out, fan_in), (fan_out,))]
    bounds = [fan_in**-0.5 for fan_in, _ in sizes for _ in range(2)]
    counts = [torch.Size(shape).numel() for shape in shapes]
    flat = torch.rand(sum(counts), dtype=dtype, generator=generator).mul_(2).sub_(1)
    layers = []
    for part, shape, bound in zip(flat.split(counts), shapes, bounds, strict=True):
        layers.append(part.mul_(bound).view(shape).detach().requires_grad_())
    return flat, layers


def _logits(layers: list[Tensor], x: Tensor) -> Tensor:
    w1, b1, w2, b2, w3, b3 = layers
    return F.linear(F.linear(F.linear(x, w1, b1).relu(), w2, b2).relu(), w3, b3)[:, 0]
