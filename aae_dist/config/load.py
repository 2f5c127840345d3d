"""From YAML files and overrides to a checked configuration; later layers win."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from pydantic import ValidationError

from aae_dist.config import messages, metric_names, schema, yaml
from aae_dist.config.merge import Merge
from aae_dist.config.run_config import RunConfig, cross_checks
from aae_dist.config.schema import Node, Tree, Value, from_plain
from aae_dist.config.sections import Section
from aae_dist.config.sections.run import Data, Device, Evaluation, Launch, Run
from aae_dist.errors import ConfigError
from aae_dist.utils.text import redacted, unexpanded

PATHS = (
    *(("run", "storage"), ("run", "init_from"), ("data", "train"), ("data", "validation")),
    ("data", "labelled"),
    *(("prior", "uri"), ("prior", "vectors")),
    *(("evaluation", "features", "run"), ("evaluation", "features", "export")),
)
"""Keys whose value is a local path or a URL, or a list of them."""
_ROOTED = (
    ("data", "cache", "dir"),
    *(("model", name, "weights") for name in ("encoder", "decoder", "discriminator")),
)
"""Keys whose value is a path on every node: `~` is that node's home."""

# `pipe:cat a.tar` and `s3:/bucket` are no files here: the storage says what is wrong with them.
_MISTYPED = re.compile(
    r"(pipe|cmd|exec|data|file|s3a?|gs|gcs|az|abfss?|wasbs?|https?|ftp|hdfs|hf):", re.IGNORECASE
)


def inside_ray_job() -> bool:
    """Return whether this process is the entrypoint of a submitted Ray job, or its child."""
    # Its current directory is a copy unpacked by Ray, so relative paths have no meaning.
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def absolute_storage(path: str) -> str:
    """Return a local path absolute, `~` expanded, and an address in its one spelling.

    Relative paths in a Ray job stay as they are.
    """
    if "://" in path or not path:
        return _normal_address(path)
    if _MISTYPED.match(path):
        return path
    expanded = os.path.expanduser(path)
    if inside_ray_job() and not os.path.isabs(expanded):
        return path
    return os.path.abspath(expanded)


def _normal_address(uri: str) -> str:
    """Return s3://b/runs for s3://b/runs/ and S3://b/runs."""
    scheme, _, rest = uri.partition("://")
    if scheme.lower() in ("s3", "gs", "az", "file") and rest.strip("/"):
        return f"{scheme.lower()}://{rest.rstrip('/')}"
    return uri


def absolute(value: Any) -> Any:
    """Return a path, or each path of a list, absolute; anything else unchanged."""
    if isinstance(value, list):
        return [absolute(item) for item in value]
    return absolute_storage(value) if isinstance(value, str) else value


SWEEP = "sweep"
"""Name of the section that belongs to sweeps, not to a run's configuration."""


@dataclass(frozen=True)
class StoredFile:
    """A configuration file read from a bucket or a web server."""

    uri: str
    data: bytes

    def __str__(self) -> str:
        return self.uri


@dataclass(frozen=True)
class GivenTree:
    """A configuration that is no file: a dictionary of Python."""

    title: str
    """For messages; empty for what the user has not given."""
    tree: Node

    def __str__(self) -> str:
        return self.title


ConfigFile: TypeAlias = Path | StoredFile | GivenTree


@dataclass(frozen=True)
class Loaded:
    """A configuration, with notes on the values that merging its layers dropped."""

    config: RunConfig
    notes: tuple[str, ...]
    """One line per value that a later layer made obsolete."""


def load_config(files: Sequence[ConfigFile], overrides: Sequence[str] = ()) -> Loaded:
    """Load the configuration described by files and overrides.

    Local paths are made absolute, relative to the current directory.

    Args:
        files: YAML files; later ones win, maps are merged, lists are replaced.
        overrides: `dotted.key=value`, with values in YAML; together they form the last layer.

    Raises:
        ConfigError: lists all problems, each with its path, its source and a fix.
    """
    unread: list[str] = []
    layers, title = read_layers(files, overrides, unread)
    sections = [layer.pop(SWEEP) for layer in layers if SWEEP in layer]
    merge = Merge(RunConfig)
    tree = merge.run(layers)
    more = [*_of_a_sweep(sections), *make_absolute(tree), *metric_names.best_metric_problems(tree)]
    return Loaded(validate(tree, title, more, unread), tuple(merge.notes))


def read_layers(
    files: Sequence[ConfigFile], overrides: Sequence[str], unread: list[str] | None = None
) -> tuple[list[Tree], str]:
    """Return the layers of files and overrides, and a title for all of them in messages.

    Overrides that cannot be parsed are appended to `unread`, if given, to be reported together with
    all other problems; else a ConfigError lists them too.
    """
    titles = [*map(str, files), *(["overrides"] if overrides else [])]
    title = " + ".join(filter(None, titles))
    layers: list[Tree] = []
    problems: list[str] = []
    for file in files:
        try:
            layers.append(_read_file(file))
        except yaml.YamlProblem as problem:
            problems.append(f"{file}:{problem.line}: {problem.reason}")
        except ConfigError as error:
            problems.append(str(error))
    layer, wrong = yaml.read_overrides(overrides)
    if problems or (wrong and unread is None):
        # Values of an unreadable file would be reported again as missing.
        raise config_error(title, problems + wrong)
    if unread is not None:
        unread += wrong
    return [*layers, layer], title or "configuration"


def _of_a_sweep(sections: list[Node]) -> list[str]:
    if not sections:
        return []
    _, first = next(schema.leaves(sections[0], SWEEP), ("", Value(None, "empty")))
    return [
        f"sweep: this section describes many runs, but train starts one only ({first.source}); "
        "pass the same files to aae-dist tune, or remove the section to train one run"
    ]


def config_from_tree(tree: Mapping[str, Any]) -> RunConfig:
    """Return the configuration of a tree of plain maps, lists and scalars.

    `config_from_tree(config.model_dump(mode="json")) == config`; paths are not changed.
    """
    layer = {key: from_plain(value, "given") for key, value in tree.items()}
    return validate(Merge(RunConfig).run([layer]), "configuration")


def config_from_stored(tree: Mapping[str, Any]) -> RunConfig:
    """Return a configuration stored by a run, with keys of other names or defaults translated."""
    tree = {name: dict(part) if isinstance(part, Mapping) else part for name, part in tree.items()}
    for old, new in schema.RENAMED.items():
        (section, old_key), new_key = old.split("."), new.rpartition(".")[2]
        if isinstance(tree.get(section), dict) and old_key in tree[section]:
            tree[section].setdefault(new_key, tree[section].pop(old_key))
    for section, added in schema.ADDED.items():
        if isinstance(tree.get(section), dict):
            tree[section] = {**added.get(tree[section].get("kind"), {}), **tree[section]}
    return config_from_tree(tree)


def dump_yaml(config: RunConfig, without_secrets: bool = False) -> str:
    """Return the resolved configuration as YAML; `load_config` reads it as an equal one.

    `without_secrets` removes credentials from addresses, for text that is only shown.
    """
    tree = config.model_dump(mode="json")
    return yaml.dump(redacted(tree) if without_secrets else tree)


def _content(file: Path | StoredFile) -> bytes:
    """Return the bytes of a file; ConfigError for more than a configuration may have."""
    if isinstance(file, StoredFile):
        return file.data
    with file.open("rb") as opened:  # may be /dev/zero, or a pipe
        data = opened.read(yaml.LARGEST_BYTES + 1)
    if len(data) > yaml.LARGEST_BYTES:
        raise ConfigError(f"{file}: larger than {yaml.LARGEST_BYTES:,} bytes, no configuration")
    return data


def _read_file(file: ConfigFile) -> Tree:
    if isinstance(file, GivenTree):
        return deepcopy(file.tree) if isinstance(file.tree, dict) else {}
    try:
        text = _content(file).decode()
    except FileNotFoundError:
        raise ConfigError(f"{file}: no such file; an override is written key=value") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read ({error.strerror})") from None
    except ValueError as error:  # a name with a NUL
        raise ConfigError(f"{file}: cannot be read ({error})") from None
    tree = yaml.parse(text, str(file))
    if isinstance(tree, Value):
        kind = "a list" if isinstance(tree.value, list) else "a single value"
        raise ConfigError(f"{tree.source}: contains {kind}, not a map such as run: {{...}}")
    return tree


def validate(
    tree: Tree, title: str, more: Sequence[str] = (), unread: Sequence[str] = ()
) -> RunConfig:
    """Return the checked configuration of a merged tree; ConfigError lists all problems.

    `more` and `unread` are further problems. If there are `unread` overrides, missing keys and
    contradictions are not reported: they may have set them.
    """
    found = problems_of(tree, is_complete=not unread)
    if isinstance(found, RunConfig):
        more = [*more, *_size_problems(found)]
        if not more and not unread:
            return found
    raise config_error(title, [*unread, *more, *(found if isinstance(found, list) else [])])


def _size_problems(config: RunConfig) -> list[str]:
    """Return a line for a configuration that its own file, config.yaml, could not hold."""
    tree = config.model_dump(mode="json")
    text = json.dumps(tree)
    if "\\u0000" in text:
        for path, leaf in schema.leaves(from_plain(tree, ""), ""):
            texts = leaf.value if isinstance(leaf.value, list) else [leaf.value]
            if any(isinstance(item, str) and "\0" in item for item in texts):
                return [f"{path}: holds a NUL, as no name or address can; leave it out"]
    # YAML's quotes at most double it.
    if len(text) < min(yaml.LARGEST_NODES, yaml.LARGEST_BYTES // 2):
        return []
    if yaml.count_nodes(tree) <= yaml.LARGEST_NODES and len(yaml.dump(tree)) <= yaml.LARGEST_BYTES:
        return []
    path, leaf = max(
        schema.leaves(from_plain(tree, ""), ""), key=lambda item: len(str(item[1].value))
    )
    what = f"{len(leaf.value):,} items" if isinstance(leaf.value, list) else "the longest text"
    return [
        f"{path}: a configuration may have {yaml.LARGEST_NODES:,} values and "
        f"{yaml.LARGEST_BYTES:,} characters (got {what} here); name shards by a pattern, a "
        "folder or a manifest"
    ]


def problems_of(tree: Tree, is_complete: bool = True) -> RunConfig | list[str]:
    """Return the checked configuration of a merged tree, or one line per problem.

    Unless the tree `is_complete`, missing keys and contradictions are not reported.
    """
    valid: dict[str, Any] = {}
    try:
        # As JSON, since strict mode then still accepts a list for a tuple.
        return RunConfig.model_validate_json(json.dumps(schema.plain(tree)), context=valid)
    except ValidationError as error:
        contradictions = list(cross_checks(valid)) if is_complete else []
        return messages.lines(error, RunConfig, tree, contradictions, is_complete)


def config_error(title: str, problems: list[str]) -> ConfigError:
    """Return one error that lists all problems."""
    if len(problems) == 1:
        return ConfigError(f"{title}: {problems[0]}" if title not in problems[0] else problems[0])
    return ConfigError(f"{title}: {len(problems)} errors\n  " + "\n  ".join(problems))


def make_absolute(tree: Tree) -> list[str]:
    """Make local paths of the merged tree absolute, including the default of run.storage.

    Return a line for each that has a variable or a home in it that only a shell would expand.
    """
    problems = []
    for *sections, key in (*PATHS, *_ROOTED):
        part = schema.find(tree, tuple(sections))
        default = (
            Value(Run.model_fields["storage"].default, "default") if key == "storage" else None
        )
        leaf = part.get(key, default) if isinstance(part, dict) else None
        if isinstance(part, dict) and isinstance(leaf, Value):
            given = leaf.value if isinstance(leaf.value, list) else [leaf.value]
            advice = next(filter(None, (unexpanded(p) for p in given if isinstance(p, str))), "")
            if advice:
                problems.append(f"{'.'.join((*sections, key))}: {advice} ({leaf.source})")
            if (*sections, key) in PATHS:
                part[key] = Value(absolute(leaf.value), leaf.source)
    return problems


class TrainDevice(Section):
    """The one key of `train` that is not about training."""

    device: Device


class InferenceConfig(Section):
    """The sections and keys that overrides may set."""

    data: Data
    evaluation: Evaluation
    launch: Launch
    train: TrainDevice


def with_overrides(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """Return `config` with `data.*`, `evaluation.*`, `launch.*` and `train.device` overridden.

    Checks that matter for training only, such as `launch.workers` against the lanes, are skipped.
    """
    layer, problems = yaml.read_overrides(overrides)
    if not problems:
        own = config.model_dump(
            mode="json",
            include={"data": True, "evaluation": True, "launch": True, "train": {"device"}},
        )
        given = {key: from_plain(value, "the run's config.yaml") for key, value in own.items()}
        tree = Merge(InferenceConfig).run([given, layer])
        try:
            found = InferenceConfig.model_validate_json(json.dumps(schema.plain(tree)))
        except ValidationError as error:
            problems = messages.lines(error, InferenceConfig, tree)
        else:
            train = config.train.model_copy(update={"device": found.train.device})
            update = {
                "data": found.data,
                "evaluation": found.evaluation,
                "launch": found.launch,
                "train": train,
            }
            return config.model_copy(update=update)
    raise ConfigError("overrides: " + "\n  ".join(problems))


def split_items(items: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return (patterns, overrides); a pattern may contain `=`, as in s3://bucket/day=1/*.tar."""
    sections = tuple(f"{name}." for name in InferenceConfig.model_fields)
    overrides = [item for item in items if item.startswith(sections) and "=" in item]
    return [item for item in items if item not in overrides], overrides
