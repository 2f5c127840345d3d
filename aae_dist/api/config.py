"""Configurations from Python: dictionaries like the YAML files, paths, or loaded before."""

import os
import warnings
from collections.abc import Mapping, Sequence
from hashlib import sha256
from json import dumps
from pathlib import Path
from typing import Any, TypeAlias

from aae_dist.config import Layout, RunConfig, load as loading, schema, yaml
from aae_dist.errors import ConfigError

Source: TypeAlias = str | os.PathLike[str] | Mapping[str, Any]
"""A YAML file, by its path or address, or a dictionary like one."""
ConfigSource: TypeAlias = RunConfig | Source | Sequence[Source]

FETCH_SECONDS = 15.0
UNNAMED = "python-without-a-name"
PLACEHOLDER: Mapping[str, Any] = {"train": "memory://", "image_keys": ["npy"]}
"""Keys of `data` while samples in memory are not known yet."""
DEFAULTS: Mapping[str, Any] = {"launch": {"kind": "local", "hang_timeout_seconds": None}}
"""What Python changes of the defaults: a run trains in this process, which never ends it for a
breakpoint, or a callback that takes its time."""


def load_config(*files: Source, overrides: Sequence[str] = ()) -> RunConfig:
    """Return the configuration described by files or dictionaries, and overrides; later ones win.

    Maps are merged and lists are replaced, as by `aae-dist train FILE... key=value...`. Unlike
    there, `launch.kind` is local and `launch.hang_timeout_seconds` is null unless given. Local
    paths are made absolute, relative to the current directory. `data.train` is needed here; with
    samples in memory give `aae_dist.train` the dictionaries or files themselves.

    Args:
        files: paths or addresses (s3://, https://) of YAML files, or dictionaries like them.
        overrides: `dotted.key=value`, with values in YAML.

    Raises:
        ConfigError: lists all problems, each with its path, what was got and a fix.
    """
    return _load([*map(_file, files)], overrides, DEFAULTS)


def resolve(
    config: ConfigSource, overrides: Sequence[str], defaults: Mapping[str, Any]
) -> RunConfig:
    """Return the configuration that `aae_dist.train` is given; `defaults` is its first layer.

    Raises:
        ConfigError: it is none, or wrong.
    """
    merged = {**DEFAULTS, **defaults}
    if isinstance(config, RunConfig):
        if not overrides:
            return config
        tree = config.model_dump(mode="json")
        return _load(
            [loading.GivenTree("config", schema.from_plain(tree, "config"))], overrides, {}
        )
    return _load(as_files(config), overrides, merged)


def layout_of(config: ConfigSource, overrides: Sequence[str]) -> Layout | None:
    """Return `data.layout` of the configuration for samples that are given in memory."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # `resolve` is called again, with the data
        defaults = {"run": {"name": UNNAMED}, "data": PLACEHOLDER}
        return resolve(config, overrides, defaults).data.layout


def as_files(config: Any) -> list[loading.ConfigFile]:
    """Return dictionaries and paths as files; ConfigError for anything else."""
    many = isinstance(config, list | tuple)
    return [_file(one) for one in (config if many else [config])]


def digest(config: RunConfig, data: Sequence[str]) -> str:
    """Return 10 hex digits for what decides a run's numbers, and its data by their addresses."""
    tree = config.model_dump(mode="json")
    for section in ("launch", "wandb", "checkpoint"):
        del tree[section]
    tree["run"] = {"seed": config.run.seed, "init_from": config.run.init_from}
    tree["data"] |= {"train": list(data), "validation": None}
    return sha256(dumps(tree, sort_keys=True).encode()).hexdigest()[:10]


def fetch(uri: str) -> loading.StoredFile:
    """Return a YAML file from a bucket or a web server; ConfigError if it is not there."""
    from aae_dist.storage import open_storage

    folder, _, name = uri.rpartition("/")
    try:
        data = open_storage(folder, FETCH_SECONDS).read_range(name, 0, yaml.LARGEST_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(f"{uri}: no such file") from None
    if len(data) > yaml.LARGEST_BYTES:
        raise ConfigError(f"{uri}: larger than {yaml.LARGEST_BYTES:,} bytes, no configuration")
    return loading.StoredFile(uri, data)


def _load(
    files: Sequence[loading.ConfigFile], overrides: Sequence[str], defaults: Mapping[str, Any]
) -> RunConfig:
    if isinstance(overrides, str):
        raise ConfigError(f"overrides: a list of key=value (got {overrides!r:.80})")
    first = loading.GivenTree("", schema.from_plain(dict(defaults), "default of Python"))
    loaded = loading.load_config([first, *files], overrides)
    for note in loaded.notes:
        warnings.warn(note, stacklevel=3)
    return loaded.config


def _file(given: Any) -> loading.ConfigFile:
    if isinstance(given, Mapping):
        return loading.GivenTree("config", schema.from_plain(_plain(given, ""), "config"))
    if isinstance(given, str) and "://" in given:
        return fetch(given)
    if isinstance(given, str | os.PathLike):
        return Path(given)
    raise ConfigError(
        "config: a dictionary, the path of a YAML file, a list of both, or what "
        f"aae_dist.load_config returns, before the data (got {type(given).__name__})"
    )


def _plain(value: Any, path: str) -> Any:
    """Return a value as YAML has it: tuples become lists, numbers of NumPy plain ones."""
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise ConfigError(f"config: {path or 'a key'}: keys are text (got {key!r:.80})")
        return {key: _plain(each, f"{path}.{key}".lstrip(".")) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each, path) for each in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:  # of NumPy or torch
        value = value.item()
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise ConfigError(
        f"config: {path}: text, numbers, lists and dictionaries, as in YAML (got "
        f"{type(value).__name__})"
    )
