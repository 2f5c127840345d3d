"""`aae-dist submit`: a run on a Kubernetes or Ray cluster, from the same files as here."""

import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from aae_dist.errors import ConfigError, LaunchError
from aae_dist.launch import kubectl, manifest
from aae_dist.launch.ray.cluster import refuse_if_impossible
from aae_dist.launch.ray.resources import demand_of
from aae_dist.sweeps.plan import SweepPlan, load_sweep

if TYPE_CHECKING:
    from aae_dist.launch.submit.ray_jobs import Jobs, Log


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
    """Create a RayJob made from an overlay's template; return at once.

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
    template = _template(work, cluster)
    check(work, template, cluster)
    name = _job_name(work, doctor)
    settings, job = manifest.fill(template, name, work.address, work.text)
    if doctor:
        manifest.examine(job)
    if dry_run:
        print(kubectl.dump([settings, job]), end="")
        return 0
    api = _api(template, context, cluster)
    _make_room(api, name)
    _create(api, settings, job)
    where = ["--cluster", str(cluster), *(["--context", context] if context else [])]
    again = shlex.join([*where, *(["--doctor"] if doctor else []), *items])
    print(f"rayjob/{name} created")
    print(f"follow: aae-dist submit --follow {again}")
    print(f"stop:   aae-dist submit --stop {again}")
    print(f"state:  {api.words} get rayjob {name}")
    print(f"folder: {work.address}")
    return 0


def follow_kubernetes(
    items: Sequence[str],
    cluster: Path,
    context: str | None = None,
    doctor: bool = False,
    stop: bool = False,
    stop_on_interrupt: bool = False,
) -> int:
    """Follow the RayJob of a run or sweep to its end; return the run's exit code.

    Args:
        items: YAML files and overrides, as they were submitted.
        cluster: folder of the overlay that it was submitted with.
        context: kubectl's context; by default the current one.
        doctor: the job that checks the cluster for it.
        stop: first ask the run to save a checkpoint and end.
        stop_on_interrupt: Ctrl-C does so, too; otherwise the job goes on.

    Raises:
        ConfigError: the configuration is wrong.
        LaunchError: there is no such job, or the cluster does not answer.
    """
    from aae_dist.launch import job_follower

    work = read_work(items)
    name = _job_name(work, doctor)
    api = _api(_template(work, cluster), context, cluster)
    if stop:
        job_follower.stop(api, name)
    return _follow(
        lambda: job_follower.follow(api, name),
        lambda: job_follower.stop(api, name),
        f"rayjob/{name} continues; the same command with --stop stops it with a checkpoint",
        stop_on_interrupt,
    )


def _template(work: Work, cluster: Path) -> manifest.Object:
    folder = cluster / {"train": "train", "tune": "sweep"}[work.verb]
    return manifest.job_of(kubectl.render(folder), str(folder))


def _job_name(work: Work, doctor: bool) -> str:
    return manifest.job_name(work.name + "-doctor" * doctor, work.storage)


def _api(template: manifest.Object, context: str | None, cluster: Path) -> kubectl.Kubectl:
    namespace = template["metadata"].get("namespace", "default")
    return kubectl.Kubectl(namespace, context, str(cluster))


def _create(api: kubectl.Kubectl, settings: manifest.Object, job: manifest.Object) -> None:
    """Create the job, which decides between two submissions, and then its configuration.

    The head's pod waits for the ConfigMap. In this order it can name its owner, and whoever comes
    second leaves nothing behind.
    """
    try:
        created = api.create(job)
    except kubectl.ExistsError:
        raise LaunchError(
            f"another submission was first: rayjob/{job['metadata']['name']} works on this now"
        ) from None
    try:
        api.create(manifest.owned(settings, created))
    except BaseException:
        api.delete(created)
        raise


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
    job = api.job(name)
    if job is None:
        return
    state = job.get("status", {}).get("jobDeploymentStatus", "")
    if state not in kubectl.ENDED:
        raise LaunchError(
            f"rayjob/{name} already works on this ({state or 'not started yet'}). The same command "
            "with --follow follows it, with --stop stops it with a checkpoint. End it without one: "
            f"{api.words} delete rayjob {name}"
        )
    api.delete(job)


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
    from aae_dist.launch.submit.ray_jobs import Jobs, Log, check_address, entrypoint

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
    return _follow_ray(jobs, job, log, stop_on_interrupt)


def follow_ray(job: str, address: str, stop: bool = False, stop_on_interrupt: bool = False) -> int:
    """Follow a job that was submitted before, or stop it first; return its exit code."""
    from aae_dist.launch.submit.ray_jobs import Jobs, Log

    jobs, log = Jobs(address), Log()
    if stop:
        jobs.stop(job)
    return _follow_ray(jobs, job, log, stop_on_interrupt)


def _follow_ray(jobs: "Jobs", job: str, log: "Log", stop_on_interrupt: bool) -> int:
    return _follow(
        lambda: jobs.follow(job, log),
        lambda: jobs.stop(job),
        f"{job} goes on. To stop it: aae-dist submit --stop {job} --address {jobs.address}",
        stop_on_interrupt,
    )


def _follow(
    follow: Callable[[], int], stop: Callable[[], None], how: str, stop_on_interrupt: bool
) -> int:
    try:
        return follow()
    except KeyboardInterrupt:
        if not stop_on_interrupt:
            print(f"\nno longer following; {how}")
            return 130
    print(
        "\nstopping: the job saves a checkpoint first; Ctrl-C again leaves it to that", flush=True
    )
    stop()
    return follow()
