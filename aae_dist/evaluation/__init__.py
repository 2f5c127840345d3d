"""How good a trained autoencoder is: reconstruction, match with the prior, pictures."""

from aae_dist.evaluation.evaluator import Evaluation, EvaluationImages, Evaluator, classes_by
from aae_dist.evaluation.linear import why_no_pca

__all__ = ["Evaluation", "EvaluationImages", "Evaluator", "classes_by", "why_no_pca"]
