"""`aae_dist.train` on samples in memory: the same run as on shards, resumable, exactly once."""

import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.arrays import digits, small
from helpers.equality import assert_bit_equal
from helpers.python_runs import interrupt_itself, train_slowly
from helpers.ranks import CONTEXT

import aae_dist
from aae_dist.data.arrays import Arrays, hold

pytestmark = pytest.mark.run

LOSSES = ("loss/", "prior_match/", "reconstruction/", "samples_seen")


def losses(result: aae_dist.TrainingResult) -> list[dict[str, float]]:
    return [{k: v for k, v in r.items() if k.startswith(LOSSES)} for r in result.history]


def test_samples_in_memory_and_packed_give_the_same_run_bit_for_bit(tmp_path: Path) -> None:
    x, y = digits()
    train, held_out = (x[:400], y[:400]), (x[400:], y[400:])
    here = aae_dist.train(
        small(tmp_path, run={"name": "a"}), train, validation=held_out, progress=False
    )
    shards = aae_dist.pack(train, tmp_path / "train")
    data = {"train": shards, "validation": aae_dist.pack(held_out, tmp_path / "validation")}
    packed = aae_dist.train(small(tmp_path, run={"name": "b"}, data=data), progress=False)
    assert losses(here) == losses(packed)
    assert len(here.history) == 6
    assert_bit_equal(here.uri, packed.uri, 24)


class StopAt12:
    def on_log(self, metrics: dict[str, float]) -> bool:
        return metrics["step"] == 12


def test_a_run_on_samples_in_memory_continues_on_their_shards(tmp_path: Path) -> None:
    x, _ = digits()
    whole = aae_dist.train(small(tmp_path, run={"name": "a"}), x, progress=False)
    config = small(tmp_path, run={"name": "b"})
    assert aae_dist.train(config, x, [StopAt12()], progress=False).step == 12
    shards = aae_dist.pack(x, tmp_path / "train")
    assert aae_dist.pack(x, tmp_path / "train") == shards
    config = small(tmp_path, run={"name": "b"}, data={"train": shards})
    assert aae_dist.train(config, progress=False).step == 24
    assert_bit_equal(f"{tmp_path}/b", whole.uri, 24)


def test_vectors_are_packed_as_arrays(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(300, 5))
    model = {"decoder_output": "linear"}
    here = aae_dist.train(small(tmp_path, run={"name": "a"}, model=model), x, progress=False)
    data = {"train": aae_dist.pack(x, tmp_path / "train"), "image_keys": ["npy"]}
    config = small(tmp_path, run={"name": "b"}, model=model, data=data)
    assert losses(here) == losses(aae_dist.train(config, progress=False))
    assert here.run.encode(x.astype(np.float32)).shape == (300, 2)


def test_every_sample_is_trained_on_once_per_epoch(tmp_path: Path) -> None:
    from aae_dist.config import load_config
    from aae_dist.data import BatchLoader, SampleOrder, open_dataset

    numbers = np.arange(130, dtype=np.float32)[:, None]
    arrays = Arrays(numbers[:, None, None], np.full(130, -1))
    items = ["run.name=x", f"data.train={hold(arrays)}", "train.steps=1"]
    data = open_dataset(arrays.url, load_config([], items).config.data)
    order = SampleOrder(data.manifest.counts, seed=3, global_batch_size=32, lanes=4)
    with BatchLoader(data, order, slice(0, 32), num_steps=10) as batches:
        seen = torch.cat([b.images[b.valid].flatten() for b in batches])
    for epoch in range(2):
        assert sorted(seen[130 * epoch : 130 * (epoch + 1)].tolist()) == list(range(130))


def test_a_killed_run_started_again_is_bit_equal(tmp_path: Path) -> None:
    process = CONTEXT.Process(target=train_slowly, args=(tmp_path,))
    process.start()
    first = tmp_path / "killed" / "checkpoints" / "step-000000008" / "MANIFEST.json"
    while not first.exists():
        assert process.is_alive()
        time.sleep(0.02)
    process.kill()
    process.join()
    again = small(tmp_path, run={"name": "killed"}, checkpoint={"every_steps": 4})
    result = aae_dist.train(again, digits(), progress=False)
    whole = aae_dist.train(small(tmp_path, run={"name": "whole"}), digits(), progress=False)
    assert_bit_equal(result.uri, whole.uri, 24)
    assert [r["step"] for r in result.history] == [4, 8, 12, 16, 20, 24]


def test_the_same_call_returns_at_once_and_other_data_are_refused(tmp_path: Path) -> None:
    x, y = digits(200)
    first = aae_dist.train(small(tmp_path), x, progress=False)
    assert aae_dist.train(small(tmp_path), x, progress=False).state == "already_finished"
    other = aae_dist.train(small(tmp_path), x[::-1].copy(), progress=False)
    assert other.uri != first.uri  # without a name the run is named by its data
    config = small(tmp_path, run={"name": "named"})
    aae_dist.train(config, x, progress=False)
    longer = small(tmp_path, run={"name": "named"}, train={"steps": 26})
    with pytest.raises(aae_dist.CheckpointError, match="other shards"):
        aae_dist.train(longer, x[::-1].copy(), progress=False)


def test_a_fraction_is_held_out_for_validation(tmp_path: Path) -> None:
    x, y = digits(500)
    result = aae_dist.train(small(tmp_path), (x, y), validation=0.4, progress=False)
    assert result.metrics["prior_match/num_samples"] == 200
    assert result.verdict["match"] in ("good", "fair", "poor")


@pytest.mark.usefixtures("pictures")
def test_a_result_shows_itself(tmp_path: Path) -> None:
    x, y = digits(500)
    result = aae_dist.train(small(tmp_path), (x, y), validation=0.4, progress=False)
    page = result._repr_html_()
    assert page.count("data:image/png;base64,") == len(result.pictures) == 4
    assert "C2ST" in page
    assert str(result.step) in repr(result)
    assert result.run.encode(x[:3]).shape == (3, 2)
    assert result.run.evaluate().metrics["prior_match/num_samples"] == 200
    pandas = pytest.importorskip("pandas")
    table = result.history.to_pandas()
    assert isinstance(table, pandas.DataFrame)
    assert list(table.index) == [4, 8, 12, 16, 20, 24]


class Dots(torch.utils.data.Dataset):
    def __init__(self, x: torch.Tensor, y: list[int]) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, int]:
        return self.x[number], self.y[number]


def test_a_torch_dataset_trains_as_its_arrays_do(tmp_path: Path) -> None:
    x, y = digits(200)
    config = small(tmp_path)
    of_arrays = aae_dist.train(config, (x, y), progress=False)
    of_dataset = aae_dist.train(config, Dots(torch.from_numpy(x), y.tolist()), progress=False)
    assert of_dataset.uri == of_arrays.uri
    assert of_dataset.state == "already_finished"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_saves_and_returns(tmp_path: Path, number: int) -> None:
    ends = CONTEXT.Queue()
    process = CONTEXT.Process(target=interrupt_itself, args=(tmp_path, int(number), ends))
    process.start()
    if number == signal.SIGINT:
        assert ends.get(timeout=150) == ("interrupted", 4)
    process.join()
    # After SIGTERM the process ends as it would have without a run.
    assert process.exitcode == (0 if number == signal.SIGINT else -signal.SIGTERM)
    result = aae_dist.train(small(tmp_path, run={"name": "stopped"}), digits(200), progress=False)
    assert (result.state, result.step) == ("finished", 24)
    assert [r["step"] for r in result.history] == [4, 8, 12, 16, 20, 24]


GIVEN = {"parts": [{"dims": 4, "prior": {"kind": "categorical"}, "given": "label"}, {"dims": 2}]}


def test_samples_in_memory_without_a_needed_label_are_left_out(tmp_path: Path) -> None:
    x, y = digits(200)
    config = small(tmp_path, model={"latent_dim": 6}, prior={"kind": "product", **GIVEN})
    message = r"x label, first .*: label \d; this run reads labels from 0 to 3"
    with pytest.raises(aae_dist.DataError, match=message):
        aae_dist.train(config, (x, y), progress=False)
    config["data"] = {"max_bad_fraction": 0.9}
    result = aae_dist.train(config, (x, y), progress=False)
    assert result.metrics["data/bad_samples"] == (y > 3).sum()
