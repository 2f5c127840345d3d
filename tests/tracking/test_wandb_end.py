"""How a run ends in the eyes of W&B: what a sweep has stopped early is finished, not crashed."""

import struct
from pathlib import Path

import pytest

pytest.importorskip("wandb", reason="the engine's tests also pass without wandb")

from wandb.proto import wandb_internal_pb2

from aae_dist.tracking.wandb_sink import WandbSink

pytestmark = pytest.mark.run

BLOCK = 32 * 1024


def exit_codes(log: Path) -> list[int]:
    """Return the exit codes in a .wandb file: a LevelDB log of protocol buffers."""
    data, at, whole, found = log.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        if BLOCK - at % BLOCK < 7:
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a full record, or the last part of one
            record = wandb_internal_pb2.Record.FromString(whole)
            found += [record.exit.exit_code] if record.HasField("exit") else []
            whole = b""
    return found


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Runs that ended pruned and interrupted, in folders of these names, and the lines written."""
    folder, sinks = tmp_path_factory.mktemp("offline"), {}
    lines: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(folder))
        for state in ("pruned", "interrupted"):
            start = {
                **{"mode": "offline", "project": "tests", "entity": None, "group": "sweep"},
                **{"tags": [], "name": state, "id": state, "config": {}},
                **{"dir": str(folder / state), "init_seconds": 30.0, "finish_seconds": 20.0},
            }
            kept = "s3://b/run" if state == "pruned" else f"{folder}/a run"
            sinks[state] = WandbSink(
                start, folder / state, lines.append, lambda path: None, 50, kept_at=kept
            )
        for state, sink in sinks.items():
            sink.log({"step": 1, "loss/reconstruction": 1.0})
            sink.close({"step": 1}, state)
    return folder, lines


def test_a_pruned_trial_is_finished_and_an_interrupted_one_is_not(offline):
    folder, _ = offline
    codes = {
        state: exit_codes(next((folder / state).glob("wandb/offline-run-*/*.wandb")))
        for state in ("pruned", "interrupted")
    }
    assert codes == {"pruned": [0], "interrupted": [255]}


def test_an_offline_run_says_where_it_lies_and_how_to_upload_it(offline):
    folder, lines = offline
    names = [next((folder / s).glob("wandb/offline-run-*")).name for s in ("pruned", "interrupted")]
    assert lines == [
        f"W&B wrote offline, to s3://b/run/wandb/{names[0]}. Upload: copy that folder to this "
        f"machine, then wandb sync {names[0]}",
        f"W&B wrote offline, to {folder}/a run/wandb/{names[1]}. Upload: wandb sync "
        f"'{folder}/a run/wandb/{names[1]}'",
    ]
