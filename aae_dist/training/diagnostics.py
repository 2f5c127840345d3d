"""Diagnostics of adversarial training: statistics of the codes, and alarms."""

import math
from collections import deque
from collections.abc import Collection, Iterable, Mapping

import torch

from aae_dist.config import RunConfig
from aae_dist.config.sections.method import AnyAdversarial
from aae_dist.distributed import world as ranks
from aae_dist.distributed.world import World
from aae_dist.priors import Prior, matched_parts
from aae_dist.training.folder import COLLAPSED_SPREAD, FAIR_C2ST, GOOD_CLASSES
from aae_dist.utils.tensors import keyed_generator

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
FAR_C2ST = 0.9
"""Above this accuracy codes are far from the prior, at an evaluation during training too."""
FAR, FAR_PER_DIMENSION = 2.5, 0.3
"""Codes are far from the prior above the lower of FAR and this times the latent size.

Measured by the mean of `codes/off_prior`, which collapsed codes bring to 0.35 to 1 per dimension,
over FAR_POINTS log points. In docs/metrics.md the runs that ended well had means of at most 2.0
between 5 and 10 % of their steps, the poor ones of at least 2.7, but for one.
"""
FAR_POINTS = 3
"""Log points of a mean, in which each counts for at most twice the limit.

So two may be enough, of which short runs have no more at first, but never one.
"""
SETTLED = 0.05
"""Fraction of a run after which codes should have come near the prior: all runs start far off."""
CHANCE_FRACTION = 0.6
"""A discriminator near chance has at least this fraction of the loss of a balanced game."""
CHANCE_ACCURACY = 0.75

DISCRIMINATOR_WINS = "alarm/discriminator_wins"
DISCRIMINATOR_DEAD = "alarm/discriminator_dead"
LAGGING = "alarm/lagging"
OFF_PRIOR = "alarm/off_prior"
UNBALANCED = "alarm/unbalanced"
COLLAPSED_CODES = "alarm/collapsed_codes"

MEANING = {
    DISCRIMINATOR_WINS: "the discriminator tells nearly all codes from prior samples, so the "
    "encoder learns little from it",
    DISCRIMINATOR_DEAD: "the discriminator tells nothing apart although codes and prior samples "
    "differ",
    LAGGING: "the discriminator is near chance although the codes are far from the prior: they "
    "move faster than it learns",
    OFF_PRIOR: "the codes are far from the prior",
    UNBALANCED: "only the adversary holds the codes near the prior, with Adam, whose steps are as "
    "large however small its gradient; six of nine data sets ended far from the prior this way",
    COLLAPSED_CODES: "the codes hardly vary in some direction in which the prior does",
}


NUM_DIRECTIONS = 64
"""Random directions along which the codes of a step are compared with the prior."""
NUM_REFERENCE = 8192
"""Prior samples that they are compared with, the same throughout a run."""
FREQUENCIES = (1.0, 2.0)
"""Of the characteristic functions that are compared, in units of 1 / the prior's spread."""
MIN_STEPS_BETWEEN = 10
"""Steps between comparisons at least: one takes 0.2 ms at 128 codes, a small step 5 ms."""


class CodeStatistics:
    """Compares the codes of one step with the prior, from sums that ranks only have to add up.

    Along random directions, which span the latent space: mean and spread, and the squared distance
    of the characteristic functions (Epps and Pulley 1983), which sees any shape. Nothing here waits
    for the device.
    """

    def __init__(self, prior: Prior, device: torch.device, dtype: torch.dtype) -> None:
        draw = keyed_generator(0, "codes against the prior")
        self._columns = columns_compared(prior)
        size = prior.latent_dim if self._columns is None else len(self._columns)
        bases = [
            torch.linalg.qr(torch.randn(size, size, generator=draw, dtype=torch.float64))[0]
            for _ in range(-(-NUM_DIRECTIONS // size))
        ]
        directions_ZK = torch.cat(bases, dim=1)[:, :NUM_DIRECTIONS]
        reference = self._compared(prior.sample(NUM_REFERENCE, draw))
        projected = reference.double() @ directions_ZK
        mean_K, std_K = projected.mean(0), projected.std(0).clamp_min(1e-12)
        self._size = size
        self._directions_ZK = (directions_ZK / std_K).to(device, dtype)
        self._offset_K = (mean_K / std_K).to(device, dtype)
        self._reference = _moments((projected - mean_K) / std_K).mean(1)

    @staticmethod
    def is_due(step: int, every: int) -> bool:
        """Return whether the log point of `step` has them: not all where steps log each."""
        return (step // every) % -(-MIN_STEPS_BETWEEN // every) == 0

    def metrics(
        self,
        losses: Mapping[str, torch.Tensor],
        codes: Collection[tuple[torch.Tensor, torch.Tensor]],
        num_codes: int,
        world: World,
    ) -> dict[str, float]:
        """Return the means over ranks of losses and, if there are codes, their statistics.

        A collective, which waits for the device once. `codes` are weights (B) and codes (B, Z) of
        this rank's micro-batches, `num_codes` those of all ranks.
        """
        shares = torch.stack(list(losses.values()))
        sums = self.sums(codes) if codes else shares[:0]
        means = ranks.mean_over_ranks(torch.cat([shares, sums]), world).cpu()
        found = dict(zip(losses, means[: len(losses)].tolist(), strict=True))
        return found | (self.of_means(means[len(losses) :], num_codes) if codes else {})

    @torch.no_grad()
    def sums(self, codes: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
        """Return this rank's weighted sums, (6 K), whose mean over ranks `of_means` takes."""
        parts = [
            (
                _moments(self._compared(z_BZ) @ self._directions_ZK - self._offset_K)
                * weights_B[:, None]
            ).sum(1)
            for weights_B, z_BZ in codes
        ]
        return torch.stack(parts).sum(0).flatten()

    def _compared(self, z_BZ: torch.Tensor) -> torch.Tensor:
        return z_BZ if self._columns is None else z_BZ[:, self._columns]

    def of_means(self, sums: torch.Tensor, num_codes: int) -> dict[str, float]:
        """Return the metrics of the means over `num_codes` codes, (6 K) on the CPU."""
        moments = sums.double().unflatten(0, self._reference.shape)
        mean_K, square_K = moments[0], moments[1]
        spread_K = (square_K - mean_K.square()).clamp_min(0).sqrt()
        distance = (moments[2:] - self._reference[2:]).square().sum(0).mean()
        noise = (len(FREQUENCIES) - self._reference[2:].square().sum(0)).mean()
        off = self._size * (distance / noise - 1 / num_codes)
        return {
            "codes/off_prior": off.item(),
            "codes/shift": mean_K.square().mean().sqrt().item(),
            "codes/narrowest": spread_K.min().item(),
            "codes/widest": spread_K.max().item(),
        }


def columns_compared(prior: Prior) -> list[int] | None:
    """Return the columns of the code whose parts are continuous, None for all of them."""
    parts = matched_parts(prior)
    if sum(part.dims for part in parts) == prior.latent_dim:
        return None
    return [column for part in parts for column in range(part.columns.start, part.columns.stop)]


def _moments(projected_BK: torch.Tensor) -> torch.Tensor:
    """Return mean, square, cosines and sines of each number, (6, B, K), to be averaged over B."""
    waves = [wave(f * projected_BK) for f in FREQUENCIES for wave in (torch.cos, torch.sin)]
    return torch.stack([projected_BK, projected_BK.square(), *waves])


class GanDiagnostics:
    """Raises and clears alarms from the metrics of log points and evaluations.

    Every rank passes the same numbers and gets the same alarms.
    """

    def __init__(
        self,
        adversary: str | None = "bce",
        latent_dim: int = 10,
        advice: str = "",
        unbalanced: bool = False,
    ) -> None:
        """`adversary`: None for methods without; `advice` ends the line of a new alarm.

        `unbalanced`: by its configuration, see `is_unbalanced`.
        """
        self._far = min(FAR, FAR_PER_DIMENSION * latent_dim)
        self._balanced_loss = EQUILIBRIUM[adversary] if adversary else math.nan
        self._advice = f"; try {advice}" if advice else ""
        self._unbalanced = self._unproven = unbalanced
        self._winning_points = 0
        self._settled: deque[tuple[float, float]] = deque(maxlen=FAR_POINTS)
        self._raised: dict[str, bool] = {}

    def update(self, metrics: Metrics, progress: float = 1.0) -> tuple[dict[str, float], list[str]]:
        """Return alarms as metrics, 1 or 0 each, and one line per new alarm.

        `progress` is the part of the run that is done.
        """
        c2st = metrics.get("prior_match/c2st")
        if self._unbalanced and c2st is not None:
            self._unproven = c2st > FAIR_C2ST
        now = {**self._check_losses(metrics), **self._check_codes(metrics, progress)}
        for name, on in _check_evaluation(metrics, progress).items():
            # Both are looked at in the last record; of the codes' place either is enough.
            now[name] = on or (name in (LAGGING, OFF_PRIOR) and now.get(name, False))
        new = [name for name, on in now.items() if on and not self._raised.get(name)]
        self._raised |= now
        lines = [f"{name.removeprefix('alarm/')}: {MEANING[name]}{self._advice}" for name in new]
        return {name: float(on) for name, on in now.items()}, lines

    def _check_losses(self, metrics: Metrics) -> dict[str, bool]:
        loss = metrics.get("loss/discriminator", math.nan)
        if math.isnan(loss):
            return {}
        wins = loss < WINNING_FRACTION * self._balanced_loss
        self._winning_points = self._winning_points + 1 if wins else 0
        return {
            DISCRIMINATOR_WINS: self._winning_points >= CONSECUTIVE_POINTS,
            UNBALANCED: self._unproven,
        }

    def _check_codes(self, metrics: Metrics, progress: float) -> dict[str, bool]:
        off = metrics.get("codes/off_prior", math.nan)
        if math.isnan(off):
            return {}
        loss = metrics.get("loss/discriminator", math.nan)
        if progress >= SETTLED:
            self._settled.append((min(off, 2 * self._far), loss))
        were_far = sum(o for o, _ in self._settled) > FAR_POINTS * self._far
        # A raised alarm stays until the codes are near: they wander around any one limit.
        far = off > self._far / 2 and (were_far or self._raised.get(OFF_PRIOR, False))
        at_chance = CHANCE_FRACTION * self._balanced_loss
        lags = sum(lost - at_chance for _, lost in self._settled) > 0
        lags = lags or self._raised.get(LAGGING, False)
        found = {OFF_PRIOR: far}
        return found if math.isnan(loss) else found | {LAGGING: far and lags}


class PartAlarms:
    """The alarms of a code in parts: each part plays a game of its own, any may raise an alarm."""

    def __init__(
        self, prior: Prior, adversary: str | None, advice: str = "", unbalanced: bool = False
    ) -> None:
        """`adversary`, `advice` and `unbalanced` as for `GanDiagnostics`."""
        columns = columns_compared(prior)
        size = prior.latent_dim if columns is None else len(columns)
        # The place of the continuous codes at log points is measured over all their parts.
        self._place = GanDiagnostics(None, size, advice)
        self._parts = {
            f"part {number}, {'categorical' if part.is_categorical else 'continuous'}": (
                f"part_{number}/",
                # C2ST, by which the match is proven, is measured for continuous parts.
                GanDiagnostics(
                    adversary, part.dims, advice, unbalanced and not part.is_categorical
                ),
            )
            for number, part in enumerate(prior.parts, start=1)
        }

    def update(self, metrics: Metrics, progress: float = 1.0) -> tuple[dict[str, float], list[str]]:
        """Return alarms and lines as `GanDiagnostics.update` does; a line names its part."""
        place = {n: v for n, v in metrics.items() if n == "codes/off_prior"}
        alarms, lines = self._place.update(place, progress)
        for title, (prefix, game) in self._parts.items():
            own = {n.removeprefix(prefix): v for n, v in metrics.items() if n.startswith(prefix)}
            found, new = game.update(own, progress)
            alarms |= {name: max(on, alarms.get(name, 0.0)) for name, on in found.items()}
            lines += [line.replace(":", f" ({title}):", 1) for line in new]
        return alarms, lines


Diagnostics = GanDiagnostics | PartAlarms


def open_diagnostics(config: RunConfig, prior: Prior) -> Diagnostics:
    """Return the alarms of a run; they advise to balance the game where it is not."""
    method = config.method
    advice = "method.balance=auto" if getattr(method, "balance", "auto") != "auto" else ""
    adversary = getattr(method, "adversary", None)
    return diagnostics_of(prior, adversary, advice, is_unbalanced(config))


def is_unbalanced(config: RunConfig) -> bool:
    """Return whether nothing but the adversary shapes the codes, with Adam.

    Adam divides a gradient by its own size, so both phases take full steps of noise and the codes
    wander as one cloud. The paper's SGD does not (docs/algorithm.md).
    """
    method = config.method
    return (
        isinstance(method, AnyAdversarial)
        and method.balance == "none"
        and not method.distance_weight
        and config.phases.generator.optimizer.kind in ("adam", "adamw")
    )


def diagnostics_of(
    prior: Prior, adversary: str | None, advice: str = "", unbalanced: bool = False
) -> Diagnostics:
    """Return the alarms of a run, for each part of its code."""
    if len(prior.parts) > 1:
        return PartAlarms(prior, adversary, advice, unbalanced)
    return GanDiagnostics(adversary, prior.latent_dim, advice, unbalanced)


def _check_evaluation(metrics: Metrics, progress: float) -> dict[str, bool]:
    found = {}
    codes = metrics.get("discriminator/accuracy_codes")
    prior = metrics.get("discriminator/accuracy_prior")
    c2st = metrics.get("prior_match/c2st")
    if c2st is not None:
        found[OFF_PRIOR] = far = c2st > FAR_C2ST and progress >= SETTLED
        if codes is not None and prior is not None:
            if min(codes, prior) > WINNING_ACCURACY:
                found[DISCRIMINATOR_WINS] = True
            blind = abs(codes + prior - 1.0) < DEAD_MARGIN
            found[DISCRIMINATOR_DEAD] = blind and c2st > DISTINCT_C2ST
            found[LAGGING] = far and (codes + prior) / 2 < CHANCE_ACCURACY
    elif codes is not None and prior is not None and "codes/confidence" in metrics:
        classes = [metrics[f"codes/{name}"] for name in ("class_entropy", "confidence")]
        found[DISCRIMINATOR_WINS] = min(codes, prior) > WINNING_ACCURACY
        blind = abs(codes + prior - 1.0) < DEAD_MARGIN
        found[DISCRIMINATOR_DEAD] = blind and min(classes) < GOOD_CLASSES
    spread = metrics.get("codes/smallest_spread")
    if spread is not None:
        found[COLLAPSED_CODES] = spread < COLLAPSED_SPREAD
    return found
