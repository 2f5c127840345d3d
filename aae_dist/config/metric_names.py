"""Names of the metrics that runs log, so that a misspelled one is refused before a run starts.

They are listed here because the code that measures them needs torch. A test trains with every
method and compares.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches
from itertools import product

from aae_dist.config import schema
from aae_dist.config.sections.method import Method

NUM_SAMPLES = "prior_match/num_samples"
"""Number of samples that an evaluation's scores of the prior match are computed from."""
NUM_FEATURED, FEATURES = "samples/num_samples", "samples/features"
"""Number of samples, and the features (48 bits of their hash), that samples are scored by."""
MIN_SCORED_SAMPLES = 8
"""Validation samples that an evaluation needs at least; better are 10,000."""
METHODS = tuple(schema.by_kind(schema.classes_in(Method)))

_OF_ADVERSARIAL = ("reconstruction", "distance", "discriminator", "generator", "smoothness")
_LOSSES: dict[str, tuple[str, ...]] = {
    "adversarial": _OF_ADVERSARIAL,
    "label_guided": _OF_ADVERSARIAL,
    "semi_supervised": (*_OF_ADVERSARIAL, "classification"),
    "variational": ("reconstruction", "kl"),
    "autoencoder": ("reconstruction",),
    "mmd": ("reconstruction", "distance"),
    "sliced_wasserstein": ("reconstruction", "distance"),
    "characteristic": ("reconstruction", "distance"),
}
_PHASES: dict[str, tuple[str, ...]] = {
    "adversarial": ("reconstruction", "discriminator", "generator"),
    "label_guided": ("reconstruction", "discriminator", "generator"),
    "semi_supervised": ("reconstruction", "discriminator", "generator", "classification"),
}
"""Phases of the methods that have more than the reconstruction phase."""
_WITH_ADVERSARY = ("adversarial", "label_guided", "semi_supervised")
_PER_PHASE = ("lr", "gradient_norm", "skipped_updates", "step_seconds")
_GOODPUT = ["wall", "useful", "data_wait", "checkpoint", "evaluation", "record", "stall", "restart"]
_LOGGED = (
    *("step", "epoch", "samples_seen", "data/bad_samples", "throughput/samples_per_second"),
    *("goodput/fraction", *(f"goodput/{part}_seconds" for part in _GOODPUT)),
    *(f"checkpoint/{what}" for what in ("skipped", "seconds_blocked", "bytes", "seconds")),
    *(f"codes/{what}" for what in ("off_prior", "shift", "narrowest", "widest")),
    "alarm/off_prior",
)
_BY, _ENDS = ("twonn", "mle"), ("", "_low", "_high")  # estimators of a dimension, its interval
_EVALUATED = (
    *("evaluation/score", "reconstruction/mse", "reconstruction/sum_half"),
    *("reconstruction/variance", "reconstruction/pca"),
    *("prior_match/c2st", "prior_match/c2st_low", "prior_match/c2st_high"),
    *("prior_match/sliced_wasserstein", "prior_match/mmd", NUM_SAMPLES),
    *("data/bad_validation_samples", "codes/smallest_spread"),
    *(f"{of}/dimension_{by}{end}" for of, by, end in product(("data", "codes"), _BY, _ENDS)),
)
OF_SAMPLES = (
    *(f"samples/{what}" for what in ("frechet_distance", "kernel_distance", "precision")),
    *(f"samples/{what}" for what in ("recall", "density", "coverage")),
    *("samples/frechet_floor", "samples/kernel_floor", NUM_FEATURED, FEATURES),
    *("reconstruction/frechet_distance", "reconstruction/kernel_distance"),
)
"""Measured where `evaluation.features` is set."""
OF_CLASSES = (
    *("codes/class_entropy", "codes/confidence"),
    *("clustering/error", "clustering/nmi", "clustering/ari", "classification/error"),
    *("codes/knn_error", "codes/linear_error"),
    "reduction/neighbour_error",
)
"""Measured where there are labels, or the code, or a part of it, is categorical; those of clusters
need labels, that of the reduction cluster heads, too."""
OPTIONAL = (*OF_CLASSES, *OF_SAMPLES)
_OF_A_PART = re.compile(r"part_[1-9][0-9]*/")
"""What precedes the metrics of one part of a code in parts."""
_ALARMS = {"alarm/discriminator_wins", "alarm/lagging", "alarm/unbalanced"}
_OF_DISCRIMINATOR = ("discriminator/accuracy_codes", "discriminator/accuracy_prior")


def logged(method: str) -> set[str]:
    """Return the metrics of log points of a run with the method, including alarms."""
    phases = _PHASES.get(method, ("reconstruction",))
    names = {*_LOGGED, *(f"loss/{loss}" for loss in _LOSSES[method])}
    names |= {f"{what}/{phase}" for what in _PER_PHASE for phase in phases}
    return names | (_ALARMS if method in _WITH_ADVERSARY else set())


def scores(method: str) -> set[str]:
    """Return the metrics that an evaluation measures on validation data, excluding alarms."""
    return {*_EVALUATED, *(_OF_DISCRIMINATOR if method in _WITH_ADVERSARY else ())}


def evaluated(method: str) -> set[str]:
    """Return the metrics that only records of evaluations contain, including alarms."""
    alarms = {"alarm/collapsed_codes"}
    alarms |= {"alarm/discriminator_dead"} if method in _WITH_ADVERSARY else set()
    return scores(method) | alarms


BASIS = (NUM_SAMPLES, NUM_FEATURED, FEATURES)
"""Metrics that say what scores were computed from: where they differ, scores do not compare."""
_RESTS_ON: Mapping[str, tuple[str, ...]] = {
    "prior_match/": (NUM_SAMPLES,),
    "evaluation/": (NUM_SAMPLES,),
    "samples/": (NUM_FEATURED, FEATURES),
    "reconstruction/frechet_distance": (NUM_FEATURED, FEATURES),
    "reconstruction/kernel_distance": (NUM_FEATURED, FEATURES),
}


def basis_of(names: Iterable[str]) -> tuple[str, ...]:
    """Return the metrics of `BASIS` that metrics rest on, empty for those that always compare."""
    plain = [_OF_A_PART.sub("", name, count=1) for name in names]
    found = {
        b for name in plain for start, on in _RESTS_ON.items() if name.startswith(start) for b in on
    }
    return tuple(name for name in BASIS if name in found)


def is_comparable(
    names: Iterable[str], metrics: Mapping[str, float | None], usual: Mapping[str, float]
) -> bool:
    """Return whether scores are of as many samples, and of the features, that are `usual`.

    Of fewer samples they look worse. `usual` has the metrics of `BASIS` that are known.
    """
    return all(
        metrics.get(name) in (None, usual[name]) for name in basis_of(names) if name in usual
    )


def unknown(name: str, methods: Iterable[str]) -> str | None:
    """Return the problem with a metric that no run of these methods logs, else None."""
    methods = set(methods) or set(METHODS)
    if _OF_A_PART.sub("", name, count=1) in _all_of(methods):
        return None
    owners = [method for method in METHODS if name in _all_of([method])]
    if owners:
        return (
            f"{name} is logged with method.kind={' or '.join(owners)} only, not with "
            f"{' or '.join(sorted(methods))}"
        )
    here, anywhere = _all_of(methods), _all_of(METHODS)
    guess = _guess(name, here) or _guess(name, anywhere)
    advice = f"did you mean {guess}?" if guess else "docs/metrics.md lists them"
    return f"there is no metric {schema.short_json(name)}; {advice}"


def not_evaluated(name: str, methods: Iterable[str]) -> str | None:
    """Return the problem with a metric that no evaluation of these methods' runs writes."""
    methods = set(methods) or set(METHODS)
    measured = {each for method in methods for each in evaluated(method)}.union(OPTIONAL)
    if _OF_A_PART.sub("", name, count=1) in measured:
        return None
    if text := unknown(name, methods):
        return text
    guess = _guess(name, measured) or "prior_match/c2st"
    return f"{name} is not measured by evaluations, which decide; use for example {guess}"


def best_metric_problems(tree: schema.Tree) -> list[str]:
    """Return the problem with train.best_metric of a merged configuration, if there is one."""
    # This is not one of the checks between sections, which apply to stored configurations too: a
    # stored run with an unknown metric can still be used.
    name, method = _leaf(tree, "train", "best_metric"), _leaf(tree, "method", "kind")
    if name is None or method is None or not isinstance(name.value, str):
        return []
    plain = _OF_A_PART.sub("", name.value, count=1)
    features = _leaf(tree, "evaluation", "features")
    if plain in OF_SAMPLES and features is not None and features.value is None:
        advice = "is measured by features only; set evaluation.features=wavelet, for example"
        return [f"train.best_metric: {plain} {advice} ({name.source})"]
    if method.value not in METHODS or plain in {*OPTIONAL, *scores(str(method.value))}:
        return []
    text = unknown(name.value, [str(method.value)])
    text = text or (
        f"{name.value} is not measured by evaluations, which select the best checkpoint; use for "
        "example evaluation/score"
    )
    return [f"train.best_metric: {text} ({name.source})"]


def _leaf(tree: schema.Tree, section: str, key: str) -> schema.Value | None:
    part = tree.get(section)
    leaf = part.get(key) if isinstance(part, dict) else None
    return leaf if isinstance(leaf, schema.Value) else None


def _all_of(methods: Iterable[str]) -> set[str]:
    named = {name for method in methods for name in logged(method) | evaluated(method)}
    return named.union(OPTIONAL)


def _guess(name: str, known: Collection[str]) -> str | None:
    """Return the metric most similar to the whole name, or to its last part."""
    if close := get_close_matches(name, sorted(known), 1, cutoff=0.7):
        return close[0]
    # Of metrics with the same last part, one of an evaluation is the most likely.
    ordered = sorted(known, key=lambda each: (each in _EVALUATED, each))
    ends = {each.rpartition("/")[2]: each for each in ordered}
    last = get_close_matches(name.rpartition("/")[2], ends, 1, cutoff=0.7)
    return ends[last[0]] if last else None
