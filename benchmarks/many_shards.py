"""Many small shards in a bucket: counting them, and the start of a rank that has their manifest.

    python benchmarks/many_shards.py [--count 20000] [--start 100000] [--samples 10] [--delay-ms 0]

A server of its own, in a process of its own, answers from memory, so that the client is measured
and not the server: a few lines over asyncio, one answer computed per kind of request. All shards
have equal bytes. Counting has no manifest to read. A start is all that one rank does to its first
batch of 256 from its exec on: imports, manifest, order, downloads into an empty cache, decoding.

Memory is counted twice: what is resident, and what the process has written. The difference is pages
of torch's libraries, which all processes of a machine share.
"""

import argparse
import asyncio
import io
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import md5
from pathlib import Path

BATCH, LANES, WINDOW = 256, 32, 4096
_RANGE = re.compile(rb"range: bytes=(\d+)-(\d+)", re.IGNORECASE)
_TIME = "Last-Modified: Tue, 01 Jul 2025 00:00:00 GMT"
_PAGE = 1000  # keys per page of a listing, as in S3


class Answers:
    """The answers to requests for one bucket, each computed once."""

    def __init__(self, shard: bytes, num_shards: int, *, has_manifest: bool) -> None:
        from aae_dist.data.format.manifest import Shard, dump

        self.shard, self.num_shards, self.num_requests = shard, num_shards, 0
        self.etag = f'"{md5(shard, usedforsecurity=False).hexdigest()}"'
        self.known: dict[bytes, bytes] = {}
        if has_manifest:
            samples = shard.count(b".png")
            entries = [
                Shard("", self.name(n), samples, len(shard), self.etag) for n in range(num_shards)
            ]
            self.known[b"/b/manifest.json"] = self.found(dump(entries))

    def name(self, number: int) -> str:
        return f"{number:06d}.tar"

    def found(self, body: bytes, status: str = "200 OK", extra: str = "") -> bytes:
        head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nETag: {self.etag}\r\n{_TIME}"
        return f"{head}\r\n{extra}\r\n".encode() + body

    def to(self, head: bytes) -> bytes:
        """Return the answer to a request, given up to its empty line."""
        self.num_requests += 1
        path = head.split(b" ", 2)[1]
        wanted = _RANGE.search(head)
        is_shard = path.endswith(b".tar")
        key = wanted[0] if is_shard and wanted else b"*.tar" if is_shard else path
        answer = self.known.get(key)
        if answer is None:
            answer = self.known[key] = self.computed(path, is_shard, wanted)
        return answer

    def computed(self, path: bytes, is_shard: bool, wanted: "re.Match[bytes] | None") -> bytes:
        if is_shard and wanted:
            start, end = int(wanted[1]), min(int(wanted[2]) + 1, len(self.shard))
            extra = f"Content-Range: bytes {start}-{end - 1}/{len(self.shard)}\r\n"
            return self.found(self.shard[start:end], "206 Partial Content", extra)
        if is_shard:
            return self.found(self.shard)
        if b"list-type=2" not in path:
            return b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
        token = re.search(rb"continuation-token=(\d+)", path)
        first = int(token[1]) if token else 0
        last = min(first + _PAGE, self.num_shards)
        tag = f"<Size>{len(self.shard)}</Size><ETag>{self.etag}</ETag>"
        date = "<LastModified>2025-07-01T00:00:00.000Z</LastModified>"
        keys = [
            f"<Contents><Key>{self.name(n)}</Key>{tag}{date}</Contents>" for n in range(first, last)
        ]
        more = f"<NextContinuationToken>{last}</NextContinuationToken>"
        more = more if last < self.num_shards else ""
        is_cut = f"<IsTruncated>{str(bool(more)).lower()}</IsTruncated>"
        body = f"<ListBucketResult>{is_cut}{more}{''.join(keys)}</ListBucketResult>"
        return self.found(body.encode())


class Connection(asyncio.Protocol):
    """One connection: requests in, answers out, after a delay if there is one."""

    def __init__(self, answers: Answers, delay_seconds: float) -> None:
        self._answers, self._delay_seconds = answers, delay_seconds
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        *heads, self._rest = (self._rest + data).split(b"\r\n\r\n")
        for head in heads:
            answer = self._answers.to(head)
            if self._delay_seconds:
                loop = asyncio.get_running_loop()
                loop.call_later(self._delay_seconds, self._transport.write, answer)
            else:
                self._transport.write(answer)


async def serve(answers: Answers, delay_seconds: float) -> None:
    """Print the port, serve until a line arrives, and print requests and seconds of CPU."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(answers, delay_seconds), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    before = time.process_time()
    await loop.run_in_executor(None, sys.stdin.readline)
    print(answers.num_requests, time.process_time() - before, flush=True)


def shard_of(samples: int) -> bytes:
    """Return a shard of the first shipped digits."""
    import tarfile

    from aae_dist.data.format.reader import ShardReader
    from aae_dist.data.index.build import open_manifest

    reader = ShardReader(open_manifest("builtin://digits/train").shards[0])
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for number in range(samples):
            for suffix, data in reader.fields(number).items():
                info = tarfile.TarInfo(f"{number:06d}.{suffix}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


@contextmanager
def serving(args: argparse.Namespace, num_shards: int, kind: str) -> Iterator[list[float]]:
    """Serve from another process; the value becomes its requests, and their seconds of CPU."""
    command = [sys.executable, __file__, "--serve", kind, "--start", str(num_shards)]
    command += ["--samples", str(args.samples), "--delay-ms", str(args.delay_ms)]
    pipe = subprocess.PIPE
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(command, text=True, stdin=pipe, stdout=pipe) as server,
    ):
        assert server.stdin is not None
        assert server.stdout is not None
        os.environ |= {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{int(server.stdout.readline())}",
            "AWS_ACCESS_KEY_ID": "none",
            "AWS_SECRET_ACCESS_KEY": "none",
            "AWS_REGION": "us-east-1",
            "XDG_CACHE_HOME": folder,
        }
        used: list[float] = []
        yield used
        server.stdin.write("\n")
        server.stdin.flush()
        used += map(float, server.stdout.readline().split())


def memory_mib() -> dict[str, float]:
    """Return MiB of this process that are resident, and those that it has written."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    found = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines}
    # Not Private_Clean: unchanged pages of libraries, which a second process would share.
    return {"resident_mib": round(found["Rss"]), "written_mib": round(found["Private_Dirty"])}


def cpu_seconds() -> float:
    """Return the seconds of CPU that this process has used."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def run_count() -> dict[str, float]:
    """Count all shards of the bucket as `aae-dist data index` does."""
    from aae_dist.data.index.build import open_manifest
    from aae_dist.utils.text import no_progress

    cpu, began = cpu_seconds(), time.perf_counter()
    manifest = open_manifest("s3://b", show=no_progress)
    seconds, cpu, num = time.perf_counter() - began, cpu_seconds() - cpu, len(manifest.shards)
    return {
        "shards": num,
        "shards_per_second": round(num / seconds),
        "ms_cpu_per_shard": round(1e3 * cpu / num, 3),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def run_start(part: float) -> dict[str, float]:
    """Start as a rank does, at a part of the epoch, and take the first batch."""
    import torch

    torch.set_num_threads(1)
    import aae_dist.training.trainer  # noqa: F401 - all that a rank imports
    from aae_dist.config.sections.run import Data
    from aae_dist.data import BatchLoader, SampleOrder, open_dataset
    from aae_dist.data.cache.prefetch import ShardPrefetcher

    imports = {"imports_s_cpu": cpu_seconds()} | {
        f"imports_{k}": v for k, v in memory_mib().items()
    }
    data = open_dataset("s3://b", Data(train="s3://b", decoded="none"))
    order = SampleOrder(
        data.manifest.counts, seed=0, global_batch_size=BATCH, lanes=LANES, window=WINDOW
    )
    rows, position = slice(0, BATCH), int(part * order.lane_length) // 8 * 8
    shards = ShardPrefetcher.start(data, order, rows, rows, position)
    with BatchLoader(data, order, rows, position, shards=shards) as loader:
        assert next(loader).num_valid == BATCH
        seconds, cpu = time.clock_gettime(time.CLOCK_BOOTTIME) - _started(), cpu_seconds()
        return {"seconds": seconds, "s_cpu": cpu, **memory_mib(), **imports}


def _started() -> float:
    """Return when this process started, in seconds since the machine did."""
    ticks = Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19]
    return int(ticks) / os.sysconf("SC_CLK_TCK")


def _measure(what: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--measure", what]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Run both measurements, or one side of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20_000, help="shards to count; 0: none")
    parser.add_argument("--start", type=int, default=100_000, help="shards to start with; 0: none")
    parser.add_argument("--samples", type=int, default=10, help="samples per shard")
    parser.add_argument("--delay-ms", type=float, default=0.0, help="the server's delay per answer")
    parser.add_argument("--serve", choices=["listing", "manifest"], help=argparse.SUPPRESS)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        has_manifest = args.serve == "manifest"
        answers = Answers(shard_of(args.samples), args.start, has_manifest=has_manifest)
        return asyncio.run(serve(answers, args.delay_ms / 1e3))
    if args.measure:
        return print(
            json.dumps(run_count() if args.measure == "count" else run_start(float(args.measure)))
        )
    for title, num, kind, runs in (
        ("count", args.count, "listing", ["count"]),
        ("start", args.start, "manifest", ["0.0", "0.9"]),
    ):
        for run in runs if num else []:
            with serving(args, num, kind) as used:
                found = _measure(run)
            found["server_us_cpu_per_request"] = round(1e6 * used[1] / used[0])
            print(json.dumps({title: run, **{k: round(v, 3) for k, v in found.items()}}))
    return None


if __name__ == "__main__":
    main()
