"""The checks of a Ray cluster: facts and probes on each of its machines, jobs, Train and Tune."""

import os
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import ray
import torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from aae_dist.config import RunConfig
from aae_dist.doctor import probes, rules
from aae_dist.doctor.rules import Finding, Machine, bad, collect_facts, good
from aae_dist.errors import LaunchError
from aae_dist.launch.ending import last_line
from aae_dist.launch.ray import cluster

START_SECONDS = 180.0  # longest wait for a process on a machine to start and to import torch
GROUP_SECONDS = 60  # longest wait for all ranks to find each other
ANSWER_SECONDS = 2.0 * GROUP_SECONDS
"""Longest wait for one answer: a rank whose peer failed is busy for `GROUP_SECONDS` before."""
ROUNDS = 5
STATE_TRACKING = "RAY_TRAIN_ENABLE_STATE_TRACKING"


def check_cluster(config: RunConfig | None, is_sweep: bool) -> Iterator[Finding]:
    """Yield findings on all machines of RAY_ADDRESS's cluster; fewer without a configuration."""
    with cluster.connected():
        pairs, findings = collect(start_probes())
        yield from findings
        if not pairs:
            return
        request = cluster.request_of(config) if config else None
        yield from _check_nodes(pairs, request.per_worker.get("GPU", 0.0) if request else 0.0)
        if config is None or request is None:
            return
        try:
            cluster.check_request(request)
            yield good("resources", f"{request} fit")
        except LaunchError as error:
            yield bad("resources", str(error), "see `most` in the overlay's site.yaml")
        yield state_tracking(config)
        if is_sweep:
            yield empty_trial(config)
        nodes = [node for node, _ in pairs]
        yield from storage(nodes, config.run.storage)
        url = probes.wandb_server(config)
        yield from wandb_from(nodes[-1], url) if url else [probes.NO_WANDB]


def _check_nodes(pairs: "Sequence[tuple[NodeProbe, Machine]]", gpus: float) -> Iterator[Finding]:
    nodes, machines = [node for node, _ in pairs], [machine for _, machine in pairs]
    yield from rules.same_versions(machines)
    yield from rules.gpus([m for node, m in pairs if node.trains] or machines, gpus)
    yield from rules.shared_memory(machines)
    yield from rules.disk(machines)
    yield from rules.clocks(offsets(nodes))
    ranks = [node for node in nodes if node.trains] or nodes
    if len(ranks) == 1:
        yield good("network", "one machine trains: nothing to measure")
    else:
        backend = "nccl" if gpus else "gloo"
        yield from rules.network(network(ranks, backend), len(ranks), backend)
    head: Any = ray._private.worker._global_node
    if head is None or not head.webui_url:
        yield good("dashboard", "none runs")
    else:
        yield from probes.dashboard(f"http://{head.webui_url}")
        yield submission(f"http://{head.webui_url}")


class Probe:
    """A process on one machine."""

    def facts(self) -> Machine:
        return collect_facts()

    def now(self) -> float:
        return time.time()

    def storage(self, uri: str) -> str:
        return probes.storage(uri, socket.gethostname())

    def wandb(self, url: str) -> list[Finding]:
        return list(probes.wandb(url))

    def address(self) -> str:
        host = ray.util.get_node_ip_address()
        with socket.socket() as free:
            free.bind((host, 0))
            return f"{host}:{free.getsockname()[1]}"

    def all_reduce(self, address: str, rank: int, size: int, backend: str) -> dict[int, float]:
        """Join a process group and time it; return seconds by bytes."""
        device = torch.device("cuda", 0) if backend == "nccl" else torch.device("cpu")
        limit = timedelta(seconds=GROUP_SECONDS)
        torch.distributed.init_process_group(backend, f"tcp://{address}", limit, size, rank)
        try:
            return probes.all_reduce_seconds(device)
        finally:
            torch.distributed.destroy_process_group()


@dataclass(frozen=True)
class NodeProbe:
    """A live machine of the cluster, with the handle of its `Probe` actor."""

    host: str
    probe: Any
    trains: bool  # whether ranks may run there; a head of our manifests has no CPU for them


def start_probes() -> list[NodeProbe]:
    """Start a probe on each live machine; one with GPUs gets one of them."""
    found = []
    for node in ray.nodes():
        if node["Alive"]:
            here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            gpus = 1 if node["Resources"].get("GPU", 0) >= 1 else 0
            options = {"num_cpus": 0, "num_gpus": gpus, "scheduling_strategy": here}
            probe = ray.remote(Probe).options(**options).remote()
            trains = node["Resources"].get("CPU", 0) >= 1
            found.append(NodeProbe(node["NodeManagerHostname"], probe, trains))
    return found


def collect(found: Sequence[NodeProbe]) -> tuple[list[tuple[NodeProbe, Machine]], list[Finding]]:
    """Return the machines that answered, and a finding for each that did not."""
    asked = [(node, node.probe.facts.remote()) for node in found]
    ends = time.monotonic() + START_SECONDS
    answered, findings = [], []
    for node, reference in asked:
        try:
            left = max(1.0, ends - time.monotonic())
            answered.append((node, ray.get(reference, timeout=left)))
        except Exception as error:  # another build may raise anything: that is the finding
            text = f"{node.host} cannot run aae_dist: {last_line(error)}"
            advice = "use one image on all nodes; if its GPUs are taken, wait or use fewer"
            findings.append(bad("machine", text, advice))
    return answered, findings


def answer_or_reason(reference: Any) -> Any:
    """Return the answer of a probe, or why there is none."""
    try:
        return ray.get(reference, timeout=ANSWER_SECONDS)
    except Exception as error:  # of a node that died: the other machines' findings still count
        return last_line(error)


def offsets(found: Sequence[NodeProbe]) -> dict[str, float]:
    """Return the seconds by which each host's clock is ahead of ours; the fastest answer counts."""
    ahead = {}
    for node in found:
        best = float("inf")
        for _ in range(ROUNDS):
            asked = time.time()
            try:
                then: float = ray.get(node.probe.now.remote(), timeout=ANSWER_SECONDS)
            except Exception:  # it died after it gave its facts: later probes report that
                break
            answered = time.time()
            if answered - asked < best:
                best, ahead[node.host] = answered - asked, then - (asked + answered) / 2
    return ahead


def storage(found: Sequence[NodeProbe], uri: str) -> Iterator[Finding]:
    """Write, read and list on every machine; check that this one sees the files of all."""
    asked = [(node.host, node.probe.storage.remote(uri)) for node in found]
    failures = {host: answer_or_reason(reference) for host, reference in asked}
    advice = "give the pods the right to read, write, list and delete there"
    for host, failure in failures.items():
        if failure:
            yield bad("storage", f"{uri} from {host}: {failure}", advice)
    if any(failures.values()):
        return
    missing = sorted(set(failures) - probes.hosts_seen(uri))
    if missing:
        text = f"{uri}: files written by {', '.join(missing)} are not visible here"
        yield bad("storage", text, "use s3:// (gs://, az://) or a mount that all nodes share")
        return
    hosts = f"{len(failures)} machine{'s' * (len(failures) != 1)}"
    yield good("storage", f"{uri}: written, read, listed, conditionally written by {hosts}")


def network(found: Sequence[NodeProbe], backend: str) -> dict[int, float] | str:
    """Return the seconds of all-reduces between the machines by bytes, or what failed."""
    try:
        address = ray.get(found[0].probe.address.remote(), timeout=ANSWER_SECONDS)
        ranks, size = enumerate(found), len(found)
        asked = [n.probe.all_reduce.remote(address, rank, size, backend) for rank, n in ranks]
        seconds: dict[int, float] = ray.get(asked, timeout=GROUP_SECONDS + START_SECONDS)[0]
    except Exception as error:  # gloo, NCCL and Ray raise many kinds
        return last_line(error)
    return seconds


def wandb_from(node: NodeProbe, url: str) -> list[Finding]:
    """Ask the W&B server from one machine: rank 0 may run on any."""
    answer: list[Finding] | str = answer_or_reason(node.probe.wandb.remote(url))
    if isinstance(answer, str):
        return [bad("wandb", f"{node.host}: {answer}", "look into that machine's log")]
    return answer


def state_tracking(config: RunConfig) -> Finding:
    """Check that Ray's dashboard can show the run on its Train page."""
    if os.environ.get(STATE_TRACKING) not in ("1", "true"):
        text = f"off: {STATE_TRACKING}=1 on the head shows runs on the dashboard"
        return good("train page", text)
    from ray.train.v2._internal.state.schema import RunSettings

    from aae_dist.launch.ray.train import shown_config

    try:
        check: Any = RunSettings.__pydantic_validator__.validate_assignment
        check(RunSettings.model_construct(), "train_loop_config", shown_config(config))
    except ValueError as error:
        advice = f"unset {STATE_TRACKING} on the head: a run would fail at its start"
        return bad("train page", f"Ray refuses the configuration: {last_line(error)}", advice)
    return good("train page", "Ray's state tracking accepts the configuration")


def submission(url: str) -> Finding:
    """Submit a job that does nothing, as the submitter pod does: over HTTP, with the token."""
    from aae_dist.launch.submit.jobs import Jobs

    try:
        state = Jobs(url).run_nothing(START_SECONDS)
    except (LaunchError, OSError) as error:
        return bad("submission", str(error), "look into the head's log, and at the job's token")
    if state != "SUCCEEDED":
        text = f"a job that does nothing ends at {url} as {state or 'unfinished'}"
        return bad("submission", text, "look into the head's log: dashboard, JobSupervisor")
    return good("submission", f"{url} takes a job and runs it")


def empty_trial(config: RunConfig) -> Finding:
    """Run and save a trial that trains nothing."""
    from aae_dist.tune.trial import run_empty_trial

    host, failure = run_empty_trial(config)
    if failure:
        text = f"Ray Tune cannot run and save a trial: {failure}"
        return bad("sweeps", text, "look into the log of the trial's node")
    return good("sweeps", f"Ray Tune ran and saved a trial on {host}")
