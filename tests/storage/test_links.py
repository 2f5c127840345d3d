"""In a folder that others can write to, no write or removal follows a link that they placed."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from aae_dist.errors import LaunchError
from aae_dist.storage import Storage, open_storage

Write = Callable[[Storage, str], object]
WRITES: dict[str, Write] = {
    "write": lambda run, key: run.write(key, b"ours"),
    "create": lambda run, key: run.create(key, b"ours"),
    "replace": lambda run, key: run.replace(key, b"ours", expected=b"theirs"),
    "upload": lambda run, key: run.upload(key, Path(__file__)),
    "delete": lambda run, key: run.delete(key),
}


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    folder = tmp_path / "victim"
    folder.mkdir()
    (folder / "x.png").write_bytes(b"theirs")
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


@pytest.mark.timeout(10)
@pytest.mark.parametrize("read", ["read", "read_range", "stream"])
@pytest.mark.parametrize("kind", ["a pipe", "a link to a device"])
def test_what_is_no_file_is_not_waited_for(run: Path, read: str, kind: str) -> None:
    if kind == "a pipe":
        os.mkfifo(run / "summary.json")
    else:
        (run / "summary.json").symlink_to("/dev/zero")
    arguments = () if read == "read" else (0, 100)
    with pytest.raises(LaunchError, match=r"summary.json: it is a pipe or a device, not a file"):
        list(getattr(open_storage(str(run)), read)("summary.json", *arguments))


@pytest.mark.parametrize("name", WRITES)
@pytest.mark.parametrize("key", ["pictures/x.png", "a/pictures/x.png"])
def test_a_folder_that_is_a_link_is_not_written_through(
    run: Path, victim: Path, name: str, key: str
) -> None:
    link = run / Path(key).parent
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(victim)
    with pytest.raises(LaunchError, match=rf"^{link}: it is a link, .*Remove it\.$"):
        WRITES[name](open_storage(str(run)), key)
    assert [path.name for path in victim.iterdir()] == ["x.png"]
    assert (victim / "x.png").read_bytes() == b"theirs"


def test_a_child_that_is_a_link_is_not_written_through(run: Path, victim: Path) -> None:
    (run / "checkpoints").symlink_to(victim)
    child = open_storage(str(run)).child("checkpoints").child("deeper")
    with pytest.raises(LaunchError, match=f"^{run}/checkpoints: it is a link"):
        child.write("x.png", b"ours")
    with pytest.raises(LaunchError, match=f"^{run}/checkpoints: it is a link"):
        open_storage(str(run)).delete("checkpoints/x.png")
    assert [path.name for path in victim.iterdir()] == ["x.png"]


@pytest.mark.parametrize("name", ["write", "create", "upload", "delete"])
def test_a_file_that_is_a_link_is_replaced_or_refused_never_followed(
    run: Path, victim: Path, name: str
) -> None:
    (run / "summary.json").symlink_to(victim / "x.png")
    WRITES[name](open_storage(str(run)), "summary.json")
    assert (victim / "x.png").read_bytes() == b"theirs"


def test_the_lock_of_a_file_is_not_opened_through_a_link(run: Path, victim: Path) -> None:
    (run / "lock.json").write_bytes(b"theirs")
    (run / ".lock.json.aae-lock").symlink_to(victim / "made")
    with pytest.raises(LaunchError, match="it is a link"):
        open_storage(str(run)).replace("lock.json", b"ours", expected=b"theirs")
    assert not (victim / "made").exists()


def test_clearing_a_link_removes_the_link_alone(run: Path, victim: Path) -> None:
    (run / "step").symlink_to(victim)
    open_storage(str(run)).clear("step")
    assert not (run / "step").exists()
    assert (victim / "x.png").exists()


def test_a_run_folder_that_is_itself_a_link_and_links_that_are_read_still_work(
    run: Path, victim: Path
) -> None:
    (run / "link").symlink_to(victim)
    assert open_storage(str(run)).read("link/x.png") == b"theirs"
    folder = open_storage(str(run / "link"))
    folder.write("y/z", b"ours")
    assert (victim / "y" / "z").read_bytes() == b"ours"
    assert folder.read("y/z") == b"ours"


def test_no_descriptor_stays_open(run: Path) -> None:
    folder = open_storage(str(run))
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        folder.write("a/b/c", b"1")
        folder.create("a/b/c", b"1")
        folder.replace("a/b/c", b"2", expected=b"1")
        folder.delete("a/b/c")
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("below", ["", "runs/a"])
def test_a_link_to_nothing_is_called_that(tmp_path: Path, below: str) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "absent")
    storage = open_storage(str(tmp_path / "link" / below))
    with pytest.raises(LaunchError, match=rf"link: it is a link to {tmp_path}/absent, which") as e:
        storage.check_writable()
    assert "\n" not in str(e.value)
    with pytest.raises(LaunchError, match="link: it is a link to"):
        storage.write("a/b", b"")


def test_links_that_lead_to_themselves_are_called_that(tmp_path: Path) -> None:
    (tmp_path / "one").symlink_to(tmp_path / "two")
    (tmp_path / "two").symlink_to(tmp_path / "one")
    with pytest.raises(LaunchError, match=r"one: it is a link .* leads back to itself"):
        open_storage(str(tmp_path / "one" / "runs")).check_writable()
    with pytest.raises(LaunchError, match="leads back to itself"):
        open_storage(str(tmp_path / "one")).read("a")
