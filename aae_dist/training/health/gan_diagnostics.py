"""Diagnostics of adversarial training: failures during which all numbers stay finite."""

import math
from collections.abc import Mapping

Metrics = Mapping[str, float]

CONSECUTIVE_POINTS = 5
EQUILIBRIUM = {"bce": 2 * math.log(2), "least_squares": 0.25, "hinge": 2.0}
"""By adversary: the discriminator's loss when it cannot tell codes from prior samples."""
WINNING_FRACTION = 0.07
"""A winning discriminator's loss is below this fraction of it: 0.1 for bce."""
WINNING_ACCURACY = 0.98
DEAD_MARGIN = 0.02
"""A discriminator whose two accuracies sum to 1 within this margin has no signal."""
DISTINCT_C2ST = 0.6
"""Codes and prior samples are distinct above this accuracy of a classifier trained from scratch."""
COLLAPSED_SPREAD = 0.1
"""Codes are collapsed when their spread over that of the prior is below this in any direction."""

DISCRIMINATOR_WINS = "alarm/discriminator_wins"
DISCRIMINATOR_DEAD = "alarm/discriminator_dead"
COLLAPSED_CODES = "alarm/collapsed_codes"

MEANING = {
    DISCRIMINATOR_WINS: "the discriminator tells nearly all codes from prior samples, so the "
    "encoder learns little from it; lower phases.discriminator.optimizer.lr",
    DISCRIMINATOR_DEAD: "the discriminator tells nothing apart although codes and prior samples "
    "differ; raise phases.discriminator.optimizer.lr or widen it",
    COLLAPSED_CODES: "the codes hardly vary in some direction in which the prior does; lower "
    "phases.generator.optimizer.lr",
}


class GanDiagnostics:
    """Raises and clears alarms from the metrics of log points and evaluations.

    Every rank passes the same numbers and gets the same alarms.

    Args:
        adversary: the adversarial loss, a key of `EQUILIBRIUM`.
    """

    def __init__(self, adversary: str = "bce") -> None:
        self._winning_loss = WINNING_FRACTION * EQUILIBRIUM[adversary]
        self._winning_points = 0
        self._raised: dict[str, bool] = {}

    def update(self, metrics: Metrics) -> tuple[dict[str, float], list[str]]:
        """Return alarms as metrics, 1 or 0 each, and one line per new alarm."""
        now = {**self._check_losses(metrics), **_check_evaluation(metrics)}
        new = [MEANING[name] for name, on in now.items() if on and not self._raised.get(name)]
        self._raised |= now
        return {name: float(on) for name, on in now.items()}, new

    def _check_losses(self, metrics: Metrics) -> dict[str, bool]:
        loss = metrics.get("loss/discriminator", math.nan)
        if math.isnan(loss):
            return {}
        self._winning_points = self._winning_points + 1 if loss < self._winning_loss else 0
        return {DISCRIMINATOR_WINS: self._winning_points >= CONSECUTIVE_POINTS}


def _check_evaluation(metrics: Metrics) -> dict[str, bool]:
    found = {}
    codes = metrics.get("discriminator/accuracy_codes")
    prior = metrics.get("discriminator/accuracy_prior")
    c2st = metrics.get("prior_match/c2st")
    if codes is not None and prior is not None and c2st is not None:
        wins = min(codes, prior) > WINNING_ACCURACY
        if wins:
            found[DISCRIMINATOR_WINS] = True
        blind = abs(codes + prior - 1.0) < DEAD_MARGIN
        found[DISCRIMINATOR_DEAD] = blind and c2st > DISTINCT_C2ST
    spread = metrics.get("codes/smallest_spread")
    if spread is not None:
        found[COLLAPSED_CODES] = spread < COLLAPSED_SPREAD
    return found
