"""Samples a second from shards: ours, stock webdataset, torchvision's ImageFolder, a plain read.

    python benchmarks/data.py [--samples 16000] [--rounds 3] [--kinds png28 jpeg64]

All sides read the same images: 28 x 28 grey PNG (the shipped digits) and 64 x 64 colour JPEG, in
tars that webdataset's ShardWriter wrote, and for ImageFolder in files. Each side runs in a process
of its own, in turns: one pass that decodes everything, then later passes. Stock webdataset decodes
to uint8 arrays with its own decoder ("l8", "rgb8"), shuffles 1000 samples and batches 256; ours is
the loader that training uses, batch 256, one permutation of the epoch, decoded samples kept. Each
clock starts before the data set is opened, ours with the manifest that `aae-dist data index` wrote.

Then what must not grow: time and memory to the first batch from 8 shards to a million of them (10
billion samples: the arithmetic of the order alone, no bytes are read), and the time to the first
batch of a run that resumes at 90 % of an epoch against one that starts.
"""

import argparse
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from timing import print_header
from webdataset import ShardWriter

from aae_dist.config.sections.run import Data
from aae_dist.data import BatchLoader, Dataset, SampleOrder, open_dataset, open_manifest
from aae_dist.data.format.reader import ShardReader
from aae_dist.data.index.build import index_folder

BATCH = 256
LANES = 32
SHARD_SAMPLES = 1000
LATER_PASSES = 3
SUFFIX = {"png28": "png", "jpeg64": "jpg"}


@dataclass(frozen=True)
class Took:
    """What a process measured of itself."""

    seconds: list[float]
    """Of each pass."""
    bytes: int
    """Peak of memory above what the process had before; that of worker processes not counted."""


def write_images(folder: Path, kind: str, count: int) -> None:
    """Write `count` images to folder/shards as tars and to folder/files as ImageFolder wants."""
    (folder / "shards").mkdir(parents=True)
    pattern = str(folder / "shards" / "%05d.tar")
    with ShardWriter(pattern, maxcount=SHARD_SAMPLES, verbose=0) as writer:
        for number, (data, label) in enumerate(_images(kind, count)):
            name = f"{number:07d}"
            writer.write({"__key__": name, SUFFIX[kind]: data, "cls": str(label).encode()})
            place = folder / "files" / str(label)
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{name}.{SUFFIX[kind]}").write_bytes(data)
    index_folder(folder / "shards")


def _images(kind: str, count: int) -> Iterator[tuple[bytes, int]]:
    shards = [ShardReader(shard) for shard in open_manifest("builtin://digits/train").shards]
    digits = [(r.fields(n)["png"], int(r.fields(n)["cls"])) for r in shards for n in range(len(r))]
    for number in range(count):
        png, label = digits[number % len(digits)]
        yield (png if kind == "png28" else _colour(png, number)), label


def _colour(png: bytes, seed: int) -> bytes:
    """Return the digit as a 64 x 64 JPEG in some colours, with noise as a camera has."""
    random = np.random.default_rng(seed)
    grey = np.asarray(Image.open(io.BytesIO(png)).resize((64, 64)), np.float32)
    colours = random.uniform(40, 215, (2, 3))
    image = colours[0] + (colours[1] - colours[0]) * grey[..., None] / 255
    noisy = np.clip(image + random.normal(0, 6, image.shape), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noisy).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def ours(folder: Path, kind: str, threads: int) -> list[float]:
    """Return the seconds of each pass of our loader."""
    settings = Data(train=str(folder / "shards"), decoded="memory")
    # Loading the decoders is done once in a process; the other sides have imported theirs as well.
    Dataset(open_manifest(settings.train), settings.model_copy(update={"decoded": "none"})).read(
        [0]
    )
    started = time.perf_counter()
    dataset = open_dataset(settings.train, settings)
    order = SampleOrder(dataset.manifest.counts, seed=0, global_batch_size=BATCH, lanes=LANES)
    steps = order.steps_per_epoch
    seconds = []
    num_steps = steps * (1 + LATER_PASSES)
    with BatchLoader(
        dataset, order, slice(0, BATCH), num_steps=num_steps, threads=threads
    ) as loader:
        seen = 0
        for step, batch in enumerate(loader, 1):
            seen += int(batch.valid.sum())
            if step % steps == 0:
                seconds.append(time.perf_counter() - started)
                started = time.perf_counter()
    assert seen == len(dataset) * (1 + LATER_PASSES)
    return seconds


def stock(folder: Path, kind: str, workers: int) -> list[float]:
    """Return the seconds of two passes of stock webdataset; it keeps nothing between them."""
    import webdataset

    shards = sorted(str(path) for path in (folder / "shards").glob("*.tar"))
    image = "l8" if kind == "png28" else "rgb8"
    data = webdataset.WebDataset(shards, shardshuffle=100, seed=0)
    data = data.shuffle(1000).decode(image).to_tuple(SUFFIX[kind], "cls").batched(BATCH)
    batches = webdataset.WebLoader(data, batch_size=None, num_workers=workers) if workers else data
    return [_timed(lambda: _count(len(images) for images, _ in batches)) for _ in range(2)]


def image_folder(folder: Path, kind: str, workers: int) -> list[float]:
    """Return the seconds of two passes of torchvision's ImageFolder under a DataLoader."""
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import Compose, Grayscale, PILToTensor

    grey = [Grayscale()] if kind == "png28" else []
    data = ImageFolder(str(folder / "files"), Compose([*grey, PILToTensor()]))
    batches = DataLoader(data, BATCH, shuffle=True, num_workers=workers)
    return [_timed(lambda: _count(len(images) for images, _ in batches)) for _ in range(2)]


def raw(folder: Path, kind: str, workers: int) -> list[float]:
    """Return the seconds that reading all bytes of the shards takes, from the page cache."""

    def read() -> None:
        for path in sorted((folder / "shards").glob("*.tar")):
            path.read_bytes()

    return [_timed(read) for _ in range(2)]


SIDES: dict[str, tuple[Callable[[Path, str, int], list[float]], int]] = {
    "ours": (ours, 1),
    "ours, 2 threads": (ours, 2),
    "webdataset": (stock, 0),
    "webdataset, 2 workers": (stock, 2),
    "ImageFolder": (image_folder, 0),
    "raw read": (raw, 0),
}


def _timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _count(sizes: Iterator[int]) -> None:
    assert sum(sizes) > 0


def run_side(name: str, folder: Path, kind: str) -> None:
    """Print what one side took, as JSON; in a process of its own."""
    torch.set_num_threads(1)
    side, workers = SIDES[name]
    before = _peak_bytes()
    seconds = side(folder, kind, workers)
    print(json.dumps({"seconds": seconds, "bytes": _peak_bytes() - before}))


def _peak_bytes() -> int:
    """Return the most memory that this process itself ever held.

    Not getrusage's ru_maxrss, which begins at that of the process that started this one.
    """
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def compare(folder: Path, kind: str, samples: int, rounds: int) -> None:
    """Print a table of all sides on one kind of image."""
    write_images(folder, kind, samples)
    found: dict[str, list[Took]] = {name: [] for name in SIDES}
    for number in range(rounds):
        for name in list(SIDES) if number % 2 == 0 else reversed(SIDES):
            found[name].append(_in_process(["--side", name, str(folder), kind]))
    stock_seconds = [min(each.seconds) for each in found["webdataset"]]
    print(f"{kind}, {samples} samples, medians of {rounds} rounds:\n")
    print("| side | first pass /s | later /s | first / stock | later / stock | peak MiB |")
    print("|---|---|---|---|---|---|")
    for name, runs in found.items():
        first = [each.seconds[0] for each in runs]
        later = [min(each.seconds[1:]) for each in runs]
        pairs = [
            statistics.median(s / mine for s, mine in zip(stock_seconds, side, strict=True))
            for side in (first, later)
        ]
        speeds = [samples / statistics.median(side) for side in (first, later)]
        memory = statistics.median(each.bytes for each in runs) / (1 << 20)
        print(
            f"| {name} | {speeds[0]:,.0f} | {speeds[1]:,.0f} | {pairs[0]:.2f} x | "
            f"{pairs[1]:.1f} x | {memory:.0f} |"
        )
    print()


def _in_process(arguments: list[str]) -> Took:
    command = [sys.executable, __file__, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    return Took(**json.loads(done.stdout.splitlines()[-1]))


def run_first_batch(num_shards: int, samples: int, part: float) -> None:
    """Print seconds and bytes to the first batch of a synthetic data set, as JSON."""
    # Warm what is done once in a process, whatever the data: imports, first calls.
    SampleOrder([10] * 8, seed=0, global_batch_size=BATCH, lanes=LANES, window=16).batch(0)
    before, started = _peak_bytes(), time.perf_counter()
    counts = np.full(num_shards, samples // num_shards, np.int64)
    window = 4 * samples // num_shards
    order = SampleOrder(counts, seed=0, global_batch_size=BATCH, lanes=LANES, window=window)
    order.batch(int(part * order.lane_length) // 8 * 8)
    seconds = time.perf_counter() - started
    print(json.dumps({"seconds": [seconds], "bytes": _peak_bytes() - before}))


def run_resume(folder: Path, part: float) -> None:
    """Print seconds from opening shards to the first batch at a part of the epoch, as JSON."""
    torch.set_num_threads(1)
    settings = Data(train=str(folder / "shards"), decoded="none")
    open_dataset(settings.train, settings).read([0])  # imports and decoders
    started = time.perf_counter()
    dataset = open_dataset(settings.train, settings)
    order = SampleOrder(dataset.manifest.counts, seed=0, global_batch_size=BATCH, lanes=LANES)
    position = int(part * order.lane_length) // 8 * 8
    with BatchLoader(dataset, order, slice(0, BATCH), position, num_steps=1) as loader:
        next(loader)
        seconds = time.perf_counter() - started
    print(json.dumps({"seconds": [seconds], "bytes": 0}))


def flatness(folder: Path, rounds: int) -> None:
    """Print what must not grow with the data set, or with the position in it."""
    print("| to the first batch | seconds | MiB |\n|---|---|---|")
    for shards, samples in ((8, 80_000), (1_000_000, 10_000_000_000)):
        for part in (0.0, 0.9):
            arguments = ["--first-batch", str(shards), str(samples), str(part)]
            runs = [_in_process(arguments) for _ in range(rounds)]
            seconds = statistics.median(run.seconds[0] for run in runs)
            memory = statistics.median(run.bytes for run in runs) / (1 << 20)
            where = f"{shards:,} shards, {samples:,} samples, at {part:.0%}"
            print(f"| order alone: {where} | {seconds:.3f} | {memory:.0f} |")
    pairs = [[_in_process(["--resume", str(folder), p]) for p in ("0.0", "0.9")] for _ in range(5)]
    times = [[run.seconds[0] for run in pair] for pair in pairs]
    ratio = statistics.median(late / early for early, late in times)
    print(f"| local shards, at 0% | {statistics.median(t[0] for t in times):.3f} | |")
    print(f"| local shards, at 90% | {statistics.median(t[1] for t in times):.3f} | |")
    print(f"\nresume at 90% / start: {ratio:.2f} (target: at most 1.2)")


def main() -> None:
    """Run all comparisons, or one side of one of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=16_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kinds", nargs="*", choices=list(SUFFIX), default=list(SUFFIX))
    parser.add_argument("--no-growth", action="store_true", help="leave out what must not grow")
    parser.add_argument("--side", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--first-batch", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--resume", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        return run_side(args.side[0], Path(args.side[1]), args.side[2])
    if args.first_batch:
        shards, samples, part = args.first_batch
        return run_first_batch(int(shards), int(samples), float(part))
    if args.resume:
        return run_resume(Path(args.resume[0]), float(args.resume[1]))
    print_header("Data")
    with tempfile.TemporaryDirectory() as folder:
        for kind in args.kinds:
            compare(Path(folder, kind), kind, args.samples, args.rounds)
        if not args.no_growth:
            write_images(Path(folder, "growth"), "png28", args.samples)
            flatness(Path(folder, "growth"), args.rounds)
    return None


if __name__ == "__main__":
    main()
