"""How a trained run's verbs read data and use machines: its own sections, with overrides."""

import json
from collections.abc import Sequence

from pydantic import ValidationError

from aae_dist.config.loading import messages
from aae_dist.config.loading.merge import Merge
from aae_dist.config.loading.tree import from_plain, plain
from aae_dist.config.loading.yaml import read_overrides
from aae_dist.config.run_config import RunConfig
from aae_dist.config.sections import Section
from aae_dist.config.sections.data import Data
from aae_dist.config.sections.launch import Launch
from aae_dist.config.sections.run import Device
from aae_dist.errors import ConfigError


class Where(Section):
    """The one key of `train` that is not about training."""

    device: Device


class Reading(Section):
    """What may differ from training when a trained run is applied to data."""

    data: Data
    launch: Launch
    train: Where


def with_overrides(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """Return `config` with `data.*`, `launch.*` and `train.device` overridden.

    Checks that only training needs, say of `launch.workers` against the lanes, are left out.

    Raises:
        ConfigError: names every problem of the overrides at once.
    """
    layer, problems = read_overrides(overrides)
    if not problems:
        own = config.model_dump(
            mode="json", include={"data": True, "launch": True, "train": {"device"}}
        )
        given = {key: from_plain(value, "the run's config.yaml") for key, value in own.items()}
        tree = Merge(Reading).run([given, layer])
        try:
            reading = Reading.model_validate_json(json.dumps(plain(tree)))
            train = config.train.model_copy(update={"device": reading.train.device})
            found = {"data": reading.data, "launch": reading.launch, "train": train}
            return config.model_copy(update=found)
        except ValidationError as error:
            problems = messages.lines(error, Reading, tree)
    raise ConfigError("overrides: " + "\n  ".join(problems))


def split_items(items: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return (patterns, overrides); a pattern may hold `=`, as in s3://bucket/day=1/*.tar."""
    sections = tuple(f"{name}." for name in Reading.model_fields)
    overrides = [item for item in items if item.startswith(sections) and "=" in item]
    return [item for item in items if item not in overrides], overrides
