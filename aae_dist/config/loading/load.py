"""Read a run's configuration: YAML files in order, then overrides; later wins."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from pydantic import ValidationError

from aae_dist.config import paths
from aae_dist.config.loading import messages
from aae_dist.config.loading.merge import Merge
from aae_dist.config.loading.schema import RENAMED
from aae_dist.config.loading.tree import Leaf, Node, Tree, from_plain, leaves, plain
from aae_dist.config.loading.yaml import YamlProblem, dump, parse, read_overrides
from aae_dist.config.metric_names import best_metric_problems
from aae_dist.config.redaction import redacted
from aae_dist.config.run_config import RunConfig, cross_checks
from aae_dist.config.sections.run import Run
from aae_dist.errors import ConfigError

SWEEP = "sweep"
"""The one section that is not part of a run's configuration."""


@dataclass(frozen=True)
class StoredFile:
    """A configuration file that was read from a bucket or a web server."""

    uri: str
    data: bytes

    def __str__(self) -> str:
        """Return the address, by which errors name the file."""
        return self.uri

    def read_bytes(self) -> bytes:
        """Return what the file holds."""
        return self.data


ConfigFile: TypeAlias = Path | StoredFile


@dataclass(frozen=True)
class Loaded:
    """A configuration, and what merging its layers dropped."""

    config: RunConfig
    notes: tuple[str, ...]
    """One line for each value that a later layer made meaningless."""


def load_config(files: Sequence[ConfigFile], overrides: Sequence[str] = ()) -> Loaded:
    """Return the configuration that files and overrides describe.

    Local paths in it are absolute, counted from the current directory (see `config.paths`).

    Args:
        files: YAML files; later ones win, maps merge, lists replace.
        overrides: `dotted.key=value` texts, values in YAML; together they are the last layer.

    Raises:
        ConfigError: names every problem at once, each with its path, its source and what to do.
    """
    unread: list[str] = []
    layers, title = read_layers(files, overrides, unread)
    sections = [layer.pop(SWEEP) for layer in layers if SWEEP in layer]
    merge = Merge(RunConfig)
    tree = merge.run(layers)
    make_absolute(tree)
    more = [*_of_a_sweep(sections), *best_metric_problems(tree)]
    return Loaded(validate(tree, title, more, unread), tuple(merge.notes))


def read_layers(
    files: Sequence[ConfigFile], overrides: Sequence[str], unread: list[str] | None = None
) -> tuple[list[Tree], str]:
    """Return the layers that files and overrides are, and a name for all of them together.

    Overrides that cannot be read are put into `unread`, if given, to be told with all else.

    Raises:
        ConfigError: names everything that cannot be read.
    """
    title = " + ".join([*map(str, files), *(["overrides"] if overrides else [])])
    layers: list[Tree] = []
    problems: list[str] = []
    for file in files:
        try:
            layers.append(_read_file(file))
        except YamlProblem as problem:
            problems.append(f"{file}:{problem.line}: {problem.reason}")
        except ConfigError as error:
            problems.append(str(error))
    layer, wrong = read_overrides(overrides)
    if problems or (wrong and unread is None):
        # Values of a file that could not be read would show up again as missing.
        raise config_error(title, problems + wrong)
    if unread is not None:
        unread += wrong
    return [*layers, layer], title or "configuration"


def _of_a_sweep(sections: list[Node]) -> list[str]:
    if not sections:
        return []
    _, first = next(leaves(sections[0], SWEEP), ("", Leaf(None, "empty")))
    return [
        f"sweep: this section makes many runs, which train cannot ({first.source}); give the same "
        "files to aae-dist tune, or leave the section out to train one run"
    ]


def config_from_tree(tree: Mapping[str, Any]) -> RunConfig:
    """Return the configuration in a tree of plain maps, lists and scalars.

    `config_from_tree(config.model_dump(mode="json")) == config`; paths stay as they are.

    Raises:
        ConfigError: as for `load_config`.
    """
    layer = {key: from_plain(value, "given") for key, value in tree.items()}
    return validate(Merge(RunConfig).run([layer]), "configuration")


def config_from_stored(tree: Mapping[str, Any]) -> RunConfig:
    """Return the configuration that a run has stored, perhaps under the former names of keys.

    Raises:
        ConfigError: as for `load_config`.
    """
    tree = {name: dict(part) if isinstance(part, Mapping) else part for name, part in tree.items()}
    for old, new in RENAMED.items():
        (section, old_key), new_key = old.split("."), new.rpartition(".")[2]
        if isinstance(tree.get(section), dict) and old_key in tree[section]:
            tree[section].setdefault(new_key, tree[section].pop(old_key))
    return config_from_tree(tree)


def dump_yaml(config: RunConfig, without_secrets: bool = False) -> str:
    """Return the resolved configuration as YAML, from which `load_config` makes an equal one.

    Credentials in addresses may be left out: then for a reader, not for a program.
    """
    tree = config.model_dump(mode="json")
    return dump(redacted(tree) if without_secrets else tree)


def _read_file(file: ConfigFile) -> Tree:
    try:
        text = file.read_bytes().decode()
    except FileNotFoundError:
        raise ConfigError(f"{file}: no such file; an override is written key=value") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read ({error.strerror})") from None
    tree = parse(text, str(file))
    if isinstance(tree, Leaf):
        raise ConfigError(
            f"{tree.source}: holds {_kind(tree.value)}, not a map such as run: {{...}}"
        )
    return tree


def _kind(value: object) -> str:
    return "a list" if isinstance(value, list) else "a single value"


def validate(
    tree: Tree, title: str, more: Sequence[str] = (), unread: Sequence[str] = ()
) -> RunConfig:
    """Return the checked configuration of a merged tree.

    Raises:
        ConfigError: with `more` problems, and overrides that are `unread`: what they may have set
            counts as neither missing nor contradictory.
    """
    found = problems_of(tree, is_whole=not unread)
    if isinstance(found, RunConfig) and not more and not unread:
        return found
    raise config_error(title, [*unread, *more, *(found if isinstance(found, list) else [])])


def problems_of(tree: Tree, is_whole: bool = True) -> RunConfig | list[str]:
    """Return the checked configuration of a merged tree, or one line for each problem.

    Unless it `is_whole`, nothing is said of what may be missing only.
    """
    valid: dict[str, Any] = {}
    try:
        # As JSON: strict mode then still lets a list fill a tuple and text fill a path.
        return RunConfig.model_validate_json(json.dumps(plain(tree)), context=valid)
    except ValidationError as error:
        # Where all sections are valid, the error itself has the contradictions between them.
        some_fail = any(one["type"] != "sections" for one in error.errors(include_url=False))
        contradictions = list(cross_checks(valid)) if some_fail and is_whole else []
        return messages.lines(error, RunConfig, tree, contradictions, is_whole)


def config_error(title: str, problems: list[str]) -> ConfigError:
    """Return one error that tells all problems."""
    if len(problems) == 1:
        return ConfigError(f"{title}: {problems[0]}" if title not in problems[0] else problems[0])
    return ConfigError(f"{title}: {len(problems)} errors\n  " + "\n  ".join(problems))


def make_absolute(tree: Tree) -> None:
    """Make local paths of the merged tree absolute, the default of run.storage among them."""
    for section, key in paths.PATHS:
        part = tree.get(section)
        default = Leaf(Run.model_fields["storage"].default, "default") if key == "storage" else None
        leaf = part.get(key, default) if isinstance(part, dict) else None
        if isinstance(part, dict) and isinstance(leaf, Leaf):
            part[key] = Leaf(paths.absolute(leaf.value), leaf.source)
