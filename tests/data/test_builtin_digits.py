"""The digits that the package ships, and the choice of a part of the samples of any data set."""

import numpy as np
import pytest

from aae_dist.config.sections.run import Data
from aae_dist.data import open_dataset
from aae_dist.utils.arrays import stratified


def test_shipped_validation_digits_are_like_the_training_digits() -> None:
    variances = {}
    for part in ("train", "validation"):
        url = f"builtin://digits/{part}"
        dataset = open_dataset(url, Data(train=url))
        batch = dataset.load(np.arange(len(dataset)))
        assert np.bincount(batch.labels).tolist() == [len(dataset) // 10] * 10
        variances[part] = float((batch.images.double() / 255).var(0).mean())
    # The first of each class of MNIST's test set, all of one source, have 0.0636 for 0.0673.
    assert abs(variances["validation"] / variances["train"] - 1) < 0.02


@pytest.mark.parametrize(("most", "total"), [(0, 0), (0, 5), (5, 0), (1, 9), (5, 5), (9, 5)])
def test_a_part_of_the_samples_is_as_large_as_asked_for_and_the_same_each_time(
    most: int, total: int
) -> None:
    chosen = stratified(most, total)
    assert len(chosen) == min(most, total)
    assert chosen.dtype == np.int64
    assert set(chosen.tolist()) <= set(range(total))
    assert (chosen == stratified(most, total)).all()
    if most >= total:
        assert chosen.tolist() == list(range(total))


def test_a_part_of_the_samples_has_no_period() -> None:
    chosen = stratified(2000, 8000)
    assert (np.diff(chosen) > 0).all()
    for stretch in np.array_split(chosen, 10):  # from everywhere
        assert stretch[-1] - stretch[0] < 810
    for period in (2, 4, 5, 8):
        shares = np.bincount(chosen % period) * period / len(chosen)
        assert abs(shares - 1).max() < 0.15
