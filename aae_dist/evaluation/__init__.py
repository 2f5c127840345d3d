"""How good a trained autoencoder is: reconstruction, match with the prior, pictures."""

from aae_dist.evaluation.evaluator import Evaluation, Evaluator, Gallery
from aae_dist.evaluation.interfaces import EvaluationData, EvaluationModel

__all__ = [
    "Evaluation",
    "EvaluationData",
    "EvaluationModel",
    "Evaluator",
    "Gallery",
]
