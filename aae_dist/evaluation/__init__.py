"""How good a trained autoencoder is: reconstruction, match with the prior, pictures."""

from aae_dist.evaluation.evaluate import (
    Evaluation,
    EvaluationData,
    EvaluationModel,
    Evaluator,
    Gallery,
    evaluate,
)

__all__ = [
    "Evaluation",
    "EvaluationData",
    "EvaluationModel",
    "Evaluator",
    "Gallery",
    "evaluate",
]
