"""Alarms of the adversarial game: what goes wrong without any number turning infinite."""

import math
from collections.abc import Mapping

Metrics = Mapping[str, float]

POINTS_IN_A_ROW = 5
EQUILIBRIUM = {"bce": 2 * math.log(2), "least_squares": 0.25, "hinge": 2.0}
"""By adversary: the discriminator's loss when codes and prior samples look alike."""
WINNING_PART = 0.07
"""A winner's loss is below this part of it: 0.1 for bce."""
WINNING_ACCURACY = 0.98
DEAD_MARGIN = 0.02
"""A discriminator whose two accuracies sum to 1 within this margin tells nothing apart."""
TELLING_C2ST = 0.6
"""Accuracy of a classifier trained from scratch from which on there is something to tell apart."""
COLLAPSED_SPREAD = 0.1
"""Smallest spread of the codes over that of the prior, in any direction, below which they are flat.
"""

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


class GameAlarms:
    """Raises and clears alarms from the metrics of log points and evaluations.

    Every rank feeds the same numbers and gets the same answers.

    Args:
        adversary: The game that is played, a key of `EQUILIBRIUM`.
    """

    def __init__(self, adversary: str = "bce") -> None:
        self._winning_loss = WINNING_PART * EQUILIBRIUM[adversary]
        self._winning_points = 0
        self._raised: dict[str, bool] = {}

    def update(self, metrics: Metrics) -> tuple[dict[str, float], list[str]]:
        """Return alarms as metrics, 1 or 0 each, and a line for every one that is new."""
        now = {**self._of_losses(metrics), **_of_evaluation(metrics)}
        new = [MEANING[name] for name, on in now.items() if on and not self._raised.get(name)]
        self._raised |= now
        return {name: float(on) for name, on in now.items()}, new

    def _of_losses(self, metrics: Metrics) -> dict[str, bool]:
        loss = metrics.get("loss/discriminator", math.nan)
        if math.isnan(loss):
            return {}
        self._winning_points = self._winning_points + 1 if loss < self._winning_loss else 0
        return {DISCRIMINATOR_WINS: self._winning_points >= POINTS_IN_A_ROW}


def _of_evaluation(metrics: Metrics) -> dict[str, bool]:
    found = {}
    codes = metrics.get("discriminator/accuracy_codes")
    prior = metrics.get("discriminator/accuracy_prior")
    c2st = metrics.get("prior_match/c2st")
    if codes is not None and prior is not None and c2st is not None:
        wins = min(codes, prior) > WINNING_ACCURACY
        if wins:
            found[DISCRIMINATOR_WINS] = True
        blind = abs(codes + prior - 1.0) < DEAD_MARGIN
        found[DISCRIMINATOR_DEAD] = blind and c2st > TELLING_C2ST
    spread = metrics.get("codes/smallest_spread")
    if spread is not None:
        found[COLLAPSED_CODES] = spread < COLLAPSED_SPREAD
    return found
