"""The `sweep` section of several layers: options by kind, and a space of dotted keys."""

from typing import Any

from pydantic import ValidationError

from aae_dist.config.loading import messages, schema
from aae_dist.config.loading.load import SWEEP
from aae_dist.config.loading.merge import Merge
from aae_dist.config.loading.tree import Node, Tree, Value, from_plain, join, plain, short_json
from aae_dist.config.run_config import RunConfig
from aae_dist.config.sections.sweep import Sweep, SweepFile
from aae_dist.sweeps import space

SHORT = ("search", "scheduler")
"""Sections that may be given by their kind alone: `scheduler: asha`."""
FIXED = ("run.name", "run.storage", "run.resume", "launch.kind", "wandb", SWEEP)
"""What the sweep itself decides, or what is alike for all of its trials."""


def read_sweep_section(layers: list[Tree]) -> tuple[Sweep | None, list[str]]:
    """Take the `sweep` section out of the layers; return it checked, or its problems."""
    sections = [layer.pop(SWEEP) for layer in layers if SWEEP in layer]
    trees = [section for section in sections if isinstance(section, dict)]
    if not sections:
        return None, [
            "sweep: there is no such section, which says what is searched, for example "
            "sweep: {name: sizes, space: {model.latent_dim: {grid: [2, 8]}}}; see docs/sweeps.md"
        ]
    if len(trees) < len(sections):
        return None, ["sweep: should be a map of keys such as name, space, metric, num_trials"]
    spaces = [tree.pop("space") for tree in trees if "space" in tree]
    terms = _merged_space(spaces)
    for tree in trees:
        for key in SHORT:
            node = tree.get(key)
            if isinstance(node, Value) and isinstance(node.value, str):
                tree[key] = {"kind": node}
    merged = Merge(SweepFile).run([{SWEEP: tree} for tree in trees])
    section = merged[SWEEP]
    assert isinstance(section, dict)
    section["space"] = from_plain(terms, "sweep.space")
    try:
        sweep = SweepFile.model_validate_json(_json(merged)).sweep
    except ValidationError as error:
        return None, messages.lines(error, SweepFile, merged)
    return sweep, _space_problems(terms)


def _json(tree: Tree) -> str:
    import json

    return json.dumps(plain(tree))


def _merged_space(spaces: list[Node]) -> dict[str, Any]:
    """Return dotted keys and what they are set to; a later layer's null takes a key out."""
    found: dict[str, Any] = {}
    for node in spaces:
        found |= _flat(node, "")
    return {key: value for key, value in found.items() if value is not None}


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
        found.append(
            "sweep.space: holds nothing to choose, for example model.latent_dim: {grid: [2, 8]}"
        )
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
