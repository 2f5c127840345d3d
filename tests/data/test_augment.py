"""Augmentation: keyed by sample and epoch, equal to a slow version, the same on all ranks."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from aae_dist.config.sections.run import Augment
from aae_dist.data.loader import NUM_DRAWS, Augmenter, Batch, uniforms

GOLDEN = [0.25826436281204224, 0.827971875667572]
ALL = Augment(flip=True, crop=2, brightness=0.3, contrast=0.4, saturation=0.5)


def images(count: int, channels: int = 3) -> torch.Tensor:
    draw = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, channels, 7, 9), generator=draw, dtype=torch.uint8)


def changed(settings: Augment, numbers: list[int], epoch: int = 0) -> torch.Tensor:
    u = torch.from_numpy(uniforms(0, epoch, np.array(numbers)))
    return Augmenter(settings, 0, slice(0, len(numbers))).images(images(99)[numbers], u)


def test_a_sample_changes_equally_in_any_batch_and_differently_in_another_epoch() -> None:
    together = changed(ALL, [5, 6, 7, 8])
    alone = torch.cat([changed(ALL, [n]) for n in (5, 6, 7, 8)])
    assert torch.equal(together, alone)
    assert torch.equal(changed(ALL, [8, 5]), together[[3, 0]])
    assert not torch.equal(changed(ALL, [5, 6, 7, 8], epoch=1), together)


def test_draws_are_uniform_and_independent() -> None:
    u = uniforms(3, 2, np.arange(20_000))
    assert u.shape == (20_000, NUM_DRAWS)
    assert u.min() >= 0
    assert u.max() < 1
    assert np.allclose(u.mean(0), 0.5, atol=0.01)
    assert np.allclose(u.var(0), 1 / 12, atol=0.003)
    both = np.concatenate([u, uniforms(3, 3, np.arange(20_000)), np.roll(u, 1, axis=0)], 1)
    correlations = np.corrcoef(both.T) - np.eye(3 * NUM_DRAWS)
    assert np.abs(correlations).max() < 0.03


def test_draws_stay_what_they_are() -> None:
    # Golden: another order of operations would give resumed runs other images.
    assert uniforms(0, 0, np.array([0, 1]))[:, 0].tolist() == pytest.approx(GOLDEN)


def test_flip_and_crop_equal_a_loop_over_pixels() -> None:
    settings, numbers = Augment(flip=True, crop=2), list(range(40))
    got, originals = changed(settings, numbers), images(99)
    flips = 0
    for row, u in enumerate(uniforms(0, 0, np.array(numbers))):
        flip, down, right = u[0] < 0.5, int(u[1] * 5) - 2, int(u[2] * 5) - 2
        flips += flip
        for y in range(7):
            for x in range(9):
                source_x = (8 - x if flip else x) + right
                y0, x0 = min(max(y + down, 0), 6), min(max(source_x, 0), 8)
                assert torch.equal(got[row, :, y, x], originals[row, :, y0, x0]), (row, y, x)
    assert 5 < flips < 35


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_colour_keeps_what_it_should(name: str) -> None:
    got = changed(Augment(**{name: 0.5}), list(range(20))).float()
    originals = images(99)[:20].float()
    assert got.dtype == torch.float32
    assert not torch.allclose(got, originals, atol=20)
    if name == "contrast":  # the mean stays, but for what is cut off at black and white
        assert torch.allclose(got.mean((1, 2, 3)), originals.mean((1, 2, 3)), atol=8)
    if name == "saturation":
        grey = originals[:, :1].expand(-1, 3, -1, -1).to(torch.uint8)
        u = torch.rand(20, NUM_DRAWS)
        kept = Augmenter(Augment(saturation=0.5), 0, slice(0, 20)).images(grey, u)
        assert torch.equal(kept, grey)


def test_types_and_one_channel_pass() -> None:
    u = torch.rand(4, NUM_DRAWS)
    augmenter = Augmenter(ALL, 0, slice(0, 4))
    assert augmenter.images(images(4, 1), u).dtype == torch.uint8
    floats = torch.rand(4, 3, 5, 5)
    out = augmenter.images(floats, u)
    assert out.dtype == torch.float32
    assert float(out.min()) >= 0
    assert float(out.max()) <= 1


def test_ranks_change_their_rows_of_the_global_batch_as_one_rank_would() -> None:
    indices = np.array([3, 1, 4, 1, 5, 9])
    plan = SimpleNamespace(epoch=2, indices=indices)

    def run(rows: slice) -> torch.Tensor:
        batch = Batch(images(99)[indices[rows]], torch.zeros(6), torch.ones(6), plan)  # type: ignore[arg-type]
        (out,) = Augmenter(ALL, 7, rows).batches([batch])
        return out.images

    assert torch.equal(torch.cat([run(slice(0, 2)), run(slice(2, 6))]), run(slice(0, 6)))
