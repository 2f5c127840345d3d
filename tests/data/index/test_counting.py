"""Counting without keeping: the same as from the whole file, in few requests or few bytes."""

import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from helpers.object_server import Fault, ObjectServer, serving
from helpers.shards import encoded, write_shards
from webdataset import TarWriter

from aae_dist.cli import main
from aae_dist.data.format.manifest import Shard
from aae_dist.data.format.tar import index_tar
from aae_dist.data.index import build
from aae_dist.data.index.build import RemoteBuffer, build_index, count_shard, open_manifest
from aae_dist.errors import DataError, ShardError
from aae_dist.storage import Entry, open_storage

pytestmark = pytest.mark.run  # waits for time-outs, servers or pictures


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectServer]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    with serving() as server:
        yield server


def tar_of(sizes: list[int]) -> bytes:
    """Return a tar with a member of each size."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for number, size in enumerate(sizes):
            info = tarfile.TarInfo(f"{number:05d}.bin")
            info.size = size
            archive.addfile(info, io.BytesIO(os.urandom(size)))
    return buffer.getvalue()


def ranges(server: ObjectServer, data: bytes) -> RemoteBuffer:
    server.files["/a.tar"] = data
    return RemoteBuffer(open_storage(server.address), Entry("a.tar", len(data)))


@pytest.mark.parametrize(
    "sizes",
    [
        [],
        [0, 1, 511, 512, 513],
        [100] * 3000,
        [5_000_000, 10, 3_000_000, 0, 70_000, 200_000],
        [63 * 1024] * 40,
    ],
)
def test_an_index_from_ranges_is_the_index_of_the_file(
    server: ObjectServer, sizes: list[int]
) -> None:
    data = tar_of(sizes)
    from_ranges, whole = index_tar(ranges(server, data)), index_tar(data)
    assert from_ranges == whole
    assert len(whole) == len(sizes)


def test_of_large_files_the_headers_alone_are_read(server: ObjectServer) -> None:
    data = tar_of([4_000_000] * 5)
    assert len(index_tar(ranges(server, data))) == 5
    assert sum(length for _, _, length in server.ranges) < 0.05 * len(data)


def test_small_files_are_read_through_in_few_requests(server: ObjectServer) -> None:
    data = tar_of([1000] * 10_000)
    assert len(index_tar(ranges(server, data))) == 10_000
    assert server.requests["/a.tar"] < 12
    assert sum(length for _, _, length in server.ranges) <= len(data)


@pytest.mark.parametrize("cut", [0, 511, 512, 100_000, 2_000_000])
def test_a_cut_is_seen_without_the_whole(server: ObjectServer, cut: int) -> None:
    server.files["/a.tar"] = tar_of([1_000_000, 10, 1_000_000])[:cut]
    with pytest.raises(ShardError, match=r"a\.tar: cut off at byte"):
        count_shard(Shard(server.address, "a.tar", -1, -1), None, None)


def serve(server: ObjectServer, folder: Path, counts: list[int], suffix: str = ".tar") -> str:
    for path in write_shards(folder, counts, suffix):
        server.files[f"/{path.name}"] = path.read_bytes()
    return f"{server.address}/{{000..{len(counts) - 1:03d}}}{suffix}"


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
def test_a_web_server_is_indexed(server: ObjectServer, tmp_path: Path, suffix: str) -> None:
    pattern = serve(server, tmp_path / "a", [3, 0, 2], suffix)
    address, manifest = build_index(pattern, tmp_path / "out.json")
    assert manifest.counts.tolist() == [3, 0, 2]
    assert all(shard.etag for shard in manifest.shards)
    assert open_manifest(address).id == manifest.id
    assert not list((tmp_path / "home" / "aae_dist-index").iterdir()), "nothing is left to go on"
    assert not (tmp_path / "home" / "aae_dist-shards").exists(), "no shard was kept"


def test_faults_do_not_change_counts(server: ObjectServer, tmp_path: Path) -> None:
    pattern = serve(server, tmp_path / "a", [30, 20, 10])
    faults = [Fault("status", 503), Fault("reset", 5000)]
    for name in list(server.files):
        server.faults[name] = list(faults)
    assert build_index(pattern, tmp_path / "out.json")[1].counts.tolist() == [30, 20, 10]


def test_a_stopped_index_resumes_and_sees_changes(
    server: ObjectServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pattern = serve(server, tmp_path / "a", [2] * 10)
    monkeypatch.setattr(build, "_THREADS", 1)
    whole = server.files["/007.tar"]
    server.files["/007.tar"] = whole[:700]
    with pytest.raises(DataError, match=r"007\.tar: cut off"):
        build_index(pattern, tmp_path / "out.json")
    assert server.requests["/009.tar"] == 1, "a damaged shard does not end the counting"
    server.files["/007.tar"] = whole
    server.files["/003.tar"] = write_shards(tmp_path / "b", [5])[0].read_bytes()
    server.requests.clear()
    _, manifest = build_index(pattern, tmp_path / "out.json")
    assert manifest.counts.tolist() == [2, 2, 2, 5, 2, 2, 2, 2, 2, 2]
    again = {path for path, n in server.requests.items() if n and path.endswith(".tar")}
    assert again == {"/003.tar", "/007.tar"}


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
def test_a_server_that_knows_no_ranges_is_indexed(
    server: ObjectServer, tmp_path: Path, suffix: str
) -> None:
    pattern = serve(server, tmp_path / "a", [30, 0, 200], suffix)
    server.faults["*"] = [Fault("whole")] * 999
    _, manifest = build_index(pattern, tmp_path / "out.json")
    assert manifest.counts.tolist() == [30, 0, 200]
    assert not (tmp_path / "home" / "aae_dist-shards").exists(), "no shard was kept"


def test_a_server_that_refuses_all_is_not_asked_for_each_shard(
    server: ObjectServer, tmp_path: Path
) -> None:
    [data] = [path.read_bytes() for path in write_shards(tmp_path / "a", [1])]
    server.files = {f"/{number:03d}.tar": data for number in range(300)}
    pattern = f"{server.address}/{{000..299}}.tar"
    server.faults["*"] = [Fault("status", 403)] * 999
    with pytest.raises(
        DataError, match="20 consecutive shards are unreachable; the rest was not tried"
    ):
        build_index(pattern, tmp_path / "out.json")
    assert sum(server.requests.values()) < 290


def test_an_executor_may_count(server: ObjectServer, tmp_path: Path) -> None:
    pattern = serve(server, tmp_path / "a", [2, 3] * 5)
    with ThreadPoolExecutor(3) as pool:
        _, manifest = build_index(pattern, tmp_path / "out.json", executor=pool)
    assert manifest.counts.tolist() == [2, 3] * 5


def test_verify_tells_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    paths = write_shards(tmp_path / "a", [6, 4, 5, 7])
    assert main(["data", "verify", str(tmp_path / "a")]) == 0
    assert capsys.readouterr().out == "4 shards, 22 good samples\nsound\n"
    build_index(str(tmp_path / "a"))
    paths[1].write_bytes(paths[1].read_bytes()[:3000])
    data = bytearray(paths[2].read_bytes())
    data[data.index(b"\x89PNG") + 1] = 0
    paths[2].write_bytes(data)
    paths[3].unlink()
    assert main(["data", "verify", str(tmp_path / "a"), "--json"]) == 2
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert "2 bad shards and 1 bad samples" in err
    assert (found["shards"], found["samples"], found["sound"]) == (4, 10, False)
    reasons = {
        url.rsplit("/", 1)[-1]: text.split(":")[0] for url, text in found["bad_shards"].items()
    }
    assert reasons == {"001.tar": "size", "003.tar": "missing"}
    assert found["bad_samples"] == {"image": 1}
    assert "002.tar, sample '000010': not a PNG" in found["examples"][0]


def test_verify_takes_unequal_sizes_until_one_is_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    (tmp_path / "a").mkdir()
    with TarWriter(str(tmp_path / "a/0.tar")) as writer:
        for number, side in enumerate((4, 4, 6, 9)):
            image = encoded(np.full((side, side + number % 2), number, np.uint8))
            writer.write({"__key__": f"{number}", "png": image})
        writer.write({"__key__": "cut", "png": encoded(np.zeros((8, 8), np.uint8))[:-20]})
    uri = str(tmp_path / "a")
    assert main(["data", "verify", uri]) == 2
    out = capsys.readouterr().out
    assert "1 shards, 4 good samples" in out
    assert "bad samples: 1 (image)" in out
    assert "3 of 5 images are not 4 x 4 pixels, as the first one" in out
    assert "data.image_size" in out
    assert main(["data", "verify", uri, "data.resize=none"]) == 2
    assert "bad samples: 4 (size)" in capsys.readouterr().out


def test_verify_without_a_manifest_lists_damaged_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    paths = write_shards(tmp_path / "a", [6, 4])
    paths[0].write_bytes(paths[0].read_bytes()[:3000])
    assert main(["data", "verify", str(tmp_path / "a")]) == 2
    out = capsys.readouterr().out
    assert "2 shards, 4 good samples\nbad shard: damaged: " in out


def test_verify_reports_also_where_not_one_sample_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    write_shards(tmp_path / "a", [20, 15], bad=range(35))
    for override in ("data.image_keys=[png]", "data.image_keys=[npy]"):
        assert main(["data", "verify", str(tmp_path / "a"), override, "--json"]) == 2
        found = json.loads(capsys.readouterr().out)
        assert (found["shards"], found["samples"], found["sound"]) == (2, 0, False)
        assert sum(found["bad_samples"].values()) == 35
    write_shards(tmp_path / "b", [40], bad=range(30))
    assert main(["data", "verify", str(tmp_path / "b"), "--json"]) == 2
    found = json.loads(capsys.readouterr().out)
    assert (found["samples"], found["bad_samples"]) == (10, {"image": 30})


def test_verify_of_empty_shards_alone_is_not_sound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    write_shards(tmp_path / "a", [0, 0])
    assert main(["data", "verify", str(tmp_path / "a")]) == 2
    out, err = capsys.readouterr()
    assert out == "2 shards, 0 good samples\nnot sound\n"
    assert "2 shards without a sample" in err


COUNT = """
import sys
from aae_dist.data.index.build import build_index
build_index(sys.argv[1], sys.argv[2])
"""


def test_a_killed_index_resumes(server: ObjectServer, tmp_path: Path) -> None:
    pattern = serve(server, tmp_path / "a", [2] * 30)
    server.faults["/020.tar"] = [Fault("stall", 0)] * 9
    command = [sys.executable, "-c", COUNT, pattern, str(tmp_path / "out.json")]
    counting = subprocess.Popen(command)
    journals = tmp_path / "home" / "aae_dist-index"
    for _ in range(600):
        lines = [p.read_text().count("\n") for p in journals.glob("*")] if journals.exists() else []
        if lines == [20]:
            break
        try:
            counting.wait(0.05)
        except subprocess.TimeoutExpired:
            continue
    counting.kill()
    counting.wait()
    server.faults.clear()
    server.requests.clear()
    assert build_index(pattern, tmp_path / "out.json")[1].counts.tolist() == [2] * 30
    assert not any(server.requests[f"/{n:03d}.tar"] for n in range(20))
