"""What benchmarks/conv.py shows, at a small size: convolutions win on images, in equal time."""

import importlib
import time
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_in_equal_time_convolutions_reconstruct_unseen_colour_images_better(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    conv = importlib.import_module("conv")
    monkeypatch.setattr(conv, "TURN_SECONDS", 1.0)
    torch.set_num_threads(1)
    data = conv.pack_colour_digits(tmp_path, 3000)
    assert data[0].image_shape == (3, 32, 32)
    assert len(data[0]) + len(data[1]) == 3000
    assert len(list((tmp_path / "files").glob("*/*.png"))) == 3000
    # CPU time of this process, in turns: what else the machine does counts for neither. With two
    # networks at play the error swings from step to step, so three moments are averaged.
    rows = conv.compare(["mlp", "conv"], 16, data, [24.0, 28.0, 32.0], time.process_time)
    error = {
        model: sum(row.error for row in rows if row.model == model) / 3 for model in ("mlp", "conv")
    }
    assert error["conv"] < error["mlp"], rows
