"""How good a trained autoencoder is: reconstruction, match with the prior, pictures."""

from aae_dist.evaluation.evaluator import Evaluation, EvaluationImages, Evaluator
from aae_dist.evaluation.interfaces import EvaluationData, EvaluationModel

__all__ = [
    "Evaluation",
    "EvaluationData",
    "EvaluationModel",
    "Evaluator",
    "EvaluationImages",
]
