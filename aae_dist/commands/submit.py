"""`aae-dist submit`: a run on a Kubernetes or Ray cluster, from the same files as here."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from aae_dist.commands.items import split_items
from aae_dist.config import RunConfig, dump_yaml, load_config
from aae_dist.config.loading.load import SWEEP, ConfigFile, make_absolute, read_layers
from aae_dist.config.loading.merge import Merge
from aae_dist.config.loading.tree import plain
from aae_dist.config.loading.yaml import dump
from aae_dist.config.paths import PATHS
from aae_dist.config.redaction import redact
from aae_dist.config.sweep_plan import SweepPlan, load_sweep
from aae_dist.errors import ConfigError, LaunchError
from aae_dist.launch import kubectl, manifest
from aae_dist.launch.ray_cluster import refuse_if_impossible
from aae_dist.launch.ray_demand import demand_of

if TYPE_CHECKING:
    from aae_dist.launch.ray_jobs import Jobs, Log


_LOCAL = "launch.kind=local trains on one machine; drop it (the default is ray)"


@dataclass(frozen=True)
class Work:
    """What is submitted, checked here before anything starts there."""

    verb: str
    """train or tune."""
    name: str
    storage: str
    config: RunConfig
    """The run's; of a sweep that of its first trial, whose resources all trials have."""
    text: str
    """Everything, as YAML."""

    @property
    def address(self) -> str:
        """The folder that the work leaves."""
        return f"{self.storage}/{self.name}"


def read_work(items: Sequence[str]) -> Work:
    """Return what files and overrides describe.

    Raises:
        ConfigError: something in them is wrong; all problems are named.
    """
    files, overrides = split_items(items)
    if is_sweep(files, overrides):
        return _sweep(load_sweep(files, overrides))
    loaded = load_config(files, overrides)
    _tell(loaded.notes)
    config = loaded.config
    return Work("train", config.run.name, config.run.storage, config, dump_yaml(config))


def is_sweep(files: Sequence[ConfigFile], overrides: Sequence[str]) -> bool:
    """Return whether the files describe a sweep: they have a section for it."""
    layers, _ = read_layers(files, overrides)
    return any(SWEEP in layer for layer in layers)


def _sweep(plan: SweepPlan) -> Work:
    _tell(plan.notes)
    base = Merge(RunConfig).run(deepcopy(list(plan.layers)))
    make_absolute(base)
    tree = plain(base)
    tree.setdefault("run", {})["storage"] = plan.storage
    tree[SWEEP] = plan.sweep.model_dump(mode="json")
    return Work("tune", plan.sweep.name, plan.storage, plan.configs[0], dump(tree))


def _tell(notes: Sequence[str]) -> None:
    for note in notes:
        print(f"note: {note}", file=sys.stderr)


def to_kubernetes(
    items: Sequence[str],
    cluster: Path,
    context: str | None = None,
    dry_run: bool = False,
    doctor: bool = False,
) -> int:
    """Apply a RayJob made from an overlay's template; return at once.

    Args:
        items: YAML files and overrides, as for `train`.
        cluster: folder of an overlay, such as cluster/overlays/gke.
        context: kubectl's context; by default the current one.
        dry_run: print the manifests and ask no cluster.
        doctor: the job checks the cluster, once, and trains nothing.

    Raises:
        ConfigError: the configuration is wrong, or names folders that no pod has.
        LaunchError: kubectl, the overlay or the cluster refuses.
    """
    work = read_work(items)
    if redact(work.text) != work.text:
        raise ConfigError(
            "the configuration holds a secret (a signed URL, a password in one, or the value of a "
            "variable such as WANDB_API_KEY), and the cluster shows it to whoever reads its "
            "ConfigMaps; use the pods' own identity (s3://, gs://, az://) or a Kubernetes secret"
        )
    folder = cluster / {"train": "train", "tune": "sweep"}[work.verb]
    template = manifest.job_of(kubectl.render(folder), str(folder))
    check(work, template, cluster)
    name = manifest.job_name(work.name + "-doctor" * doctor, work.storage)
    objects = manifest.fill(template, name, work.address, work.text)
    if doctor:
        manifest.examine(objects[-1])
    if dry_run:
        print(kubectl.dump(objects), end="")
        return 0
    namespace = template["metadata"].get("namespace", "default")
    api = kubectl.Kubectl(namespace, context)
    _make_room(api, name)
    print(api.apply(objects), end="")
    print(f"state:  {api.words} get rayjob {name}")
    print(f"log:    {api.words} logs --follow job/{name}")
    print(f"folder: {work.address}")
    return 0


def check(work: Work, job: manifest.Object, cluster: Path) -> None:
    """Raise for what could only fail on the cluster, after it has been paid for."""
    problems = [
        *(
            f"image: {image} is a name to be filled in; edit site/site.yaml of the overlay"
            for image in manifest.unedited_images(job)
        ),
        *_problems(work.config, manifest.shared_folders(job)),
    ]
    if problems:
        raise ConfigError("\n  ".join([f"this cannot run on {cluster}:", *problems]))
    groups = list(manifest.groups(job))
    demand = demand_of(work.config, [resources for resources, _ in groups])
    pods = [node for node, most in groups for _ in range(min(most, demand.workers))]
    refuse_if_impossible(demand, pods, f"with `most` in its site.yaml, {cluster} has")


def _problems(config: RunConfig, shared: Sequence[str]) -> Iterator[str]:
    if config.launch.kind == "local":
        yield _LOCAL
    there = f"one of {', '.join(shared)}" if shared else "a mount that the overlay does not have"
    for key, path in local_paths(config):
        if not manifest.is_below(path, list(shared)):
            yield f"{key}: no pod sees the folder {path}; use s3:// (gs://, az://) or {there}"


def local_paths(config: RunConfig) -> Iterator[tuple[str, str]]:
    """Yield (key, path) for all that lies on a machine and not in a bucket."""
    for section, key in PATHS:
        value: str | tuple[str, ...] | None = getattr(getattr(config, section), key, None)
        for path in [value] if value is None or isinstance(value, str) else value:
            if path and "://" not in path:
                yield f"{section}.{key}", path


def _make_room(api: kubectl.Kubectl, name: str) -> None:
    """Remove the ended job of an earlier submission, since a job runs once."""
    state = api.state(name)
    if state is None:
        return
    if state not in kubectl.ENDED:
        raise LaunchError(
            f"rayjob/{name} already works on this ({state or 'not started yet'}). "
            f"Follow it: {api.words} logs --follow job/{name}. "
            f"End it without a last checkpoint: {api.words} delete rayjob {name}"
        )
    api.delete(name)


def to_ray(
    items: Sequence[str],
    address: str,
    env: Mapping[str, str],
    folder: Path | None = None,
    wait: bool = True,
    stop_on_interrupt: bool = False,
    dry_run: bool = False,
    doctor: bool = False,
) -> int:
    """Submit a job to a running Ray cluster, follow its log, return its exit code.

    Args:
        items: YAML files and overrides, as for `train`.
        address: of the dashboard, http://HOST:8265.
        env: more variables for the job.
        folder: files of the user's own, such as a prior, for the job's working directory.
        wait: follow the log to the job's end.
        stop_on_interrupt: Ctrl-C stops the job, with a checkpoint; otherwise it goes on.
        dry_run: print the command, its variables' names and the configuration; connect to nothing.
        doctor: the job checks the cluster and trains nothing.

    Raises:
        ConfigError: the configuration is wrong.
        LaunchError: no cluster answers, or it refuses.
    """
    from aae_dist.launch.ray_jobs import Jobs, Log, check_address, entrypoint

    check_address(address)
    work = read_work(items)
    if work.config.launch.kind == "local":
        raise ConfigError(_LOCAL)
    verb = "doctor" if doctor else work.verb
    if dry_run:
        print(f"# to {address}: {entrypoint(verb)}")
        for name in env:
            print(f"# with the variable {name}")
        print(work.text, end="")
        return 0
    for key, path in local_paths(work.config):
        print(f"note: {key}={path} means a folder of the cluster's nodes, not of this machine")
    jobs, log = Jobs(address), Log()
    job = jobs.submit(verb, work.name, work.text, env, folder)
    print(f"submitted {job} to {address}", flush=True)
    if not wait:
        print(f"log: aae-dist submit --follow {job} --address {address}")
        return 0
    return _follow(jobs, job, log, stop_on_interrupt)


def follow(job: str, address: str, stop_on_interrupt: bool = False) -> int:
    """Follow a job that was submitted before; return its exit code."""
    from aae_dist.launch.ray_jobs import Jobs, Log

    return _follow(Jobs(address), job, Log(), stop_on_interrupt)


def _follow(jobs: "Jobs", job: str, log: "Log", stop_on_interrupt: bool) -> int:
    try:
        return jobs.follow(job, log)
    except KeyboardInterrupt:
        if not stop_on_interrupt:
            print(f"\nno longer following; {job} goes on. To stop it: ray job stop {job}")
            return 130
    print(
        "\nstopping: the job saves a checkpoint first; Ctrl-C again leaves it to that", flush=True
    )
    jobs.stop(job)
    return jobs.follow(job, log)
