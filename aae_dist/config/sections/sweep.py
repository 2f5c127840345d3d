"""The section of a sweep: what is searched, how, by which measure."""

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from aae_dist.config.sections import Section
from aae_dist.config.sections.run import NAME

Mode = Literal["min", "max"]


class AutoSearch(Section):
    """grid where every term of the space is a grid, else random."""

    kind: Literal["auto"] = "auto"
    seed: NonNegativeInt = 0
    """Key of all draws: the same seed proposes the same trials."""


class GridSearch(Section):
    """Every combination of the grids, once."""

    kind: Literal["grid"] = "grid"


class RandomSearch(Section):
    """Independent draws, the same for the same seed; grids get equal shares of the trials."""

    kind: Literal["random"] = "random"
    seed: NonNegativeInt = 0
    """Key of all draws: the same seed proposes the same trials."""


class OptunaSearch(Section):
    """Optuna's tree-structured Parzen estimator, which learns from finished trials."""

    kind: Literal["optuna"] = "optuna"
    seed: NonNegativeInt = 0
    """Key of Optuna's draws."""
    startup_trials: NonNegativeInt = 10
    """Trials drawn at random before the estimator proposes."""


class NoScheduler(Section):
    """Every trial runs to its end."""

    kind: Literal["none"] = "none"


class AshaScheduler(Section):
    """Asynchronous successive halving: at each rung only the best go on."""

    kind: Literal["asha"] = "asha"
    unit: Literal["steps", "samples", "epochs"] | None = None
    """Unit of `grace` and `longest`; by default the one that the trials' length is given in."""
    grace: PositiveInt = 1
    """First rung: no trial is stopped before it; evaluations should fall on the rungs."""
    longest: PositiveInt | None = None
    """Length of a trial that is not stopped; by default the trials' train.steps or train.epochs."""
    reduction_factor: Annotated[int, Field(ge=2)] = 3
    """One in so many goes on at a rung; the next rung is so many times further."""


class PbtScheduler(Section):
    """Population based training: bad trials copy a good one's state and change its rates."""

    kind: Literal["pbt"] = "pbt"
    every_steps: PositiveInt
    """Steps between two comparisons; evaluations fall on them."""
    quantile: Annotated[float, Field(gt=0, le=0.5)] = 0.25
    """Share of the trials that copies, and share that is copied from."""
    resample_probability: Annotated[float, Field(ge=0, le=1)] = 0.25
    """Chance that a rate is drawn anew, not multiplied by 0.8 or 1.2."""


Search = Annotated[
    AutoSearch | GridSearch | RandomSearch | OptunaSearch, Field(discriminator="kind")
]
Scheduler = Annotated[NoScheduler | AshaScheduler | PbtScheduler, Field(discriminator="kind")]


class Sweep(Section):
    """Many runs of one configuration, searched and compared (`aae-dist tune`)."""

    name: str = Field(pattern=NAME)
    """Folder of the sweep inside run.storage; the same name resumes. As run.name."""
    space: Annotated[dict[str, Any], Field(min_length=1)]
    """Terms by dotted key: grid, choice, uniform, loguniform, randint; also whole sections."""
    metric: str | Annotated[tuple[str, ...], Field(min_length=2)] | dict[str, float] = (
        "prior_match/c2st"
    )
    """What counts: one metric, weights of several (their sum), or a list (their Pareto front)."""
    mode: Mode | tuple[Mode, ...] = "min"
    """Whether less or more is better; a list gives one for each metric of a list."""
    num_trials: PositiveInt | None = None
    """Trials in all, for random and Optuna; a grid has as many as it has points."""
    search: Search = AutoSearch()
    scheduler: Scheduler = NoScheduler()
    max_concurrent: PositiveInt | None = None
    """Trials at a time; by default as many as the cluster holds."""
    max_failures: NonNegativeInt = 2
    """Times that a trial whose process died is started again."""
    invalid: Literal["refuse", "skip"] = "refuse"
    """What to do with points of the space that are no valid configuration."""


class SweepFile(Section):
    """What a file for `aae-dist tune` holds beside a run's configuration."""

    sweep: Sweep
