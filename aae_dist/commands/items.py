"""What a command is given: configuration files, here or in a bucket, and overrides."""

from collections.abc import Sequence
from pathlib import Path

from aae_dist.config.loading.load import ConfigFile, StoredFile
from aae_dist.config.loading.yaml import LARGEST_BYTES
from aae_dist.errors import ConfigError
from aae_dist.storage import open_storage

SECONDS = 30.0
"""Longest wait for a configuration, with all retries."""


def split_items(items: Sequence[str]) -> tuple[list[ConfigFile], list[str]]:
    """Return (files, overrides): an override holds `=` and is not the name of a file.

    Files with an address, such as s3://bucket/sweep/best.yaml, are read here.

    Raises:
        ConfigError: an address holds no file, or one that is too large.
        LaunchError: the address, or the place that it names, cannot be used.
    """
    files: list[ConfigFile] = []
    overrides = []
    for item in items:
        if "://" in item.split("=", 1)[0]:
            files.append(_fetched(item))
        elif "=" not in item or Path(item).is_file():
            files.append(Path(item))
        else:
            overrides.append(item)
    return files, overrides


def _fetched(uri: str) -> StoredFile:
    folder, _, name = uri.rpartition("/")
    try:
        data = open_storage(folder, SECONDS).read_range(name, 0, LARGEST_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(f"{uri}: no such file") from None
    if len(data) > LARGEST_BYTES:
        raise ConfigError(f"{uri}: larger than {LARGEST_BYTES:,} bytes, no configuration")
    return StoredFile(uri, data)
