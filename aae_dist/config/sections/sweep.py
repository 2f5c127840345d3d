"""Section sweep: search space, search algorithm, scheduler and objective."""

from typing import Annotated, Literal

from pydantic import Field, FiniteFloat

from aae_dist.config.sections import LARGEST, Free, NonNegativeInt, PositiveInt, Section, Seed
from aae_dist.config.sections.run import NAME

Mode = Literal["min", "max"]
MOST_TRIALS = 10_000
"""Trials of a sweep: sweep.json lists them, and each is checked before the first one starts."""


class AutoSearch(Section):
    """grid if every term of the space is a grid, else random."""

    kind: Literal["auto"] = "auto"
    seed: Seed = 0
    """Seed of all draws: the same seed proposes the same trials."""


class GridSearch(Section):
    """Every combination of the grids."""

    kind: Literal["grid"] = "grid"


class RandomSearch(Section):
    """Independent draws, the same for the same seed; grids get equal shares of the trials."""

    kind: Literal["random"] = "random"
    seed: Seed = 0
    """Seed of all draws: the same seed proposes the same trials."""


class OptunaSearch(Section):
    """Optuna's tree-structured Parzen estimator, which learns from finished trials."""

    kind: Literal["optuna"] = "optuna"
    seed: Seed = 0
    """Seed of Optuna's draws."""
    startup_trials: NonNegativeInt = 10
    """Random trials before the estimator proposes any."""


class NoScheduler(Section):
    """No early stopping."""

    kind: Literal["none"] = "none"


class AshaScheduler(Section):
    """Asynchronous successive halving: at each rung only the best trials continue."""

    kind: Literal["asha"] = "asha"
    unit: Literal["steps", "samples", "epochs"] | None = None
    """Unit of `grace` and `longest`; by default that of the trials' length."""
    grace: PositiveInt = 1
    """First rung: no trial is stopped before it. Evaluations should fall on the rungs."""
    longest: PositiveInt | None = None
    """Length of a full trial; by default the trials' train.steps or train.epochs."""
    reduction_factor: Annotated[int, Field(ge=2, le=LARGEST)] = 3
    """At a rung, one trial in this many continues; the next rung is this many times later."""


class PbtScheduler(Section):
    """Population based training: bad trials copy the state of a good one and perturb its rates."""

    kind: Literal["pbt"] = "pbt"
    every_steps: PositiveInt
    """Steps between comparisons of the trials; evaluations must fall on them."""
    quantile: Annotated[float, Field(gt=0, le=0.5)] = 0.25
    """Fraction of the trials that are replaced, and fraction that they copy from."""
    resample_probability: Annotated[float, Field(ge=0, le=1)] = 0.25
    """Probability that a rate is resampled instead of multiplied by 0.8 or 1.2."""


Search = Annotated[
    AutoSearch | GridSearch | RandomSearch | OptunaSearch, Field(discriminator="kind")
]
Scheduler = Annotated[NoScheduler | AshaScheduler | PbtScheduler, Field(discriminator="kind")]


class Sweep(Section):
    """Many runs of one configuration, searched and compared (`aae-dist tune`)."""

    name: str = Field(pattern=NAME)
    """Folder of the sweep inside run.storage; the same name resumes it. Characters as for
    run.name."""
    space: Annotated[Free, Field(min_length=1)]
    """Terms by dotted key: grid, choice, uniform, loguniform, randint; values may be whole
    sections."""
    metric: str | Annotated[tuple[str, ...], Field(min_length=2)] | dict[str, float] = (
        "prior_match/c2st"
    )
    """Objective: one metric, a map of metrics to weights (their sum), or a list (Pareto front)."""
    mode: Mode | tuple[Mode, ...] = "min"
    """Whether low or high values are better; a list gives one mode per metric of a list."""
    constraints: dict[str, FiniteFloat] = {}
    """Metrics of evaluations, each with its highest allowed value, `{prior_match/c2st: 0.65}`:
    trials that keep all of them rank first."""
    num_trials: Annotated[int, Field(gt=0, le=MOST_TRIALS)] | None = None
    """Number of trials, for random search and Optuna; a grid has one per point."""
    search: Search = AutoSearch()
    scheduler: Scheduler = NoScheduler()
    max_concurrent: PositiveInt | None = None
    """Number of trials that run at once; by default as many as the cluster has resources for."""
    max_failures: NonNegativeInt = 2
    """Restarts of a trial whose process died."""
    invalid: Literal["refuse", "skip"] = "refuse"
    """refuse: fail if a point of the space is not a valid configuration. skip: leave it out."""


class SweepFile(Section):
    """Sections of a file for `aae-dist tune` that are not part of a run's configuration."""

    sweep: Sweep
