import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.shards import SIDE, write_shards
from helpers.trained import save_run

from aae_dist.cli import main


@pytest.mark.distributed
@pytest.mark.timeout(180)
def test_two_ranks_write_the_bytes_of_one_process(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    write_shards(tmp_path / "shards", (300, 20, 270))
    save_run(tmp_path / "run", shape=(1, SIDE, SIDE))
    argv = ["encode", str(tmp_path / "run"), str(tmp_path / "shards"), "--out"]
    assert main([*argv, str(tmp_path / "one")]) == 0
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*torchrun, "-m", "aae_dist", *argv, str(tmp_path / "two")],
        env={**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("590 samples of step 7 in 3 shards") == 1
    one, two = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        for name in ("one", "two")
    )
    assert one == two
