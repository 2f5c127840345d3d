"""Scores of a code against its prior, part by part; a code without parts is one part.

Continuous parts are compared with prior samples, each with its own null. Any classifier separates
softmax codes from one-hot prior samples, so categorical parts are scored by the frequency of their
classes and by their confidence instead.
"""

import math
from collections.abc import Mapping, Sequence

import torch

from aae_dist.evaluation.classes import class_scores
from aae_dist.evaluation.prior_match import PriorBaseline, build_baseline, score
from aae_dist.priors import Part, Prior, matched_parts

Metrics = dict[str, float]
FLAT = 1e-9
"""Directions in which the prior has less than this part of its largest variance are left out."""


class PartScores:
    """Scores codes against one prior; measures the nulls once per number of samples."""

    def __init__(self, prior: Prior, seed: int) -> None:
        self._parts, self._matched, self._seed = prior.parts, matched_parts(prior), seed
        self._baselines: list[PriorBaseline] = []

    def measure(self, codes_nZ: torch.Tensor, prior_nZ: torch.Tensor) -> Metrics:
        """Return the metrics of n codes, float64 [n, Z], and as many prior samples.

        With several parts, also those of each, named `part_1/...` and so on.
        """
        if not self._baselines or len(self._baselines[0].prior_samples) != len(codes_nZ):
            self._baselines = [
                build_baseline(part.prior, len(codes_nZ), self._seed) for part in self._matched
            ]
        each = [self._of_part(part, codes_nZ, prior_nZ.double()) for part in self._parts]
        return each[0] if len(each) == 1 else worst(each) | numbered(each)

    def _of_part(self, part: Part, codes_nZ: torch.Tensor, prior_nZ: torch.Tensor) -> Metrics:
        codes, prior, metrics = codes_nZ[:, part.columns], prior_nZ[:, part.columns], Metrics()
        if part in self._matched:
            baseline = self._baselines[self._matched.index(part)]
            metrics |= score(codes, baseline, self._seed)
        if not bool(codes.isfinite().all()):
            return metrics
        if part.is_categorical:
            metrics |= class_scores(codes)
        return metrics | {"codes/smallest_spread": smallest_spread(codes, prior)}


def numbered(each: Sequence[Mapping[str, float]]) -> Metrics:
    """Return the metrics of all parts, each name behind the number of its part."""
    return {
        f"part_{number}/{name}": value
        for number, metrics in enumerate(each, start=1)
        for name, value in metrics.items()
        if name != "prior_match/num_samples"
    }


_HIGHEST = ("prior_match/sliced_wasserstein", "prior_match/mmd", "prior_match/num_samples")
_LOWEST = ("codes/smallest_spread", "codes/class_entropy", "codes/confidence")


def worst(each: Sequence[Mapping[str, float]]) -> Metrics:
    """Return each metric of the part in which it is worst; C2ST with its interval."""
    found: Metrics = {}
    compared = [metrics for metrics in each if "prior_match/c2st" in metrics]
    if compared:
        c2st = max(compared, key=lambda metrics: _or_inf(metrics["prior_match/c2st"]))
        found |= {name: c2st[name] for name in c2st if name.startswith("prior_match/c2st")}
    for names, choose in ((_HIGHEST, max), (_LOWEST, min)):
        for name in names:
            values = [metrics[name] for metrics in each if name in metrics]
            if values:
                isnan = any(map(math.isnan, values))
                found[name] = math.nan if isnan else choose(values)
    return found


def _or_inf(value: float) -> float:
    return math.inf if math.isnan(value) else value


def smallest_spread(codes_nZ: torch.Tensor, prior_nZ: torch.Tensor) -> float:
    """Return the codes' standard deviation over the prior's, each along its flattest direction.

    About 1 for codes that fill the space as the prior does, 0 when they lie in a plane of it.
    Directions in which the prior does not vary, as one of every simplex, do not count.
    """
    covariance = torch.atleast_2d(prior_nZ.T.cov())
    values, vectors = torch.linalg.eigh(covariance)
    varies = values > FLAT * values[-1]
    if not bool(varies.all()) and bool(varies.any()):
        codes_nZ, prior_nZ = codes_nZ @ vectors[:, varies], prior_nZ @ vectors[:, varies]
    flattest = [
        float(torch.linalg.eigvalsh(torch.atleast_2d(z.T.cov()))[0]) for z in (codes_nZ, prior_nZ)
    ]
    return math.sqrt(max(flattest[0], 0.0) / max(flattest[1], 1e-12))


def combined_score(metrics: Mapping[str, float]) -> float:
    """Return `evaluation/score`, which rewards both goals: 0 is perfect.

    The part of the variance that reconstructions miss, 1 for predicting the mean, plus how far the
    worst part is from the prior: of continuous codes C2ST as 2 * (c2st - 0.5), 1 for codes and
    prior samples that do not overlap; of classes what `codes/class_entropy` and
    `codes/confidence` lack of 1.
    """
    missed = metrics["reconstruction/mse"] / (metrics["reconstruction/variance"] or math.nan)
    c2st = metrics.get("prior_match/c2st", 0.5)
    if not math.isfinite(c2st):
        return math.nan
    classes = [metrics.get(f"codes/{name}", 1.0) for name in ("class_entropy", "confidence")]
    return missed + max(2 * max(c2st - 0.5, 0.0), 1 - min(classes))
