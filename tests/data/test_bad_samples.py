import json

import numpy as np
import pytest

from aae_dist.checkpoints.format import StateMetadata
from aae_dist.data import bad_samples
from aae_dist.data.bad_samples import BadSample, BadSamples, Limits
from aae_dist.errors import DataError

VALID = np.ones(8, np.bool_)


def bad(slot: int, sample: int, shard_samples: int = 0) -> BadSample:
    return BadSample(slot, "a.tar", sample, "k", "image", "no PNG", shard_samples)


def limits(**options: float) -> Limits:
    settings = {
        "num_samples": 100,
        "max_samples": None,
        "max_fraction": 1.0,
        "max_consecutive": 100,
    }
    return Limits(**{**settings, **options})  # type: ignore[arg-type]


def test_a_sample_counts_once_and_its_holes_each_time() -> None:
    found = BadSamples()
    assert found.add([bad(0, 3), bad(1, 4)], VALID, step=1, epoch=0)
    assert not found.add([bad(5, 3)], VALID, step=9, epoch=1)
    assert (found.num_samples, found.num_holes) == (2, 3)
    assert [(e["sample"], e["step"]) for e in found.entries] == [(3, 1), (4, 1)]


def test_a_lost_shard_counts_whole_and_its_listed_samples_not_twice() -> None:
    found = BadSamples()
    found.add([bad(0, 3)], VALID, 1, 0)
    assert found.add([bad(1, 7, 50), bad(2, 8, 50)], VALID, 2, 0)
    assert found.num_samples == 50
    assert [e["samples"] for e in found.entries] == [1, 49]
    assert not found.add([bad(0, 9)], VALID, 3, 0)


def test_a_lost_shard_whose_samples_are_all_listed_is_nothing_new_to_count() -> None:
    found = BadSamples()
    found.add([bad(0, 0), bad(1, 1)], VALID, 1, 0)
    found.add([bad(2, 0, 2)], VALID, 2, 0)
    assert found.num_samples == 2
    state = {"step": 2, "position": 4, "bad_samples": found.document()}
    assert StateMetadata.model_validate(state).bad_samples.entries[2].samples == 0


def test_what_a_checkpoint_keeps_continues_the_count_and_stays_as_it_is() -> None:
    found = BadSamples()
    found.add([bad(6, 3), bad(7, 4)], VALID, 1, 0)
    document = found.document()
    again = BadSamples(**document)
    again.add([bad(0, 5), bad(1, 3)], VALID, 2, 0)
    assert (again.num_samples, again.num_holes) == (3, 4)
    assert again.lines().startswith(found.lines())
    assert len(document["entries"]) == 2
    with pytest.raises(DataError, match="4 consecutive ones are bad"):
        again.check(limits(max_consecutive=3))


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"max_samples": 1}, "2 are bad, more than data.max_bad_samples=1"),
        ({"max_fraction": 0.019}, "2 of 100 are bad, more than the 1 that"),
        ({"max_consecutive": 1}, "2 consecutive ones are bad"),
    ],
)
def test_each_limit_ends_the_run_with_counts_by_reason(
    options: dict[str, float], problem: str
) -> None:
    found = BadSamples()
    found.add([bad(2, 3), bad(3, 4)], VALID, 1, 0)
    found.check(limits(max_samples=2, max_fraction=0.02, max_consecutive=2))
    with pytest.raises(DataError, match=problem) as caught:
        found.check(limits(**options))
    assert "2 x image, first a.tar, k: no PNG" in str(caught.value)


def test_a_good_slot_between_ends_a_row_and_a_masked_one_does_not() -> None:
    found = BadSamples()
    masked = VALID.copy()
    masked[1] = False
    found.add([bad(0, 1), bad(2, 2)], masked, 1, 0)
    with pytest.raises(DataError, match="2 consecutive"):
        found.check(limits(max_consecutive=1))
    other = BadSamples()
    other.add([bad(0, 1), bad(2, 2)], VALID, 1, 0)
    other.check(limits(max_consecutive=1))


def test_only_new_lines_are_written_and_together_they_are_the_list(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dumps, written = json.dumps, []

    def noted(entry: object) -> str:
        written.append(entry)
        return dumps(entry)

    monkeypatch.setattr(bad_samples.json, "dumps", noted)
    found = BadSamples()
    lines = found.lines()
    for step in range(50):
        holes = [bad(0, 2 * step), bad(1, 2 * step + 1), bad(2, 0)]
        new = found.add(holes, VALID, step, 0)
        assert new == 2
        lines += found.lines(new)
    assert len(written) == 100, "each entry once, however long the list is by then"
    assert lines == found.lines() == BadSamples(**found.document()).lines()


def test_more_than_can_be_listed_says_that_no_limit_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bad_samples, "MAX_LISTED", 2)
    found = BadSamples()
    found.add([bad(0, 1), bad(1, 2)], VALID, 1, 0)
    found.check(limits())
    found.add([bad(2, 3)], VALID, 2, 0)
    with pytest.raises(
        DataError, match="more than the 2 single ones that a run can list"
    ) as caught:
        found.check(limits())
    assert "raise that limit" not in str(caught.value)
    assert "write the shards again without them" in str(caught.value)
