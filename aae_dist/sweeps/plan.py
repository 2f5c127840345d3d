"""A sweep before it starts: every trial that is known beforehand, checked as a run is."""

import hashlib
import json
import random
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from aae_dist.config import RunConfig, load, messages, metric_names, schema
from aae_dist.config.merge import Merge
from aae_dist.config.schema import Node, Tree, Value, from_plain, join, plain, short_json
from aae_dist.config.sections.sweep import MOST_TRIALS, GridSearch, Sweep, SweepFile
from aae_dist.sweeps import checks, folder, space

SHORT = ("search", "scheduler")  # sections that may be given by their kind alone: `scheduler: asha`
FIXED = ("run.name", "run.title", "run.storage", "run.resume", "launch.kind", "wandb", load.SWEEP)
"""What the sweep itself decides, or what is the same for all of its trials."""
SHOWN = 20  # problems of trials that one error lists; further ones are counted
PROBES = 64  # draws from a space whose trials are not known beforehand that are checked
TRIES = 200
"""Consecutive draws that repeat earlier trials after which a space is taken to be used up."""
TRIALS = "trials"


@dataclass(frozen=True)
class TrialPlan:
    """One trial: a run of its own."""

    id: str
    number: int
    parameters: dict[str, Any]  # by dotted key of the space; a structural value is a map
    config: RunConfig
    is_added: bool = False
    """Whether it is no point of the search but another seed of one, added by `tune --more`."""

    @property
    def label(self) -> str:
        return folder.trial_label(self.number)


@dataclass(frozen=True)
class SweepPlan:
    """A sweep of `aae-dist tune`, checked."""

    sweep: Sweep
    uri: str  # the sweep's folder
    storage: str  # `run.storage` as configured, in which the folder lies
    trials: tuple[TrialPlan, ...]
    """All trials of a grid or of random draws; none for Optuna, which proposes them later."""
    notes: tuple[str, ...]
    configs: tuple[RunConfig, ...]  # runs of the trials, or of probes where Optuna proposes them
    layers: tuple[Tree, ...]
    num_added: int = 0  # trials that `tune --more` has added to those of the search

    @property
    def num_trials(self) -> int:
        return (len(self.trials) or self.sweep.num_trials or 0) + self.num_added

    def trial(self, parameters: dict[str, Any], number: int, is_added: bool = False) -> TrialPlan:
        """Return the trial of these parameters; ConfigError when they make no valid run."""
        found = _checked(self.layers, self.uri, self.sweep, parameters, number)
        if isinstance(found, TrialPlan):
            return replace(found, is_added=is_added)
        raise load.config_error(f"trial {describe(parameters)}", found)

    def winner(self, trial: TrialPlan) -> RunConfig:
        name = f"{self.sweep.name[:95]}-best"
        run = trial.config.run.model_copy(
            update={"name": name, "title": None, "storage": self.storage}
        )
        return trial.config.model_copy(update={"run": run})


class RandomDraw:
    """Draws of one trial, a function of the seed and the trial's number."""

    def __init__(self, *key: int) -> None:
        self._random = random.Random(" ".join(map(str, key)))

    def index(self, name: str, count: int) -> int:
        return self._random.randrange(count)

    def real(self, name: str, low: float, high: float, log: bool) -> float:
        if not log:
            return self._random.uniform(low, high)
        ratio: float = (high / low) ** self._random.random()
        return min(high, low * ratio)

    def whole(self, name: str, low: int, high: int) -> int:
        return self._random.randint(low, high)


def load_sweep(files: Sequence[load.ConfigFile], overrides: Sequence[str] = ()) -> SweepPlan:
    """Return the sweep that files and overrides describe, all its known trials checked.

    ConfigError names every problem at once, those of trials with the trials they are in.
    """
    layers, title = load.read_layers(files, overrides)
    sweep, problems = read_sweep_section(layers)
    if sweep is None or problems:
        raise load.config_error(title, problems + (_base_problems(layers) if sweep is None else []))
    merge = Merge(RunConfig)
    base = merge.run(deepcopy(layers))
    if unexpanded := load.make_absolute(base):
        raise load.config_error(title, unexpanded)
    storage = _storage(base)
    uri = f"{storage}/{sweep.name}"
    points, notes = proposals(sweep)
    found = [_checked(layers, uri, sweep, point, n) for n, point in enumerate(points)]
    trials = [trial for trial in found if isinstance(trial, TrialPlan)]
    wrong = {n: trial for n, trial in enumerate(found) if isinstance(trial, list)}
    problems = list(checks.checks(sweep, [trial.config for trial in trials]))
    if wrong and (sweep.invalid == "refuse" or not trials):
        problems += counted_problems(wrong, points)
    if problems:
        raise load.config_error(title, problems)
    notes += [f"trial {describe(points[n])} is skipped: {'; '.join(p)}" for n, p in wrong.items()]
    known = () if sweep.search.kind == "optuna" else tuple(trials)
    configs, notes = tuple(trial.config for trial in trials), [*merge.notes, *notes]
    return SweepPlan(sweep, uri, storage, known, tuple(notes), configs, tuple(layers))


def proposals(sweep: Sweep) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the parameters of all trials, or probes of what Optuna may propose, and notes."""
    grid, is_optuna = space.grid_points(sweep.space), sweep.search.kind == "optuna"
    draws = space.has_terms(sweep.space, ("choice", *space.RANGES))
    if isinstance(sweep.search, GridSearch) or (sweep.search.kind == "auto" and not draws):
        return list(grid), []
    count = PROBES if is_optuna else sweep.num_trials or 0
    seed = sweep.search.seed
    found: dict[str, dict[str, Any]] = {}
    for number in range(count):
        point = grid[number % len(grid)]
        for attempt in range(TRIES):
            draw = RandomDraw(seed, number, attempt)
            drawn = {key: space.drawn(node, draw, key) for key, node in point.items()}
            if trial_id(drawn) not in found:
                found[trial_id(drawn)] = drawn
                break
    if len(found) == count or is_optuna:
        return list(found.values()), []
    note = f"the space has {len(found)} different trials, fewer than sweep.num_trials={count}"
    return list(found.values()), [note]


def trial_id(parameters: dict[str, Any]) -> str:
    """Return the name of a trial's folder: the same parameters, the same folder."""
    text = json.dumps(parameters, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _checked(
    layers: Sequence[Tree], uri: str, sweep: Sweep, parameters: dict[str, Any], number: int
) -> TrialPlan | list[str]:
    name = trial_id(parameters)
    fixed = {"run.name": name, "run.storage": f"{uri}/{TRIALS}", "run.resume": "auto"}
    fixed["run.title"] = f"trial {folder.trial_label(number)} of {sweep.name}"[:100]
    place: Tree = layer_of(fixed)
    place["wandb"] = {"group": Value(_group(layers) or sweep.name, "sweep.name")}
    tree = Merge(RunConfig).run([*deepcopy(list(layers)), layer_of(parameters), place])
    problems = [*load.make_absolute(tree), *metric_names.best_metric_problems(tree)]
    config = load.problems_of(tree)
    if not isinstance(config, RunConfig):
        return [*problems, *config]
    if problems:
        return problems
    return TrialPlan(name, number, parameters, config)


def _group(layers: Sequence[Tree]) -> Any:
    parts = [layer["wandb"] for layer in layers if isinstance(layer.get("wandb"), dict)]
    said = [part["group"] for part in parts if isinstance(part, dict) and "group" in part]
    return said[-1].value if said and isinstance(said[-1], Value) else None


def _storage(base: Tree) -> str:
    run = base.get("run")
    leaf = run.get("storage") if isinstance(run, dict) else None
    return str(leaf.value).rstrip("/") if isinstance(leaf, Value) else ""


def _base_problems(layers: Sequence[Tree]) -> list[str]:
    """Return problems of the run's part of the files that no sweep can cure."""
    placed = [*deepcopy(list(layers)), layer_of({"run.name": "trial"})]
    found = load.problems_of(Merge(RunConfig).run(placed))
    return found if isinstance(found, list) else []


def counted_problems(wrong: dict[int, list[str]], points: Sequence[dict[str, Any]]) -> list[str]:
    """Return each problem of the trials once, with how many trials have it."""
    where: dict[str, list[int]] = {}
    for number, problems in wrong.items():
        for problem in problems:
            where.setdefault(problem, []).append(number)
    lines, total = [], len(points)
    for problem, numbers in where.items():
        trials = f"{len(numbers)} of {total} trials, first: {describe(points[numbers[0]])}"
        lines.append(problem if len(numbers) == total else f"{problem} [{trials}]")
    more = [f"... and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    return lines[:SHOWN] + more


def describe(parameters: dict[str, Any]) -> str:
    """Return parameters in one line, by the shortest ends of their keys that differ."""
    shown = []
    for key, value in parameters.items():
        parts = key.split(".")
        ends = (".".join(parts[-n:]) for n in range(1, len(parts) + 1))
        name = next(e for e in ends if sum(f".{k}".endswith(f".{e}") for k in parameters) == 1)
        shown.append(f"{name}={show(value)}")
    return ", ".join(shown)


def show(value: Any) -> str:
    """Return a value as a person would say it: a structural one by its kind and its numbers."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if not isinstance(value, dict):
        return str(value)
    rest = [f"{key} {show(v)}" for key, v in value.items() if key != "kind"]
    inner = f"({', '.join(rest)})" if rest else ""
    return f"{value.get('kind', '')} {inner}".strip()


# The `sweep` section of several layers: options by kind, and a space of dotted keys.


def read_sweep_section(layers: list[Tree]) -> tuple[Sweep | None, list[str]]:
    """Take the `sweep` section out of the layers; return it checked, or its problems."""
    sections = [layer.pop(load.SWEEP) for layer in layers if load.SWEEP in layer]
    trees = [section for section in sections if isinstance(section, dict)]
    if not sections:
        return None, [
            "sweep: there is no such section, which says what is searched, for example "
            "sweep: {name: sizes, space: {model.latent_dim: {grid: [2, 8]}}}; see docs/sweeps.md"
        ]
    if len(trees) < len(sections):
        return None, ["sweep: should be a map of keys such as name, space, metric, num_trials"]
    terms: dict[str, Any] = {}
    for tree in trees:
        terms |= _flat(tree.pop("space"), "") if "space" in tree else {}
        for key in SHORT:
            node = tree.get(key)
            if isinstance(node, Value) and isinstance(node.value, str):
                tree[key] = {"kind": node}
    # A later layer's null takes a key out.
    terms = {key: value for key, value in terms.items() if value is not None}
    merged = Merge(SweepFile).run([{load.SWEEP: tree} for tree in trees])
    section = merged[load.SWEEP]
    assert isinstance(section, dict)
    section["space"] = from_plain(terms, "sweep.space")
    try:
        sweep = SweepFile.model_validate_json(json.dumps(plain(merged))).sweep
    except ValidationError as error:
        return None, messages.lines(error, SweepFile, merged)
    problems = _space_problems(terms)
    if not problems and (points := space.num_points(sweep.space)) > MOST_TRIALS:
        problems = [
            f"sweep.space: its grids have {points:,} points, and a sweep at most {MOST_TRIALS:,} "
            "trials; use choice terms, of which sweep.num_trials are drawn"
        ]
    return sweep, problems


def _flat(node: Node, path: str) -> dict[str, Any]:
    """Return terms and constants by dotted key: an override arrives as nested maps."""
    value = plain(node)
    if isinstance(node, Value) or space.term_of(value) or set(value) & set(space.TERMS):
        return {path: value}
    if space.misspelt_term(value) and space.OPEN not in path.split("."):
        return {path: value}
    return {k: v for key, child in node.items() for k, v in _flat(child, join(path, key)).items()}


def _space_problems(terms: dict[str, Any]) -> list[str]:
    found = []
    for key, node in terms.items():
        path = f"sweep.space.{key}"
        found += list(space.problems(node, path))
        if isinstance(node, list) and not schema.may_be_list((RunConfig,), key):
            advice = f"write {{grid: {short_json(node)}}} to try each"
            found.append(f"{path}: should be a term or one value, got a list; {advice}")
        if fixed := next((f for f in FIXED if key == f or key.startswith(f + ".")), None):
            found.append(f"{path}: {fixed} is the same for all trials; take it out of the space")
        if above := next((k for k in terms if key.startswith(k + ".")), None):
            found.append(f"{path}: {above} is in the space, too, and would set it; keep one")
    if not found and not any(space.has_terms(node) for node in terms.values()):
        example = "for example model.latent_dim: {grid: [2, 8]}"
        found.append(f"sweep.space: holds nothing to choose, {example}")
    return found


def layer_of(parameters: dict[str, Any]) -> Tree:
    """Return parameters as a layer of configuration; messages name the key of the space."""
    layer: Tree = {}
    for path, value in parameters.items():
        *parents, last = path.split(".")
        node = layer
        for key in parents:
            child = node.setdefault(key, {})
            assert isinstance(child, dict)  # no key of a space lies under another
            node = child
        node[last] = from_plain(value, f"sweep.space {path}")
    return layer
