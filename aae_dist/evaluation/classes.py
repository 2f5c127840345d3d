"""Scores of codes that are classes: how even and how sure they are, and what they say of labels.

Shapes: n samples, K classes. All are computed from the gathered table, on rank 0, in float64.
"""

import math

import torch
from torch import Tensor

from aae_dist.priors import MixturePrior, Part, Prior, SwissRollPrior


def class_scores(probabilities_nK: Tensor) -> dict[str, float]:
    """Return how a categorical part of the code matches its prior, float [n, K]; 1 is perfect.

    `codes/class_entropy`: entropy of the mean of the rows over log K, 1 for classes that are used
    equally often, 0 for one class alone. `codes/confidence`: mean of each row's largest entry, 1
    for one-hot codes, 1 / K for codes that say nothing.
    """
    mean_K = probabilities_nK.double().mean(0)
    entropy = -torch.special.xlogy(mean_K, mean_K).sum().item()
    return {
        "codes/class_entropy": entropy / math.log(len(mean_K)),
        "codes/confidence": probabilities_nK.double().amax(1).mean().item(),
    }


def classification_error(found_n: Tensor, labels_n: Tensor) -> float:
    """Return the part of the labelled samples whose class is not their label, nan without any.

    Both are int64, labels -1 where absent.
    """
    known = labels_n >= 0
    return (found_n[known] != labels_n[known]).double().mean().item()


MIN_PROBED = 20
RIDGE = 1e-3
"""Penalty of the linear probe, in units of the standardized codes' number."""


def probe_errors(codes_nZ: Tensor, labels_n: Tensor) -> dict[str, float]:
    """Return how many labels two simple classifiers of codes get wrong; empty for few labels.

    Both are fitted to the labelled samples of even number and asked for those of odd number:
    `codes/knn_error` by the majority of the five nearest codes (the nearest decides a tie),
    `codes/linear_error` by ridge regression on one-hot labels. Codes are float [n, Z].
    """
    known = labels_n >= 0
    classes, labels = labels_n[known].unique(return_inverse=True)
    if len(labels) < MIN_PROBED or len(classes) < 2:
        return {}
    codes = codes_nZ[known].double()
    fitted, asked, truth = codes[::2], codes[1::2], labels[1::2]
    one_hot = torch.nn.functional.one_hot(labels[::2], len(classes)).double()
    found = _nearest_labels(fitted, one_hot, asked), _ridge_labels(fitted, one_hot, asked)
    errors = [(each != truth).double().mean().item() for each in found]
    return dict(zip(("codes/knn_error", "codes/linear_error"), errors, strict=True))


def _nearest_labels(fitted_nZ: Tensor, one_hot_nK: Tensor, asked_mZ: Tensor) -> Tensor:
    # Nearer neighbours count a little more, so that no vote is tied.
    count = min(NEIGHBOURS, len(fitted_nZ))
    votes_k = 1 - torch.arange(count, dtype=torch.float64) / 100
    chunks = _nearest(asked_mZ, fitted_nZ, count).split(ROWS_AT_ONCE)
    found = [(one_hot_nK[rows] * votes_k[:, None]).sum(1).argmax(1) for rows in chunks]
    return torch.cat(found)


def _nearest(asked_mZ: Tensor, known_nZ: Tensor, count: int) -> Tensor:
    """Return the rows of the `count` nearest known points of each, int64 [m, count]."""
    parts = asked_mZ.split(ROWS_AT_ONCE)
    return torch.cat([torch.cdist(x, known_nZ).topk(count, largest=False).indices for x in parts])


def _ridge_labels(fitted_nZ: Tensor, one_hot_nK: Tensor, asked_mZ: Tensor) -> Tensor:
    mean, std = fitted_nZ.mean(0), fitted_nZ.std(0).clamp_min(1e-12)
    x, y_mean = (fitted_nZ - mean) / std, one_hot_nK.mean(0)
    penalty = RIDGE * len(x) * torch.eye(x.shape[1], dtype=x.dtype)
    weights = torch.linalg.solve(x.T @ x + penalty, x.T @ (one_hot_nK - y_mean))
    found_m: Tensor = ((asked_mZ - mean) / std @ weights + y_mean).argmax(1)
    return found_m


NEIGHBOURS = 5
SAMPLES_PER_CLASS = 200
ROWS_AT_ONCE = 1024


def nearest_class(codes_nZ: Tensor, prior: Prior) -> Tensor:
    """Return the class of the prior, int64 [n], with the nearest of 200 samples of each."""
    assert prior.num_classes is not None
    drawn = torch.arange(prior.num_classes).repeat_interleave(SAMPLES_PER_CLASS)
    known = prior.sample_class(drawn, torch.Generator().manual_seed(0)).double()
    rows = codes_nZ.double().split(ROWS_AT_ONCE)
    return torch.cat([drawn[torch.cdist(part, known).argmin(1)] for part in rows])


def neighbour_error(points_nS: Tensor, labels_n: Tensor) -> float:
    """Return the part of labelled points with another label than most of their 5 nearest others.

    Labels are int64, -1 where absent; nan with no more than 5 labelled points.
    """
    known = labels_n >= 0
    points, labels = points_nS[known].double(), labels_n[known]
    if len(labels) <= NEIGHBOURS:
        return math.nan
    others = _nearest(points, points, NEIGHBOURS + 1)[:, 1:]
    return classification_error(labels[others].mode(1).values, labels)


def clustering_scores(probabilities_nK: Tensor, labels_n: Tensor) -> dict[str, float]:
    """Return how well clusters agree with labels, int64, -1 where absent; empty without any.

    A sample belongs to the cluster of its largest entry. `clustering/error` is the protocol of
    Makhzani et al., arXiv 1511.05644, section 6: each cluster takes the label of the sample that is
    surest of it, here of the same samples. `clustering/nmi` is the mutual information over the
    mean of both entropies, `clustering/ari` the adjusted Rand index (Hubert and Arabie 1985).
    """
    known = labels_n >= 0
    if not bool(known.any()):
        return {}
    probabilities, labels = probabilities_nK[known].double(), labels_n[known]
    clusters = probabilities.argmax(1)
    label_of_cluster = labels[probabilities.argmax(0)]
    wrong = label_of_cluster[clusters] != labels
    counts = _contingency(clusters, labels)
    return {
        "clustering/error": wrong.double().mean().item(),
        "clustering/nmi": normalized_mutual_information(counts),
        "clustering/ari": adjusted_rand_index(counts),
    }


def _contingency(clusters_n: Tensor, labels_n: Tensor) -> Tensor:
    """Return the number of samples of each cluster and label that occur, float64 (clusters, L)."""
    _, rows = clusters_n.unique(return_inverse=True)
    _, columns = labels_n.unique(return_inverse=True)
    num = int(columns.max()) + 1
    flat = (rows * num + columns).bincount(minlength=(int(rows.max()) + 1) * num)
    counts: Tensor = flat.unflatten(0, (-1, num))
    return counts.double()


def normalized_mutual_information(counts: Tensor) -> float:
    """Return the mutual information of two partitions over the mean of their entropies.

    1 for equal partitions, also for two that have one part each.
    """
    joint = counts / counts.sum()
    rows, columns = joint.sum(1), joint.sum(0)
    entropies = [-torch.special.xlogy(p, p).sum().item() for p in (rows, columns, joint)]
    mean = (entropies[0] + entropies[1]) / 2
    return (entropies[0] + entropies[1] - entropies[2]) / mean if mean > 0 else 1.0


def adjusted_rand_index(counts: Tensor) -> float:
    """Return the Rand index of two partitions, 0 on average for random ones and 1 for equal ones.

    `counts`, float64, are the samples that two partitions share.
    """

    def pairs(sizes: Tensor) -> float:
        return (sizes * (sizes - 1) / 2).sum().item()

    both, rows, columns = pairs(counts), pairs(counts.sum(1)), pairs(counts.sum(0))
    expected = rows * columns / max(pairs(counts.sum()[None]), 1.0)
    most = (rows + columns) / 2
    return (both - expected) / (most - expected) if most != expected else 1.0


def style_swaps(styles_SZ: Tensor, part: Part) -> Tensor:
    """Return codes (K, S, Z): in row k all styles with class k, one column per style."""
    codes_KSZ = styles_SZ.expand(part.dims, *styles_SZ.shape).clone()
    codes_KSZ[:, :, part.columns] = torch.eye(part.dims, dtype=styles_SZ.dtype)[:, None]
    return codes_KSZ


def class_part(prior: Prior) -> Part | None:
    """Return the part that holds the class: the first given one, or the first categorical one."""
    return next((part for part in (*prior.given, *prior.parts) if part.is_categorical), None)


def codes_of_classes(prior: Prior, num_styles: int, generator: torch.Generator) -> Tensor | None:
    """Return prior samples of every class, (K, S, Z), None for a prior without classes.

    With a class part, a column has the same style in every class.
    """
    part = class_part(prior)
    if part is not None:
        num_styles = num_styles if part.dims < prior.latent_dim else 1
        return style_swaps(prior.sample(num_styles, generator), part)
    if prior.num_classes is None or not isinstance(prior, MixturePrior | SwissRollPrior):
        return None
    labels = torch.arange(prior.num_classes).repeat_interleave(num_styles)
    codes_KSZ: Tensor = prior.sample_class(labels, generator).unflatten(0, (-1, num_styles))
    return codes_KSZ
