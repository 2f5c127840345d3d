"""The settings of a trained run that may be overridden when it is applied to data."""

import json
from collections.abc import Sequence

from pydantic import ValidationError

from aae_dist.config.loading import messages
from aae_dist.config.loading.merge import Merge
from aae_dist.config.loading.tree import from_plain, plain
from aae_dist.config.loading.yaml import read_overrides
from aae_dist.config.run_config import RunConfig
from aae_dist.config.sections import Section
from aae_dist.config.sections.run import Data, Device, Launch
from aae_dist.errors import ConfigError


class TrainDevice(Section):
    """The one key of `train` that is not about training."""

    device: Device


class InferenceConfig(Section):
    """The sections and keys that overrides may set."""

    data: Data
    launch: Launch
    train: TrainDevice


def with_overrides(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """Return `config` with `data.*`, `launch.*` and `train.device` overridden.

    Checks that matter for training only, such as `launch.workers` against the lanes, are skipped.

    Raises:
        ConfigError: lists all problems of the overrides.
    """
    layer, problems = read_overrides(overrides)
    if not problems:
        own = config.model_dump(
            mode="json", include={"data": True, "launch": True, "train": {"device"}}
        )
        given = {key: from_plain(value, "the run's config.yaml") for key, value in own.items()}
        tree = Merge(InferenceConfig).run([given, layer])
        try:
            found = InferenceConfig.model_validate_json(json.dumps(plain(tree)))
        except ValidationError as error:
            problems = messages.lines(error, InferenceConfig, tree)
        else:
            train = config.train.model_copy(update={"device": found.train.device})
            update = {"data": found.data, "launch": found.launch, "train": train}
            return config.model_copy(update=update)
    raise ConfigError("overrides: " + "\n  ".join(problems))


def split_items(items: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return (patterns, overrides); a pattern may contain `=`, as in s3://bucket/day=1/*.tar."""
    sections = tuple(f"{name}." for name in InferenceConfig.model_fields)
    overrides = [item for item in items if item.startswith(sections) and "=" in item]
    return [item for item in items if item not in overrides], overrides
