"""`aae_dist.train`: one run from Python, on shards or on samples in memory."""

import logging
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any

from aae_dist.api import anndata, process, result
from aae_dist.api.callbacks import Callbacks
from aae_dist.api.config import UNNAMED, ConfigSource, digest, layout_of, resolve
from aae_dist.api.data import as_arrays, halves
from aae_dist.config import Layout, RunConfig
from aae_dist.data.arrays import Arrays, hold
from aae_dist.errors import ConfigError, Interrupted
from aae_dist.launch import start
from aae_dist.launch.local import LocalReporter, launch_local
from aae_dist.storage import join
from aae_dist.tracking.sinks import Console, ConsoleSink, LiveBarSink, NoConsole, open_console
from aae_dist.training.folder import Outcome
from aae_dist.utils.text import echo

logger = logging.getLogger("aae_dist")


def train(
    config: ConfigSource,
    data: Any = None,
    callbacks: Sequence[Any] = (),
    *,
    validation: Any = None,
    layout: Layout | None = None,
    overrides: Sequence[str] = (),
    progress: bool = True,
) -> result.TrainingResult:
    """Train a run, or resume it, and return how it ended.

    The same call resumes a run that was interrupted or killed from its newest checkpoint, bit for
    bit, and returns at once when it has finished. Threads, random states, warnings and signal
    handlers of the process are as before when it returns. Ctrl-C saves a checkpoint and returns.

    Args:
        config: a dictionary like the YAML file, the path of one or a list of both, or what
            `aae_dist.load_config` returns. Without `run.name` the run is named by a hash of
            configuration and data: another configuration is another run. `launch.kind` is local
            unless given.
        data: `x` or `(x, y)`, arrays or tensors, or a `torch.utils.data.Dataset` of known length;
            by default the shards of `data.train`. x: uint8 images (N, C, H, W), (N, H, W, C) with
            `layout="NHWC"`, or (N, H, W); floats of these shapes, in [0, 1] for a decoder with a
            sigmoid output; vectors, floats (N, D); signals and volumes with their `layout`. y:
            integers (N), for pictures. Sparse matrices and AnnData objects stay sparse
            (`aae_dist.from_anndata` takes a layer and labels). Read in the same order as shards; a
            hash of all numbers stands where a manifest's id does. With `launch.kind: ray` they are
            first written as shards into `run.storage`.
        callbacks: objects with some of the methods of `aae_dist.Callback`; not with
            `launch.kind: ray`.
        validation: as `data`, or the fraction of `data` to hold out, 0.1 for one sample in ten; by
            default the shards of `data.validation`. Without any there are no scores.
        layout: what each dimension of x is, such as NHWC or NCL, by default `data.layout`
            (docs/data.md); signals and volumes need it, images are NCHW without it.
        overrides: `dotted.key=value`, on top of `config`.
        progress: whether to show progress: a bar on a terminal or in a notebook, lines elsewhere.

    Raises:
        ConfigError: the configuration is wrong; all problems at once.
        DataError: the data are wrong or missing.
        CheckpointError: the run of this name was started with another configuration or other data.
        TrainingDivergedError: too many consecutive updates had non-finite gradients.
        LaunchError: the run cannot start: storage, resources, another process that trains it.
        BaseException: what a callback raised, when the run has ended with a checkpoint.
    """
    layout = layout_of(config, overrides) if data is not None and layout is None else layout
    train_set, validation_set = samples_in_memory(data, validation, layout)
    resolved = _resolved(config, overrides, train_set, validation_set)
    return _run(resolved, train_set, validation_set, callbacks, progress)


# Configuration and data.


def samples_in_memory(
    data: Any, validation: Any, layout: Layout | None
) -> tuple[Arrays | None, Arrays | None]:
    """Return training and validation samples that were given in memory, None for shards."""
    train_set = None if data is None else _arrays(data, layout, "data")
    if isinstance(validation, float):
        if train_set is None:
            raise ConfigError("validation: a fraction is of data in memory, and none are given")
        return halves(train_set, validation)
    return train_set, None if validation is None else _arrays(validation, layout, "validation")


def _arrays(data: Any, layout: Layout | None, name: str) -> Arrays:
    return anndata.from_anndata(data) if anndata.is_anndata(data) else as_arrays(data, layout, name)


def _resolved(
    config: ConfigSource,
    overrides: Sequence[str],
    train_set: Arrays | None,
    validation_set: Arrays | None,
) -> RunConfig:
    """Return the checked configuration, with the addresses of data in memory."""
    given: dict[str, Any] = {}
    if train_set is not None:
        given = {"train": train_set.url, **train_set.settings}
    if validation_set is not None:
        given["validation"] = validation_set.url
    defaults: Mapping[str, Any] = {"run": {"name": UNNAMED}, "data": given}
    found = resolve(config, overrides, defaults)
    # Also in what was loaded before; data given here win.
    changes = {
        key: tuple(value) if isinstance(value, list) else value for key, value in given.items()
    }
    found = found.model_copy(update={"data": found.data.model_copy(update=changes)})
    if found.run.name == UNNAMED:
        addresses = [str(found.data.train), str(found.data.validation)]
        name = f"python-{digest(found, addresses)}"
        found = found.model_copy(update={"run": found.run.model_copy(update={"name": name})})
    return found


def _placed(
    config: RunConfig, train_set: Arrays | None, validation_set: Arrays | None
) -> RunConfig:
    """Return the configuration with data where the run's processes find them."""
    places: dict[str, str] = {}
    for key, arrays in (("train", train_set), ("validation", validation_set)):
        if arrays is None:
            continue
        if config.launch.kind == "local":
            places[key] = hold(arrays)
        else:
            from aae_dist.data.pack.memory import pack_arrays

            places[key] = pack_arrays(arrays, join(config.run.storage, f"data-{arrays.id[:16]}"))
    return config.model_copy(update={"data": config.data.model_copy(update=places)})


# Training.


def _run(
    config: RunConfig,
    train_set: Arrays | None,
    validation_set: Arrays | None,
    callbacks: Sequence[Any],
    progress: bool,
) -> result.TrainingResult:
    if config.launch.kind == "ray" and callbacks:
        raise ConfigError("callbacks run in this process; use launch.kind=local, or none of them")
    listed = Callbacks(callbacks)
    with process.unchanged_process():
        config = _placed(config, train_set, validation_set)
        if config.launch.kind == "ray":
            outcome = _through_ray(config)
        else:
            outcome = _here(config, listed, progress)
    if listed.error is not None:
        raise listed.error
    return result.TrainingResult(
        state=str(outcome.state),
        step=outcome.step,
        metrics=outcome.metrics,
        verdict=outcome.verdict,
        uri=outcome.run_uri,
        held=[each for each in (train_set, validation_set) if each is not None],
    )


def _through_ray(config: RunConfig) -> Outcome:
    try:
        return start(config)
    except Interrupted:  # before any worker had started
        return Outcome("interrupted", 0, {}, join(config.run.storage, config.run.name))  # type: ignore[arg-type]


def _here(config: RunConfig, callbacks: Callbacks, progress: bool) -> Outcome:
    signals = process.GentleSignals()
    callbacks.attach(signals.token)
    reporter = LocalReporter(signals.token, echo if progress else logger.info)
    return launch_local(
        config,
        signals,
        reporter,
        sinks=[callbacks],
        console=partial(_console, reporter.line, progress),
        on_checkpoint=callbacks.on_checkpoint,
    )


def _console(line: Any, progress: bool, total_steps: int, first_step: int) -> Console:
    if not progress:
        return NoConsole()
    if in_notebook():
        if find_spec("ipywidgets") is not None:
            return LiveBarSink(total_steps, first_step)  # rich draws its widget there
        return ConsoleSink(line, total_steps, first_step)
    return open_console(line, total_steps, first_step)


def in_notebook() -> bool:
    """Return whether this process is a notebook's kernel."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return type(shell).__name__ == "ZMQInteractiveShell"
