"""Facts about one machine, findings, green or red, and the rules that make them of the facts."""

import hashlib
import importlib.metadata
import os
import platform
import shutil
import socket
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from aae_dist.version import __version__

PACKAGES = ("torch", "numpy", "ray", "webdataset", "safetensors", "obstore", "pydantic")
"""Packages whose versions must be equal on all machines: ranks compute and read with them."""
SHARED_MEMORY = "/dev/shm"
GIB = 2**30
LEAST_SHARED_MEMORY = 1 * GIB
"""Docker's default is 64 MB; Ray's object store and decoded images are kept there."""
LEAST_SCRATCH = 1 * GIB
FULLEST = 0.95  # Ray stores no more objects on a file system that is fuller
MOST_SKEW_SECONDS = 5.0
"""Locks are renewed every 5 s and stale after 30 s; buckets refuse 15 min of skew."""
SLOWEST = 12.5e6
"""Bytes/s between machines: below 100 Mbit/s something is wrong with the network itself."""
WIDTH = 12


@dataclass(frozen=True)
class Space:
    """A file system."""

    path: str
    free: int
    total: int  # both in bytes


@dataclass(frozen=True)
class Machine:
    """What a rank finds on one machine."""

    host: str
    versions: dict[str, str]
    """By package; also `python`, and `code`: a hash of aae_dist's own files."""
    gpus: tuple[str, ...]  # names of the GPUs that this process sees
    nccl: str | None
    shared_memory: Space | None
    scratch: Space  # where temporary files and caches go


def collect_facts() -> Machine:
    """Return the facts about this machine; imports torch, which takes seconds."""
    gpus, nccl = _gpus()
    shared = _space(SHARED_MEMORY) if os.path.isdir(SHARED_MEMORY) else None
    return Machine(
        host=socket.gethostname(),
        versions=_versions(),
        gpus=gpus,
        nccl=nccl,
        shared_memory=shared,
        # Not tempfile.gettempdir(), which falls back to another folder when this one is full.
        scratch=_space(os.environ.get("TMPDIR") or "/tmp"),
    )


def _versions() -> dict[str, str]:
    # The code of aae_dist that runs here, which may differ from the installed package.
    found = {"python": platform.python_version(), "aae_dist": __version__}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found | {"code": code_hash()}


def code_hash() -> str:
    """Return a hash of the files of aae_dist that run here: two builds may share a version."""
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(str(path.relative_to(package)).encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def _gpus() -> tuple[tuple[str, ...], str | None]:
    import torch

    if not torch.cuda.is_available():
        return (), None
    names = tuple(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    return names, ".".join(map(str, torch.cuda.nccl.version()))


def _space(path: str) -> Space:
    usage = shutil.disk_usage(path)
    return Space(path, usage.free, usage.total)


@dataclass(frozen=True)
class Finding:
    """The outcome of one check."""

    subject: str
    text: str
    ok: bool
    advice: str = ""  # what to do; of a red finding only


def good(subject: str, text: str) -> Finding:
    """Return a green finding."""
    return Finding(subject, text, True)


def bad(subject: str, text: str, advice: str) -> Finding:
    """Return a red finding."""
    return Finding(subject, text, False, advice)


def lines(findings: Iterable[Finding], colours: bool) -> list[str]:
    """Return the lines to print; colours are for terminals."""
    found = []
    for finding in findings:
        mark = "ok " if finding.ok else "RED"
        if colours:
            mark = f"\033[{32 if finding.ok else 31}m{mark}\033[0m"
        advice = f" -> {finding.advice}" if finding.advice else ""
        found.append(f"{mark}  {finding.subject:<{WIDTH}} {finding.text}{advice}")
    return found


def same_versions(machines: Sequence[Machine]) -> Iterator[Finding]:
    """Compare packages over all machines with what most of them have; of a tie, with the first."""
    first = machines[0]
    different = []
    for name in {name: None for machine in machines for name in machine.versions}:
        versions = [machine.versions.get(name, "unknown") for machine in machines]
        usual = Counter(versions).most_common(1)[0][0]
        has_it = machines[versions.index(usual)].host
        different += [
            f"{name} {version} on {machine.host}, {usual} on {has_it}"
            for machine, version in zip(machines, versions, strict=True)
            if version != usual
        ]
    if different:
        yield bad("versions", "; ".join(different), "use one image on all nodes, by its digest")
        return
    shown = ", ".join(f"{n} {first.versions[n]}" for n in ("aae_dist", "torch", "ray", "python"))
    yield good("versions", f"{shown} on {count(len(machines), 'machine')}")


def gpus(machines: Sequence[Machine], wanted: float) -> Iterator[Finding]:
    """Check that each machine that trains sees a GPU if ranks want one, and all the same kind."""
    kinds = {name for machine in machines for name in machine.gpus}
    without = [machine.host for machine in machines if not machine.gpus]
    if wanted and without:
        advice = "install the driver and the device plugin, and take the CUDA image"
        yield bad("gpus", f"no GPU that torch can use on {', '.join(without)}", advice)
    elif len(kinds) > 1:
        advice = "name one kind in workers.nodes: the slowest sets the pace, and results differ"
        yield bad("gpus", f"different GPUs: {', '.join(sorted(kinds))}", advice)
    elif kinds:
        yield good("gpus", f"{kinds.pop()} on each, NCCL {machines[0].nccl}")
    else:
        yield good("gpus", "none, and none is requested")


def shared_memory(machines: Sequence[Machine]) -> Iterator[Finding]:
    """Check the size of /dev/shm."""
    advice = "docker run --shm-size=8g; in Kubernetes an emptyDir of medium Memory"
    totals = [(m.host, m.shared_memory.total if m.shared_memory else 0) for m in machines]
    for host, total in totals:
        if total < LEAST_SHARED_MEMORY:
            text = f"{size(total) if total else 'none'} on {host}"
            yield bad("/dev/shm", f"{text}, {size(LEAST_SHARED_MEMORY)} are needed", advice)
    if (least := min(total for _, total in totals)) >= LEAST_SHARED_MEMORY:
        yield good("/dev/shm", f"at least {size(least)}")


def disk(machines: Sequence[Machine]) -> Iterator[Finding]:
    """Check that there is room for temporary files."""
    full = [(m.host, m.scratch) for m in machines if is_full(m.scratch)]
    for host, space in full:
        text = f"{size(space.free)} of {size(space.total)} free in {space.path} on {host}"
        yield bad("disk", text, "free some, or give the pods more ephemeral storage")
    if not full:
        least = min((m.scratch for m in machines), key=lambda space: space.free)
        yield good("disk", f"at least {size(least.free)} free in {least.path}")


def is_full(space: Space) -> bool:
    """Return whether Ray, or a checkpoint, would run out of room there."""
    return space.free < LEAST_SCRATCH or space.free < (1 - FULLEST) * space.total


def clocks(offsets: Mapping[str, float]) -> Iterator[Finding]:
    """Compare clocks: seconds by which each host is ahead of the asking machine."""
    wrong = {host: o for host, o in offsets.items() if abs(o) > MOST_SKEW_SECONDS}
    for host, offset in wrong.items():
        text = f"{host} is {abs(offset):.1f} s {'ahead' if offset > 0 else 'behind'}"
        advice = "start time synchronisation there (chrony): locks and buckets go by the clock"
        yield bad("clocks", text, advice)
    if not wrong:
        most = max((abs(o) for o in offsets.values()), default=0.0)
        yield good("clocks", f"within {most:.2f} s")


def network(seconds: Mapping[int, float] | str, machines: int, backend: str) -> Iterator[Finding]:
    """Check the all-reduces between machines: seconds by bytes, or what went wrong."""
    if isinstance(seconds, str):
        text = f"ranks on {count(machines, 'machine')} cannot communicate ({backend}): {seconds}"
        advice = "set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME to the interface between them"
        yield bad("network", text, f"{advice}, and let the pods reach each other on all ports")
        return
    latency, bandwidth = fit(seconds)
    text = (
        f"all-reduce over {count(machines, 'machine')} ({backend}): {latency * 1e3:.2f} ms + "
        f"{bandwidth / 1e6:,.0f} MB/s; {size(max(seconds))} in {seconds[max(seconds)]:.2f} s"
    )
    if bandwidth < SLOWEST:
        yield bad("network", text, "check which interface is used: GLOO_/NCCL_SOCKET_IFNAME")
    else:
        yield good("network", text)


def fit(seconds: Mapping[int, float]) -> tuple[float, float]:
    """Return (latency in s, bandwidth in bytes/s) of the line through seconds by bytes.

    Least squares of relative errors: a kilobyte counts as much as 64 megabytes.
    """
    weights = {n: 1 / t**2 for n, t in seconds.items()}
    total = sum(weights.values())
    mean_n = sum(w * n for n, w in weights.items()) / total
    mean_t = sum(w * seconds[n] for n, w in weights.items()) / total
    spread = sum(w * (n - mean_n) ** 2 for n, w in weights.items())
    slope = sum(w * (n - mean_n) * (seconds[n] - mean_t) for n, w in weights.items()) / spread
    slope = max(slope, 1e-15)
    return max(mean_t - slope * mean_n, 0.0), 1 / slope


def size(number: float) -> str:
    """Return a number of bytes with a unit."""
    for unit in ("B", "KiB", "MiB"):
        if number < 1024:
            return f"{number:.0f} {unit}"
        number /= 1024
    return f"{number:.1f} GiB"


def count(number: int, noun: str) -> str:
    """Return '1 machine', '2 machines'."""
    return f"{number} {noun}{'s' * (number != 1)}"
