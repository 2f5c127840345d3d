"""What in a sweep's section contradicts itself or the trials."""

from collections.abc import Iterator, Sequence

from aae_dist.config import AshaScheduler, PbtScheduler, RunConfig, Sweep, metric_names
from aae_dist.sweeps import space

RATES = ("phases.", "method.")
"""What PBT may change in a trial that runs: numbers that no saved tensor's shape depends on."""


def checks(sweep: Sweep, configs: Sequence[RunConfig]) -> Iterator[str]:
    """Yield one line for every contradiction; `configs` are those of (some of) the trials."""
    yield from _search(sweep)
    yield from _measure(sweep, configs)
    yield from _constraints(sweep, configs)
    yield from _samples(sweep, configs)
    match sweep.scheduler:
        case AshaScheduler():
            yield from _asha(sweep, sweep.scheduler, configs)
        case PbtScheduler():
            yield from _pbt(sweep, sweep.scheduler, configs)


def _search(sweep: Sweep) -> Iterator[str]:
    kind, grids = sweep.search.kind, len(space.grid_points(sweep.space))
    drawn = space.has_terms(sweep.space, ("choice", *space.RANGES))
    listed = space.has_terms(sweep.space, ("grid",))
    if kind == "grid" and drawn:
        yield "sweep.search: grid tries grid terms only; write grid for choice, or use random"
    if kind == "optuna" and listed:
        yield "sweep.search: optuna chooses by itself; write choice for grid in sweep.space"
    if kind == "grid" or (kind == "auto" and not drawn):
        if sweep.num_trials not in (None, grids):
            text = f"the grid has {grids} points (got {sweep.num_trials})"
            advice = "leave it out, or use search=random with choice terms"
            yield f"sweep.num_trials: {text}; {advice}"
    elif sweep.num_trials is None:
        yield "sweep.num_trials: is missing; random and Optuna draws have no end of their own"
    elif sweep.num_trials % grids:
        nearest = -(-sweep.num_trials // grids) * grids
        yield (
            f"sweep.num_trials: should be a multiple of the {grids} points of the grids, which get "
            f"equal shares of the draws (got {sweep.num_trials}); try {nearest}"
        )


def _measure(sweep: Sweep, configs: Sequence[RunConfig]) -> Iterator[str]:
    names = [sweep.metric] if isinstance(sweep.metric, str) else list(sweep.metric)
    several = isinstance(sweep.metric, tuple)
    if not names:
        yield "sweep.metric: should name one metric or more"
    methods = {config.method.kind for config in configs}
    # One that some of the trials write is left alone: the others then have no score.
    for problem in filter(None, (metric_names.unknown(name, methods) for name in names)):
        yield f"sweep.metric: {problem}"
    if isinstance(sweep.mode, tuple) and (not several or len(sweep.mode) != len(names)):
        yield f"sweep.mode: should be min or max, or one of them for each of {names}"
    if several and sweep.scheduler.kind != "none":
        advice = f"give sweep.metric weights, for example {{{names[0]}: 1, {names[-1]}: 1}}"
        text = f"{sweep.scheduler.kind} compares by one number, not by a Pareto front"
        yield f"sweep.scheduler: {text}; {advice}"
    if _is_measured(sweep, configs) and any(config.data.validation is None for config in configs):
        yield f"sweep.metric: {', '.join(names)} is measured on data.validation, which is missing"


def _samples(sweep: Sweep, configs: Sequence[RunConfig]) -> Iterator[str]:
    names = [sweep.metric] if isinstance(sweep.metric, str) else list(sweep.metric)
    for key, chosen in (("metric", names), ("constraints", list(sweep.constraints))):
        scores = [name for name in chosen if name in metric_names.OF_SAMPLES]
        if scores and any(config.evaluation.features is None for config in configs):
            yield (
                f"sweep.{key}: {', '.join(scores)} is measured by features only; set for example "
                "evaluation.features=wavelet"
            )


def _constraints(sweep: Sweep, configs: Sequence[RunConfig]) -> Iterator[str]:
    methods = {config.method.kind for config in configs}
    for name in sweep.constraints:
        if problem := metric_names.not_evaluated(name, methods):
            yield f"sweep.constraints: {problem}"
    if sweep.constraints and any(config.data.validation is None for config in configs):
        shown = ", ".join(sweep.constraints)
        yield f"sweep.constraints: {shown} is measured on data.validation, which is missing"


def _is_measured(sweep: Sweep, configs: Sequence[RunConfig]) -> bool:
    """Return whether only an evaluation gives the score; losses come with every log point."""
    names = [sweep.metric] if isinstance(sweep.metric, str) else list(sweep.metric)
    of_evaluations = {n for c in configs for n in metric_names.evaluated(c.method.kind)}
    of_evaluations.update(metric_names.OPTIONAL)
    return bool(sweep.constraints) or not of_evaluations.isdisjoint(names)


def _asha(sweep: Sweep, asha: AshaScheduler, configs: Sequence[RunConfig]) -> Iterator[str]:
    if _is_measured(sweep, configs) and any(c.train.evaluate_every_steps is None for c in configs):
        text = "asha judges trials on the way, so train.evaluate_every_steps must be set"
        yield f"sweep.scheduler: {text}; its rungs should be multiples of it"
    if not configs:
        return
    longest = asha_longest(asha, configs)
    if longest is None:
        text = f"the length of the trials is not given in {asha_unit(asha, configs)}"
        yield f"sweep.scheduler.longest: is missing; {text}"
    elif asha.grace >= longest:
        yield f"sweep.scheduler.grace: should be less than {longest}, the longest trial"


def asha_unit(asha: AshaScheduler, configs: Sequence[RunConfig]) -> str:
    """Return the unit of the rungs."""
    by_steps = all(config.train.steps is not None for config in configs)
    return asha.unit or ("steps" if by_steps else "epochs")


UNIT_KEYS = {"steps": "step", "samples": "samples_seen", "epochs": "epoch"}
"""Key of a record that counts a unit; Tune's training_iteration restarts at 0 after a crash."""


def asha_key(asha: AshaScheduler, configs: Sequence[RunConfig]) -> str:
    """Return the key of a record that counts the unit of the rungs."""
    return UNIT_KEYS[asha_unit(asha, configs)]


def asha_longest(asha: AshaScheduler, configs: Sequence[RunConfig]) -> int | None:
    """Return the length of the longest trial in the unit of the rungs, None when it is unknown."""
    if asha.longest is not None:
        return asha.longest
    unit = asha_unit(asha, configs)
    lengths = [c.train.epochs if unit == "epochs" else c.train.steps for c in configs]
    known = [length for length in lengths if length is not None]
    if len(known) < len(configs):
        return None
    if unit == "samples":
        known = [n * c.train.global_batch_size for n, c in zip(known, configs, strict=True)]
    return max(known)


def _pbt(sweep: Sweep, pbt: PbtScheduler, configs: Sequence[RunConfig]) -> Iterator[str]:
    if any(config.launch.kind == "local" for config in configs):
        yield "sweep.scheduler: pbt needs Ray Tune; leave out launch.kind=local, or use asha"
    if any(config.launch.most_workers > 1 for config in configs):
        text = "sweep.scheduler: pbt moves state between trials of one worker only"
        yield f"{text}; set launch.workers=1, or use asha"
    if sweep.max_concurrent is not None:
        yield "sweep.max_concurrent: with pbt all trials take turns; leave it out"
    if sweep.search.kind == "optuna":
        yield "sweep.scheduler: pbt changes the parameters itself; use search=random"
    for key in sweep.space:
        if key != "run.seed" and not key.startswith(RATES):
            yield (
                f"sweep.space.{key}: with pbt a trial takes over another one's networks and data "
                "position, so only rates may differ: numbers under phases or method, and run.seed"
            )
    if not mutations(sweep):
        example = "phases.generator.optimizer.lr: {loguniform: [1e-4, 1e-2]}"
        yield f"sweep.space: pbt needs a rate to change, for example {example}"
    if any(_off_beat(sweep, pbt.every_steps, config) for config in configs):
        yield (
            "sweep.scheduler.every_steps: should be a multiple of train.log_every_steps, and of "
            f"train.evaluate_every_steps if sweep.metric needs evaluations (got {pbt.every_steps})"
        )


def _off_beat(sweep: Sweep, every: int, config: RunConfig) -> bool:
    beats = [config.train.log_every_steps]
    if _is_measured(sweep, [config]):
        beats.append(config.train.evaluate_every_steps or every + 1)
    return any(every % beat > 0 for beat in beats)


def mutations(sweep: Sweep) -> dict[str, dict[str, list[float]]]:
    """Return the terms that PBT may change: plain terms of numbers under phases or method."""
    return {
        key: node
        for key, node in sweep.space.items()
        if key.startswith(RATES)
        and (name := space.term_of(node))
        and all(isinstance(v, int | float) and not isinstance(v, bool) for v in node[name])
    }
