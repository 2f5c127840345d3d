"""How good a trained autoencoder is: reconstruction, match with the prior, pictures."""

from aae_dist.evaluation.evaluator import Evaluation, EvaluationImages, Evaluator

__all__ = ["Evaluation", "EvaluationImages", "Evaluator"]
