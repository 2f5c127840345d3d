"""Alarms of the game between encoder and discriminator."""

from functools import cache

import pytest
import torch
from torch import Tensor

from aae_dist.config import load_config
from aae_dist.evaluation.part_scores import smallest_spread
from aae_dist.losses import ADVERSARIES
from aae_dist.priors import CategoricalPrior, GaussianPrior, MixturePrior, Prior, ProductPrior
from aae_dist.training import diagnostics
from aae_dist.training.diagnostics import CodeStatistics, GanDiagnostics


def test_a_discriminator_wins_after_several_log_points_in_a_row() -> None:
    game = GanDiagnostics()
    seen, lines = [], []
    for loss in (0.05, 0.05, 1.0, 0.05, 0.05, 0.05, 0.05, 0.05, 0.05, 1.2):
        metrics, new = game.update({"loss/discriminator": loss})
        seen.append(metrics[diagnostics.DISCRIMINATOR_WINS])
        lines += new
    assert seen == [0, 0, 0, 0, 0, 0, 0, 1, 1, 0]
    assert len(lines) == 1


@pytest.mark.parametrize("name", ADVERSARIES)
def test_no_adversary_wins_at_its_equilibrium_and_each_by_a_wide_margin(name: str) -> None:
    loss_of = ADVERSARIES[name].discriminator_loss
    # Logits of an even game, and those of a winner for prior samples and codes.
    even, prior, codes = {
        "bce": (0.0, 6.0, -6.0), "least_squares": (0.5, 0.95, 0.05), "hinge": (0.0, 1.0, -1.0)
    }[name]  # fmt: skip
    equal = float(loss_of(torch.tensor([even]), torch.tensor([even])))
    won = float(loss_of(torch.tensor([prior]), torch.tensor([codes])))
    assert equal == pytest.approx(diagnostics.EQUILIBRIUM[name])
    for loss, wins in ((equal, 0), (0.2 * equal, 0), (won, 1)):
        game = GanDiagnostics(name)
        for _ in range(diagnostics.CONSECUTIVE_POINTS):
            metrics, _ = game.update({"loss/discriminator": loss})
        assert metrics[diagnostics.DISCRIMINATOR_WINS] == wins


@pytest.mark.parametrize(
    ("codes", "prior", "c2st", "wins", "dead"),
    [
        (0.99, 0.99, 0.9, 1, 0),
        (0.0, 1.0, 0.9, 0, 1),  # it calls everything a prior sample
        (0.5, 0.5, 0.5, 0, 0),  # it cannot tell because there is nothing to tell
        (0.5, 0.5, 0.8, 0, 1),
        (0.7, 0.6, 0.8, 0, 0),
    ],
)
def test_an_evaluation_tells_who_wins_and_who_is_dead(
    codes: float, prior: float, c2st: float, wins: int, dead: int
) -> None:
    metrics, _ = GanDiagnostics().update(
        {
            "discriminator/accuracy_codes": codes,
            "discriminator/accuracy_prior": prior,
            "prior_match/c2st": c2st,
        }
    )
    assert metrics.get(diagnostics.DISCRIMINATOR_WINS, 0) == wins
    assert metrics[diagnostics.DISCRIMINATOR_DEAD] == dead


def test_codes_that_lie_in_a_plane_are_collapsed() -> None:
    generator = torch.Generator().manual_seed(0)
    prior = torch.randn(500, 3, generator=generator).double() * 5
    full = torch.randn(500, 3, generator=generator).double() * 4
    flat = full @ torch.tensor([[1.0, 1, 0], [0, 1, 0], [0, 0, 0]]).double()
    assert 0.6 < smallest_spread(full, prior) < 1.0
    assert smallest_spread(flat, prior) < 1e-6
    for codes, alarm in ((full, 0), (flat, 1)):
        metrics, _ = GanDiagnostics().update(
            {"codes/smallest_spread": smallest_spread(codes, prior)}
        )
        assert metrics[diagnostics.COLLAPSED_CODES] == alarm


def test_nothing_is_said_of_methods_without_a_discriminator() -> None:
    assert GanDiagnostics(None).update({"loss/reconstruction": 1.0}) == ({}, [])


FAR, NEAR = {"codes/off_prior": 8.0}, {"codes/off_prior": 0.2}


def alarms_of(game: GanDiagnostics, *records: dict[str, float], progress: float = 0.5) -> list[str]:
    """Return the alarms that the last of some log points leaves on."""
    for record in records:
        metrics, _ = game.update(record, progress)
    return sorted(name.removeprefix("alarm/") for name, on in metrics.items() if on)


def test_codes_that_stay_far_from_the_prior_raise_an_alarm_once_the_run_has_settled() -> None:
    assert alarms_of(GanDiagnostics(None), *[FAR] * 9, progress=0.04) == []
    assert alarms_of(GanDiagnostics(None), FAR) == []
    assert alarms_of(GanDiagnostics(None), FAR, FAR) == ["off_prior"]
    assert alarms_of(GanDiagnostics(None), FAR, NEAR, NEAR, FAR) == []
    # It stays while codes wander around the limit, and is told of once.
    game, between = GanDiagnostics(None, 10, "method.balance=auto"), {"codes/off_prior": 2.0}
    lines = [line for record in (FAR, FAR, FAR, between, FAR) for line in game.update(record)[1]]
    assert lines == ["off_prior: the codes are far from the prior; try method.balance=auto"]
    assert alarms_of(game, between) == ["off_prior"]
    assert alarms_of(game, NEAR) == []


@pytest.mark.parametrize(
    ("latent_dim", "off", "raised"),
    [
        # Means of three points tell these apart, which cross any one limit (docs/metrics.md).
        (16, (3.47, 2.0, 2.93), ["off_prior"]),  # map of 10, `balance: none`: ended at C2ST 0.85
        (8, (0.35, 3.55, 4.37), ["off_prior"]),  # table, `balance: none`: 0.91
        (16, (7.15, 11.42), ["off_prior"]),  # colour, `balance: none`, two points: 1.00
        (8, (1.75, 2.49, 1.73), []),  # digits, `balance: none`: 0.53
        (32, (1.34, 1.33, 1.03), []),  # digits, balanced: 0.63
    ],
)
def test_the_codes_of_poor_runs_are_far_early_on(
    latent_dim: int, off: tuple[float, ...], raised: list[str]
) -> None:
    points = [{"codes/off_prior": value} for value in off]
    assert alarms_of(GanDiagnostics(None, latent_dim), *points, progress=0.08) == raised


def test_a_discriminator_near_chance_lags_where_codes_are_far() -> None:
    def point(loss: float, off: float = 8.0) -> dict[str, float]:
        return {"loss/discriminator": loss, "codes/off_prior": off}

    assert alarms_of(GanDiagnostics(), *[point(1.3)] * 3) == ["lagging", "off_prior"]
    assert alarms_of(GanDiagnostics(), *[point(0.5)] * 3) == ["off_prior"]
    assert alarms_of(GanDiagnostics(), *[point(1.3, 0.2)] * 3) == []
    assert alarms_of(GanDiagnostics("hinge"), *[point(1.3)] * 3) == ["lagging", "off_prior"]
    assert alarms_of(GanDiagnostics("hinge"), *[point(1.0)] * 3) == ["off_prior"]
    game = GanDiagnostics()
    assert alarms_of(game, *[point(1.3)] * 3, point(0.6)) == ["lagging", "off_prior"]
    assert alarms_of(game, point(0.6, 0.2)) == []


@pytest.mark.parametrize(
    ("codes", "prior", "c2st", "raised"),
    [
        (0.7, 0.6, 0.99, ["lagging", "off_prior"]),
        (0.9, 0.8, 0.99, ["off_prior"]),
        (0.7, 0.6, 0.75, []),  # a run on its way
        (0.5, 0.5, 0.99, ["discriminator_dead", "lagging", "off_prior"]),
    ],
)
def test_a_fresh_classifier_sees_a_discriminator_that_lags(
    codes: float, prior: float, c2st: float, raised: list[str]
) -> None:
    record = {
        "discriminator/accuracy_codes": codes,
        "discriminator/accuracy_prior": prior,
        "prior_match/c2st": c2st,
    }
    assert alarms_of(GanDiagnostics(), record) == raised
    # The cheap statistic of the same record does not clear what the classifier sees.
    assert alarms_of(GanDiagnostics(), record | NEAR | {"loss/discriminator": 1.3}) == raised


@cache
def statistics_for(prior: Prior) -> CodeStatistics:
    return CodeStatistics(prior, torch.device("cpu"), torch.float64)


def statistics_of(prior: Prior, codes: Tensor, parts: int = 1) -> dict[str, float]:
    statistics = statistics_for(prior)
    weights = torch.full((len(codes),), 1 / len(codes), dtype=torch.float64)
    chunks = list(zip(weights.chunk(parts), codes.double().chunk(parts), strict=True))
    # Ranks or micro-batches: their sums are added up.
    return statistics.of_means(sum(statistics.sums([chunk]) for chunk in chunks), len(codes))


PRIORS = [GaussianPrior(10), GaussianPrior(32), MixturePrior(2)]


@pytest.mark.parametrize("prior", PRIORS, ids=lambda prior: f"{prior.latent_dim}d")
def test_samples_of_the_prior_are_not_off_it_and_all_else_is(prior: Prior) -> None:
    def draw(seed: int, num: int = 128) -> Tensor:
        return prior.sample(num, torch.Generator().manual_seed(seed))

    found = [statistics_of(prior, draw(seed))["codes/off_prior"] for seed in range(20)]
    assert abs(sum(found) / 20) < 0.05
    assert max(found) < 0.5
    same = statistics_of(prior, draw(1, 4000))
    assert same["codes/shift"] < 0.05
    assert 0.9 < same["codes/narrowest"] < 1 < same["codes/widest"] < 1.1
    std = draw(0, 4000).std(0)
    shifted = statistics_of(prior, draw(1, 4000) + std)
    assert 0.6 < shifted["codes/shift"] < 1.3
    far = min(diagnostics.FAR, diagnostics.FAR_PER_DIMENSION * prior.latent_dim)
    for other in (draw(1) + 1.5 * std, 0.1 * draw(1), draw(1)[:1].expand(128, -1)):
        assert statistics_of(prior, other)["codes/off_prior"] > far


def test_statistics_are_the_same_for_any_number_of_ranks_and_parts() -> None:
    prior = GaussianPrior(5)
    codes = torch.randn(60, 5, generator=torch.Generator().manual_seed(1)).double()
    alone = statistics_of(prior, codes)
    for parts in (2, 3):
        assert statistics_of(prior, codes, parts) == pytest.approx(alone, rel=1e-12)


def test_statistics_are_of_one_step_in_ten_at_most() -> None:
    for every in (1, 3, 7, 10, 50, 1000):
        steps = [s for s in range(every, 2001, every) if CodeStatistics.is_due(s, every)]
        assert steps
        assert all(b - a >= 10 for a, b in zip(steps, steps[1:], strict=False))
        assert every < 10 or len(steps) == 2000 // every


def test_alarms_of_a_code_in_parts_name_the_part() -> None:
    prior = ProductPrior([CategoricalPrior(4), GaussianPrior(2)])
    game = diagnostics.diagnostics_of(prior, "bce", "more steps")
    even = {"discriminator/accuracy_codes": 0.5, "discriminator/accuracy_prior": 0.5}
    good = {"codes/class_entropy": 0.99, "codes/confidence": 0.98, "codes/smallest_spread": 0.9}
    fine = {"prior_match/c2st": 0.52, "codes/smallest_spread": 0.9}

    def evaluated(first: dict[str, float], second: dict[str, float]) -> dict[str, float]:
        each = (("part_1/", first), ("part_2/", second))
        return {prefix + n: v for prefix, metrics in each for n, v in metrics.items()}

    alarms, lines = game.update(evaluated(even | good, even | fine))
    assert lines == []
    assert set(alarms.values()) == {0.0}
    # Softmax codes that say nothing, and a discriminator that does not mind.
    alarms, lines = game.update(evaluated(even | good | {"codes/confidence": 0.3}, even | fine))
    assert alarms[diagnostics.DISCRIMINATOR_DEAD] == 1.0
    assert lines == [
        "discriminator_dead (part 1, categorical): "
        f"{diagnostics.MEANING[diagnostics.DISCRIMINATOR_DEAD]}; try more steps"
    ]
    alarms, lines = game.update(evaluated(even | good, even | fine | {"prior_match/c2st": 0.8}))
    assert alarms[diagnostics.DISCRIMINATOR_DEAD] == 1.0
    assert lines[0].startswith("discriminator_dead (part 2, continuous): ")


@pytest.mark.parametrize(
    ("items", "unbalanced"),
    [
        (("method.balance=none",), True),
        (("method.balance=none", "phases.generator.optimizer.kind=adamw"), True),
        (("method.balance=none", "method.r1_weight=1"), True),
        (("method.balance=none", "method.distance_weight=0.2"), False),
        (("method.balance=none", "phases.generator.optimizer={kind: sgd, lr: 0.1}"), False),
        ((), False),
        (("method.kind=mmd",), False),
        (("method.kind=autoencoder",), False),
    ],
)
def test_a_game_that_nothing_balances_is_one_of_adam_without_a_distance(
    items: tuple[str, ...], unbalanced: bool
) -> None:
    data = "data={train: builtin://digits/train, validation: builtin://digits/validation}"
    config = load_config([], ["run.name=run", "train.steps=9", data, *items]).config
    assert diagnostics.is_unbalanced(config) is unbalanced
    game = diagnostics.open_diagnostics(config, GaussianPrior(2))
    alarms, lines = game.update({"loss/discriminator": 1.0, "codes/off_prior": 0.0}, 0.01)
    assert bool(alarms.get(diagnostics.UNBALANCED)) is unbalanced
    assert [line.partition(":")[0] for line in lines] == ["unbalanced"] * unbalanced
    assert all(line.endswith("; try method.balance=auto") for line in lines)


def test_a_game_without_balance_is_an_alarm_until_codes_are_seen_to_match() -> None:
    game = GanDiagnostics(unbalanced=True)
    for c2st, raised in ((None, 1.0), (0.71, 1.0), (0.70, 0.0), (None, 0.0), (0.9, 1.0)):
        metrics = {"loss/discriminator": 1.0}
        metrics |= {} if c2st is None else {"prior_match/c2st": c2st}
        assert game.update(metrics)[0][diagnostics.UNBALANCED] == raised


def test_a_part_without_balance_is_an_alarm_where_its_match_can_be_proven() -> None:
    prior = ProductPrior([CategoricalPrior(4), GaussianPrior(2)])
    game = diagnostics.diagnostics_of(prior, "bce", unbalanced=True)
    losses = {f"part_{number}/loss/discriminator": 1.0 for number in (1, 2)}
    alarms, lines = game.update(losses)
    assert alarms[diagnostics.UNBALANCED] == 1.0
    assert [line.partition(":")[0] for line in lines] == ["unbalanced (part 2, continuous)"]
    assert game.update({**losses, "part_2/prior_match/c2st": 0.6})[0][diagnostics.UNBALANCED] == 0.0


def test_one_won_game_of_two_is_an_alarm() -> None:
    prior = ProductPrior([CategoricalPrior(4), GaussianPrior(2)])
    game = diagnostics.diagnostics_of(prior, "bce")
    losses = {"part_1/loss/discriminator": 0.01, "part_2/loss/discriminator": 1.386}
    for _ in range(diagnostics.CONSECUTIVE_POINTS):
        alarms, lines = game.update({"loss/discriminator": 1.396, **losses})
    assert alarms[diagnostics.DISCRIMINATOR_WINS] == 1.0
    assert lines[0].startswith("discriminator_wins (part 1, categorical): ")


def test_the_place_of_codes_in_parts_is_that_of_the_continuous_ones() -> None:
    prior = ProductPrior([CategoricalPrior(4), GaussianPrior(2)])
    both = CodeStatistics(prior, torch.device("cpu"), torch.float64)
    z = prior.sample(512, torch.Generator().manual_seed(1)).double()
    weights = torch.full((512,), 1 / 512, dtype=torch.float64)
    metrics = both.of_means(both.sums([(weights, z)]), 512)
    assert abs(metrics["codes/off_prior"]) < 0.2
    z[:, :4] = 0.25  # classes that say nothing have scores of their own
    assert both.of_means(both.sums([(weights, z)]), 512) == metrics
    z[:, 4] += 3
    assert both.of_means(both.sums([(weights, z)]), 512)["codes/off_prior"] > 1.0
