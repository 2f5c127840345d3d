import numpy as np
import pytest

from aae_dist.data.order import permute, round_keys


@pytest.mark.parametrize("size", [1, 2, 3, 5, 64, 65, 1000, 4097])
def test_every_element_is_hit_once(size: int) -> None:
    image = permute(np.arange(size), size, round_keys(1, "any", size))
    assert np.array_equal(np.sort(image), np.arange(size))


def test_golden_vectors_hold_the_order_fixed_for_ever() -> None:
    # Changed numbers would change the order of every stored run: find the cause instead.
    assert permute(np.arange(10), 10, round_keys(0)).tolist() == GOLDEN_10
    assert permute(np.arange(5), 60_000, round_keys("order", 7, 3, "full")).tolist() == GOLDEN_60000
    far = np.array([0, 1, 9_999_999_999])
    assert permute(far, 10**10, round_keys(42, "far")).tolist() == GOLDEN_FAR


def test_any_element_can_be_asked_for_alone() -> None:
    keys = round_keys(3)
    whole = permute(np.arange(777), 777, keys)
    assert permute(np.array([500]), 777, keys)[0] == whole[500]


@pytest.mark.parametrize("size", [3, 5, 37])
def test_images_are_uniform_over_keys(size: int) -> None:
    trials = 200
    hits = np.zeros((size, size))
    for key in range(trials):
        hits[np.arange(size), permute(np.arange(size), size, round_keys(key, "uniform"))] += 1
    expected = trials / size
    chi_squared = float(((hits - expected) ** 2 / expected).sum())
    # Mean (size-1)^2, standard deviation sqrt(2) (size-1): five of them is far beyond chance.
    assert chi_squared < (size - 1) ** 2 + 5 * 2**0.5 * (size - 1)


GOLDEN_10 = [8, 2, 5, 3, 6, 7, 0, 9, 4, 1]
GOLDEN_60000 = [42176, 17600, 35524, 9439, 40449]
GOLDEN_FAR = [3744853676, 1158318255, 3868954309]
