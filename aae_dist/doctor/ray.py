"""The doctor's checks on every machine of a Ray cluster."""

import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import ray
import torch
import torch.distributed as dist
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from aae_dist.doctor import probes
from aae_dist.doctor.findings import Finding, bad, good
from aae_dist.doctor.machine import Machine, look
from aae_dist.launch.failures import last_line

START_SECONDS = 180.0
"""Longest wait for a process on a machine to start and to import torch."""
GROUP_SECONDS = 60
"""Longest wait for all ranks to find each other."""
ANSWER_SECONDS = 2.0 * GROUP_SECONDS
"""Longest wait for one answer: a rank whose peer failed is busy for `GROUP_SECONDS` before."""
ROUNDS = 5


class Probe:
    """A process on one machine."""

    def look(self) -> Machine:
        """Return the facts about this machine."""
        return look()

    def now(self) -> float:
        """Return this machine's clock, in seconds of Unix time."""
        return time.time()

    def storage(self, uri: str) -> str:
        """Use the folder `uri`; return what failed, or ''."""
        return probes.storage(uri, socket.gethostname())

    def wandb(self, url: str) -> list[Finding]:
        """Ask the W&B server."""
        return list(probes.wandb(url))

    def address(self) -> str:
        """Return HOST:PORT where rank 0 may listen."""
        host = ray.util.get_node_ip_address()
        with socket.socket() as free:
            free.bind((host, 0))
            return f"{host}:{free.getsockname()[1]}"

    def all_reduce(self, address: str, rank: int, size: int, backend: str) -> dict[int, float]:
        """Join a process group and time it; return seconds by bytes."""
        device = torch.device("cuda", 0) if backend == "nccl" else torch.device("cpu")
        limit = timedelta(seconds=GROUP_SECONDS)
        dist.init_process_group(backend, f"tcp://{address}", limit, size, rank)
        try:
            return probes.all_reduce_seconds(device)
        finally:
            dist.destroy_process_group()


@dataclass(frozen=True)
class NodeProbe:
    """One live machine of the cluster, with its probe."""

    host: str
    probe: Any
    trains: bool
    """Whether ranks may run there: KubeRay's head node, for one, has no CPU for them."""


def places() -> list[NodeProbe]:
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


def facts(found: Sequence[NodeProbe]) -> tuple[list[tuple[NodeProbe, Machine]], list[Finding]]:
    """Return the machines that answered, and a finding for each that did not."""
    looking = [(place, place.probe.look.remote()) for place in found]
    ends = time.monotonic() + START_SECONDS
    answered, findings = [], []
    for place, reference in looking:
        try:
            left = max(1.0, ends - time.monotonic())
            answered.append((place, ray.get(reference, timeout=left)))
        except Exception as error:  # whatever another build raises there is what we look for
            findings.append(
                bad(
                    "machine",
                    f"{place.host} cannot run aae_dist: {last_line(error)}",
                    "use one image on all nodes; if its GPUs are taken, wait or use fewer",
                )
            )
    return answered, findings


def answer_or_reason(reference: Any) -> str:
    """Return the text that a probe answers, or why none came."""
    try:
        text: str = ray.get(reference, timeout=ANSWER_SECONDS)
    except Exception as error:  # of a node that died: the other machines' findings still count
        return last_line(error)
    return text


def offsets(found: Sequence[NodeProbe]) -> dict[str, float]:
    """Return by host how many seconds its clock is ahead of ours; the shortest question counts."""
    ahead = {}
    for place in found:
        best = float("inf")
        for _ in range(ROUNDS):
            asked = time.time()
            try:
                then: float = ray.get(place.probe.now.remote(), timeout=ANSWER_SECONDS)
            except Exception:  # it died since it gave its facts: the probes that follow say so
                break
            answered = time.time()
            if answered - asked < best:
                best, ahead[place.host] = answered - asked, then - (asked + answered) / 2
    return ahead


def storage(found: Sequence[NodeProbe], uri: str) -> Iterator[Finding]:
    """Write, read and list from every machine, and see from here what they all wrote."""
    asked = [(place.host, place.probe.storage.remote(uri)) for place in found]
    failures = {host: answer_or_reason(reference) for host, reference in asked}
    advice = "give the pods the right to read, write, list and delete there"
    for host, failure in failures.items():
        if failure:
            yield bad("storage", f"{uri} from {host}: {failure}", advice)
    if any(failures.values()):
        return
    missing = sorted(set(failures) - probes.hosts_seen(uri))
    if missing:
        text = f"{uri}: what {', '.join(missing)} wrote is not to be seen here"
        yield bad("storage", text, "use s3:// (gs://, az://) or a mount that all nodes share")
        return
    hosts = f"{len(failures)} machine{'s' * (len(failures) != 1)}"
    yield good("storage", f"{uri}: written, read, listed, conditionally written by {hosts}")


def network(found: Sequence[NodeProbe], backend: str) -> dict[int, float] | str:
    """Return the seconds of all-reduces between the machines by bytes, or what went wrong."""
    try:
        address = ray.get(found[0].probe.address.remote(), timeout=ANSWER_SECONDS)
        asked = [
            place.probe.all_reduce.remote(address, rank, len(found), backend)
            for rank, place in enumerate(found)
        ]
        seconds: dict[int, float] = ray.get(asked, timeout=GROUP_SECONDS + START_SECONDS)[0]
    except Exception as error:  # gloo, NCCL and Ray raise many kinds
        return last_line(error)
    return seconds


def dashboard_url() -> str | None:
    """Return the address of the cluster's dashboard, None where none runs."""
    node: Any = ray._private.worker._global_node
    return f"http://{node.webui_url}" if node is not None and node.webui_url else None


def wandb_from(place: NodeProbe, url: str) -> list[Finding]:
    """Ask the W&B server from one machine: rank 0 may run on any."""
    try:
        answer: list[Finding] = ray.get(place.probe.wandb.remote(url), timeout=ANSWER_SECONDS)
    except Exception as error:
        return [bad("wandb", f"{place.host}: {last_line(error)}", "look into that machine's log")]
    return answer
