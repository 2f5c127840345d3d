"""`aae_dist.tune`: a sweep from Python; `aae_dist.submit`: a run or a sweep to a cluster."""

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aae_dist.api import process, training
from aae_dist.api.config import PLACEHOLDER, ConfigSource, as_files
from aae_dist.config import Layout, RunConfig, load, schema
from aae_dist.data.arrays import Arrays
from aae_dist.errors import ConfigError, Interrupted, LaunchError
from aae_dist.inference.trained_run import TrainedRun, load_run
from aae_dist.launch.submit import jobs
from aae_dist.storage import join, open_storage
from aae_dist.sweeps import load_sweep
from aae_dist.sweeps.folder import SWEEP, read_sweep
from aae_dist.tune import start_sweep

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, repr=False)
class SweepResult:
    """How a sweep ended; read from its folder.

    Attributes:
        uri: the sweep's folder, with report.html and best.yaml.
        state: finished or interrupted; the same call resumes it.
        best: id of the best trial, None without a finished one.
        recommendation: what sweep.json has: `state`, `sentence`, `chosen` and others.
        trials: one dictionary per trial: number, id, state, parameters, metrics, uri, cause.
    """

    uri: str
    state: str
    best: str | None
    recommendation: Mapping[str, Any]
    trials: Sequence[Mapping[str, Any]]

    @cached_property
    def run(self) -> TrainedRun:
        """The trained networks of the best trial; LaunchError without a finished trial."""
        for trial in self.trials:
            if trial["id"] == self.best:
                return load_run(trial["uri"])
        raise LaunchError(f"{self.uri}: no trial has finished, so there is no best one")

    def to_pandas(self) -> "pandas.DataFrame":
        """Return a table with one row per trial: parameters and metrics as columns.

        Raises:
            ImportError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError:
            raise ImportError("to_pandas() needs pandas: pip install pandas") from None
        rows = [
            {"number": t["number"], "state": t["state"], **t["parameters"], **t["metrics"]}
            for t in self.trials
        ]
        return pandas.DataFrame(rows).set_index("number")

    def __repr__(self) -> str:
        return f"<SweepResult {self.state}, {len(self.trials)} trials: {self.uri}>"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>#{t['number'] + 1}</td><td>{escape(t['state'])}</td>"
            f"<td>{escape(json.dumps(t['parameters']))}</td></tr>"
            for t in self.trials
        )
        sentence = escape(str(self.recommendation.get("sentence", "")))
        return f"<p>{sentence}</p><table>{rows}</table><p>{escape(self.uri)}/report.html</p>"


def tune(
    config: ConfigSource,
    data: Any = None,
    *,
    validation: Any = None,
    layout: Layout | None = None,
    overrides: Sequence[str] = (),
    more: bool = False,
) -> SweepResult:
    """Run a sweep, or resume it, and return how it ended.

    The process is as before when it returns, as with `aae_dist.train`.

    Args:
        config: a dictionary like the YAML with a `sweep` section, the path of a file, or a list of
            both (docs/sweeps.md).
        data: as for `aae_dist.train`; samples in memory are written as shards into `run.storage`.
        validation: as for `aae_dist.train`.
        layout: what each dimension of x is, such as NHWC or NCL, by default `data.layout`
            (docs/data.md); signals and volumes need it, images are NCHW without it.
        overrides: `dotted.key=value`, on top of `config`.
        more: whether to add the seeds that the recommendation of an ended sweep asks for.

    Raises:
        ConfigError: the configuration or a trial's is wrong; all problems at once.
        DataError: the data are wrong or missing.
        LaunchError: Ray is not installed or cannot start, or no trial has finished.
    """
    if isinstance(config, RunConfig):
        raise ConfigError("config: a run has no `sweep` section; give a dictionary or files")
    files = as_files(config)
    if data is not None and layout is None:
        layer = load.GivenTree("", schema.from_plain({"data": PLACEHOLDER}, "data given in Python"))
        layout = load_sweep([*files, layer], overrides).configs[0].data.layout
    given = training.samples_in_memory(data, validation, layout)
    plan = load_sweep([*files, _data_layer(given, lambda arrays: arrays.url)], overrides)
    with process.unchanged_process():
        if any(given):
            from aae_dist.data.pack.memory import pack_arrays

            def packed(arrays: Arrays) -> str:
                return pack_arrays(arrays, join(plan.storage, f"data-{arrays.id[:16]}"))

            plan = load_sweep([*files, _data_layer(given, packed)], overrides)
        with contextlib.suppress(Interrupted):
            start_sweep(plan, more)
    return _result(plan.uri)


def _data_layer(given: Sequence[Arrays | None], place: Any) -> load.ConfigFile:
    """Return the layer of the addresses of samples in memory."""
    train_set, validation_set = given
    data: dict[str, Any] = {}
    if train_set is not None:
        data = {"train": place(train_set), **train_set.settings}
    if validation_set is not None:
        data["validation"] = place(validation_set)
    return load.GivenTree(
        "", schema.from_plain({"data": data} if data else {}, "data given in Python")
    )


def _result(uri: str) -> SweepResult:
    record = read_sweep(uri, histories=False)
    document = json.loads(open_storage(uri).read(SWEEP))
    best = document.get("best") or {}
    trials = [
        {
            "number": trial.number,
            "id": trial.id,
            "state": str(trial.state),
            "parameters": dict(trial.values),
            "metrics": dict(trial.metrics),
            "uri": trial.uri,
            "cause": trial.cause,
        }
        for trial in record.trials
    ]
    recommendation = document.get("recommendation") or {}
    return SweepResult(uri, record.state, best.get("id"), recommendation, trials)


def submit(
    config: ConfigSource,
    address: str | None = None,
    *,
    cluster: str | os.PathLike[str] | None = None,
    overrides: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    working_dir: str | os.PathLike[str] | None = None,
    dry_run: bool = False,
) -> str:
    """Send a run or a sweep to a cluster and return the job's name at once.

    `aae-dist submit --follow NAME` shows its log; submitting again what has ended resumes it.

    Args:
        config: as for `aae_dist.train`, with `launch.kind: ray`, or a sweep's. Its data and
            `run.storage` are where the cluster's machines reach them (`aae_dist.pack`).
        address: a running Ray cluster's dashboard, http://HOST:8265.
        cluster: or a kustomize overlay for a RayJob on Kubernetes, which kubectl creates.
        overrides: `dotted.key=value`, on top of `config`.
        env: with `address`: variables of the job, shown in the dashboard: nothing secret.
        working_dir: with `address`: files for the job's working directory, such as a prior.
        dry_run: return the YAML that would be sent, and ask no cluster.

    Raises:
        ConfigError: the configuration is wrong, or trains in this process.
        LaunchError: the cluster cannot be reached or refuses the job.
    """
    if (address is None) == (cluster is None):
        raise ConfigError("submit: give one of address=http://HOST:8265 and cluster=OVERLAY")
    work = _work(config, overrides)
    if cluster is not None:
        from aae_dist.launch.submit import kubernetes

        settings, job = kubernetes.manifests(work, Path(cluster), False)
        if dry_run:
            return kubernetes.dump([settings, job])
        kubernetes.create(kubernetes.connect(work, Path(cluster), None), settings, job)
        return str(job["metadata"]["name"])
    assert address is not None
    jobs.check_address(address)
    jobs.check(work)
    if dry_run:
        return work.text
    folder = None if working_dir is None else Path(working_dir)
    return jobs.Jobs(address).submit(work.verb, work.name, work.text, env or {}, folder)


def _work(config: ConfigSource, overrides: Sequence[str]) -> jobs.Work:
    if isinstance(config, RunConfig):
        tree = config.model_dump(mode="json")
        return jobs.read_work(
            [load.GivenTree("config", schema.from_plain(tree, "config"))], overrides
        )
    return jobs.read_work(as_files(config), overrides)
