"""The Ray cluster of a driver: joined or started, what it has and can hold, the wait for it."""

import contextlib
import functools
import importlib
import logging
import math
import os
import secrets
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from aae_dist.config import Launch, RunConfig, load
from aae_dist.data.format.patterns import check_present
from aae_dist.errors import ConfigError, DataError, LaunchError
from aae_dist.storage.local import explain_system_error
from aae_dist.utils.text import echo

Resources = Mapping[str, float]
SHOWN = ("CPU", "GPU")
FIRST_LINE_SECONDS = 10.0
LINE_SECONDS = 60.0
ADDRESS = "RAY_ADDRESS"
CLUSTER = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""0: a node takes the loopback address."""
AUTOSCALER = "RAY_enable_autoscaler_v2"
KUBERAY = "RAY_USAGE_STATS_KUBERAY_IN_USE"
POLL_SECONDS = 1  # how often Ray Train's controller looks at its workers; its default is 2
MOST_ADDRESSES = 16  # addresses of data that are looked up before a run starts
_MIN_ELASTIC_SECONDS = 60.0  # Ray's own default, which a slow machine needs to start a worker in


@dataclass(frozen=True)
class ResourceRequest:
    """`workers` bundles of resources; each bundle lies on one node."""

    workers: int
    per_worker: dict[str, float]
    fewest: int | None = None  # workers that are enough to start with; by default all

    def capacity_on(self, node: Resources) -> int:
        """Return how many of the workers a node with these resources can hold."""
        rooms = [math.floor(node.get(k, 0.0) / v + 1e-9) for k, v in self.per_worker.items()]
        return min(self.workers, *rooms)

    def fits(self, nodes: Iterable[Resources]) -> bool:
        return sum(self.capacity_on(node) for node in nodes) >= (self.fewest or self.workers)

    def __str__(self) -> str:
        elastic = self.fewest is not None and self.fewest < self.workers
        count = f"{self.fewest} to {self.workers}" if elastic else f"{self.workers}"
        return f"{count} workers x ({show(self.per_worker)})"


def request_on(config: RunConfig, nodes: Iterable[Resources]) -> ResourceRequest:
    """Return the run's request; `gpus_per_worker: auto` is one if any of these nodes has one."""
    launch, gpus = config.launch, config.launch.gpus_per_worker
    if gpus == "auto":
        gpus = float(any(node.get("GPU", 0.0) >= 1 for node in nodes))
    if config.train.device == "cpu":
        gpus = 0.0
    per_worker = {"CPU": float(launch.cpus)} | ({"GPU": float(gpus)} if gpus else {})
    return ResourceRequest(launch.most_workers, per_worker, launch.fewest_workers)


def show(resources: Resources) -> str:
    """Return the CPUs and GPUs among `resources` as text, say '4 CPU, 1 GPU'."""
    known = {key: resources.get(key, 0.0) for key in SHOWN}
    return ", ".join(f"{amount:g} {key}" for key, amount in known.items() if amount or key == "CPU")


def is_queued() -> bool:
    """Return whether Ray Train has asked for this job's workers and has not got room for them."""
    from ray.util import placement_group_table

    job = _ray().get_runtime_context().get_job_id()
    # A placement group's id ends with the id of the job that made it.
    own = [g for g in placement_group_table().values() if g["placement_group_id"].endswith(job)]
    return any(group["state"] in ("PENDING", "RESCHEDULING") for group in own)


class ResourceWait:
    """Logs what a run waits for, and aborts after `max_wait_minutes` without a break."""

    def __init__(self, request: ResourceRequest, minutes: float) -> None:
        self._request, self._limit = request, minutes * 60
        self._since: float | None = None
        self._next_line = 0.0

    def check(self) -> None:
        """Check once; about once per second while no worker runs. LaunchError after the wait."""
        now = time.monotonic()
        if not is_queued():
            self._since = None
            return
        if self._since is None:
            self._since, self._next_line = now, now + min(FIRST_LINE_SECONDS, self._limit / 2)
        if now - self._since > self._limit:
            raise LaunchError(
                f"launch: waited {self._limit / 60:g} min for {self._request}; {self._present()}. "
                "Free some, ask for less, or raise launch.max_wait_minutes."
            )
        if now >= self._next_line:
            self._next_line = now + LINE_SECONDS
            waited = (now - self._since) / 60
            echo(
                f"waiting for room on the cluster (min {waited:.0f} of {self._limit / 60:g}): "
                f"wanted {self._request}; {self._present()}"
            )

    def _present(self) -> str:
        free, there = _ray().available_resources(), _ray().cluster_resources()
        return f"free {show(free)}, of {show(there)} in all"


def own_device(device: str) -> str:
    """Return `device`, but cpu for auto where Ray has given this process no GPU.

    Ray hides GPUs from processes that own some of them, not from those that own none: with
    launch.gpus_per_worker=0 all processes of a node would take its first GPU.
    """
    owns_none = device == "auto" and _ray().is_initialized() and not _ray().get_gpu_ids()
    return "cpu" if owns_none else device


def _ray() -> Any:
    # Imported when Ray runs: it takes a second.
    return importlib.import_module("ray")


def is_local() -> bool:
    """Return whether this process starts a Ray of its own, since RAY_ADDRESS is not set."""
    return not os.environ.get(ADDRESS)


def check_storage(config: RunConfig) -> None:
    """Raise ConfigError for a relative run.storage inside a Ray job, whose directory goes."""
    storage = config.run.storage
    if load.inside_ray_job() and "://" not in storage and not os.path.isabs(storage):
        raise ConfigError(
            f"run.storage: a relative path has no meaning inside a Ray job (got {storage}), whose "
            "directory Ray deletes; use s3:// (gs://, az://) or the absolute path of a shared mount"
        )


def check_machine(config: RunConfig) -> None:
    """Raise LaunchError, before Ray starts, if it would start here and here are too few CPUs."""
    if is_local():
        cpus, launch = {"CPU": float(os.cpu_count() or 1)}, config.launch
        per_worker = {"CPU": float(launch.cpus)}
        request = ResourceRequest(launch.most_workers, per_worker, launch.fewest_workers)
        refuse_if_impossible(request, [cpus], "this machine, where Ray would start, has")


def check_data(configs: Iterable[RunConfig]) -> None:
    """Raise DataError for data that does not exist, before workers and their GPUs are requested.

    Only the workers' own machines tell for local paths, unless Ray is to start on this one.
    """
    settings = {config.data for config in configs}
    for key in ("train", "validation"):
        named = {getattr(data, key) for data in settings} - {None}
        urls = {url for each in named for url in ([each] if isinstance(each, str) else each)}
        try:
            check_present(sorted(urls)[:MOST_ADDRESSES], look_here=is_local())
        except DataError as error:
            raise DataError(f"data.{key}: {error}") from None


def advice(config: RunConfig) -> list[str]:
    """Return lines to print at the start, on what will go wrong later."""
    if load.inside_ray_job() and "RAY_JOB_STOP_WAIT_TIME_S" not in os.environ:
        return [
            "note: `ray job stop` will end this job after 3 s, too soon to save a checkpoint; "
            'submit it with --runtime-env-json \'{"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"}}\''
        ]
    return []


@contextlib.contextmanager
def connected(config: RunConfig | None = None) -> Iterator[None]:
    """Join the cluster of RAY_ADDRESS, or start one on this machine; leave it at the end.

    A program that is connected to Ray already stays so. `config` is that of a run whose workers Ray
    Train starts. LaunchError when no Ray answers at RAY_ADDRESS.
    """
    _set_environment()
    if config is not None:
        os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(start_seconds(config.launch))
    if _ray().is_initialized():
        yield
        return
    _connect()
    try:
        yield
    finally:
        _ray().shutdown()


def _connect() -> None:
    # Starting Ray is mostly waiting for its processes; meanwhile torch can be imported.
    imports = threading.Thread(target=importlib.import_module, args=("ray.train.torch",))
    imports.start()
    try:
        if is_local():
            with _in_sessions_of_their_own(), _on_loopback():
                _start_twice()
        else:
            _init()
    except Exception as error:  # Ray raises bare Exception, too.
        raise LaunchError(_why_no_ray(error)) from error
    finally:
        imports.join()


def _why_no_ray(error: Exception) -> str:
    """Return in one line why Ray cannot be joined or started, with what helps there."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    if not is_local():
        place = os.environ[ADDRESS]
        return f"Ray {place} cannot be used: {reason} Check {ADDRESS} (unset, Ray starts here)."
    folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"  # noqa: S108
    if "AF_UNIX" in str(error):
        return (
            f"Ray cannot start here: the path of its temporary folder is too long for its sockets "
            f"({len(folder)} letters in TMPDIR, about 40 are possible). Set RAY_TMPDIR=/tmp, or "
            "use launch.kind=local."
        )
    if isinstance(error, OSError) and (explained := explain_system_error(error)):
        return f"Ray cannot start here: {explained}"
    return (
        f"Ray cannot start here: {reason} Look for what else uses this machine's memory and the "
        f"space of {folder} (RAY_TMPDIR names another folder), or use launch.kind=local."
    )


@contextlib.contextmanager
def _in_sessions_of_their_own() -> Iterator[None]:
    """Let Ray start its processes where no signal to this process's group reaches them.

    `timeout`, a terminal's Ctrl-C and job systems signal the whole group; that would end the
    cluster at once, while the workers save a checkpoint.
    """
    services: Any = importlib.import_module("ray._private.services")
    popen = getattr(services, "ConsolePopen", None)
    if popen is not None:  # else renamed in a newer Ray: then all is as Ray does it
        services.ConsolePopen = functools.partial(popen, start_new_session=True)
    try:
        yield
    finally:
        if popen is not None:
            services.ConsolePopen = popen


@contextlib.contextmanager
def _on_loopback() -> Iterator[None]:
    """Let Ray take the loopback address for a machine of its own, as it does on macOS.

    By default it takes the machine's address and binds its ports to all interfaces: those for
    Prometheus answer without a token.
    """
    constants: Any = importlib.import_module("ray._private.ray_constants")
    is_cluster, given = constants.ENABLE_RAY_CLUSTER, os.environ.get(CLUSTER)
    constants.ENABLE_RAY_CLUSTER = False
    os.environ[CLUSTER] = "0"  # for the processes that Ray starts
    try:
        yield
    finally:
        constants.ENABLE_RAY_CLUSTER = is_cluster
        os.environ.pop(CLUSTER)
        if given is not None:
            os.environ[CLUSTER] = given


def _start_twice() -> None:
    try:
        _init("local", include_dashboard=False)
    except Exception as error:
        if "timed out" not in str(error):
            raise
        # Ray gives its processes 30 s, too little for a machine that is busy otherwise.
        echo("Ray did not start within 30 s on this busy machine; trying once more")
        _init("local", include_dashboard=False)


def _init(*args: Any, **kwargs: Any) -> None:
    _ray().init(*args, log_to_driver=False, logging_level=logging.WARNING, **kwargs)


def _set_environment() -> None:
    """Set what Ray reads from the environment; what the user has set stays."""
    defaults = {
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": str(POLL_SECONDS),
        # Raylets' messages would be printed between our lines, whatever log_to_driver says.
        "RAY_DEDUP_LOGS_SKIP_REGEX": ".",
    }
    if is_local():
        defaults |= {
            # A key of this launch only: Ray's own default writes one into the home directory.
            "RAY_AUTH_MODE": "token",
            "RAY_USAGE_STATS_ENABLED": "0",
            # What serves several nodes or a dashboard costs a start its seconds.
            "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
            "RAY_TRAIN_METRICS_ENABLED": "0",
            # Ray's default is 15: workers would come behind Ray's own daemons.
            "RAY_worker_niceness": "0",
        }
        if os.environ.get("RAY_AUTH_MODE", "token") == "token":
            defaults["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


def start_seconds(launch: Launch) -> float:
    """Return how long Ray waits for the places of all workers, in one go."""
    if launch.is_elastic:
        # How many there is room for is decided before this wait, and at once after a node's death
        # the dead node still counts: the next decision, after it, is right.
        return max(launch.resize_seconds, _MIN_ELASTIC_SECONDS)
    # The driver, which can name the cause, aborts before.
    return launch.max_wait_minutes * 60 + 60


def nodes() -> list[Resources]:
    """Return the resources of each live node, free or not."""
    return [node["Resources"] for node in _ray().nodes() if node["Alive"]]


def autoscaler_groups() -> list[tuple[Resources, int]]:
    """Return (resources of a node, most nodes) of each group that an autoscaler may start."""
    from ray._private.state import state

    cluster = state.get_cluster_config()
    groups = cluster.node_group_configs if cluster is not None else ()
    # A negative max_count means that nothing but the cloud's quota bounds the group.
    return [(dict(g.resources), g.max_count if g.max_count >= 0 else 10**6) for g in groups]


def request_of(config: RunConfig) -> ResourceRequest:
    """Return the run's request on this cluster, as it is or as its autoscaler may make it."""
    groups = [resources for resources, _ in autoscaler_groups()]
    return request_on(config, [*nodes(), *groups])


def check_request(request: ResourceRequest) -> None:
    """Raise LaunchError at once if the cluster can never hold `request`."""
    if groups := autoscaler_groups():
        grown = [resources for resources, most in groups for _ in range(min(most, request.workers))]
        refuse_if_impossible(request, [*nodes(), *grown], "with its autoscaler, the cluster has")
    elif not has_autoscaler():
        refuse_if_impossible(request, nodes(), "the cluster has")


def has_autoscaler() -> bool:
    """Return whether an autoscaler may add nodes.

    KubeRay sets "true" where it runs one; `ray start` sets "1" on every head node of KubeRay's.
    """
    value = os.environ.get(AUTOSCALER, "0").lower()
    return value == "true" or (value == "1" and KUBERAY not in os.environ)


def refuse_if_impossible(request: ResourceRequest, nodes: list[Resources], place: str) -> None:
    """Raise LaunchError unless these nodes, all of them free, could hold `request`."""
    if request.fits(nodes):
        return
    room = sum(request.capacity_on(node) for node in nodes)
    total = {key: sum(node.get(key, 0.0) for node in nodes) for key in SHOWN}
    raise LaunchError(
        f"launch: {request} can never start: {place} {show(total)} on {len(nodes)} "
        f"node{'s' * (len(nodes) != 1)}, room for {room}. "
        f"Use launch.workers={max(room, 1)}, fewer launch.cpus_per_worker, or a larger cluster."
    )
