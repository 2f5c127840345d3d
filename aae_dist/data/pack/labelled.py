"""A few labelled samples, and a training set without the other labels."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from hashlib import blake2b

from aae_dist.data.pack.sources import LABEL_FIELD, Fields, PackSource, SampleSet
from aae_dist.errors import DataError


def keep_labels(source: PackSource, num_labelled: int, seed: int) -> PackSource:
    """Return `source` with `num_labelled` labelled training samples, as many of each class.

    The set `labelled` holds them. `train` holds every sample, but labels of these alone, so that a
    run cannot read another one. Where the classes do not divide the number, the first ones have one
    sample more. The hash of a sample's place, keyed by `seed`, decides. DataError if samples have
    no labels, or a class too few.
    """
    train = source.sets["train"]
    chosen = _balanced(train.labels, num_labelled, seed)
    kept: dict[int, Fields] = {}

    def stripped() -> Iterator[Fields]:
        for number, fields in enumerate(train.samples):
            if number in chosen:
                kept[number] = fields
                yield fields
            else:
                yield {name: value for name, value in fields.items() if name != LABEL_FIELD}

    labelled = SampleSet(len(chosen), (kept.pop(number) for number in sorted(chosen)))
    sets = {
        "train": replace(train, samples=stripped()),  # written first, which fills `kept`
        "labelled": labelled,
        **{name: samples for name, samples in source.sets.items() if name != "train"},
    }
    return replace(source, sets=sets)


def _balanced(labels: list[int | None], num_labelled: int, seed: int) -> set[int]:
    """Return the places of the samples that keep their label."""
    key = seed.to_bytes(8, "big")
    places = defaultdict(list)
    for place, label in enumerate(labels):
        if label is not None:
            places[label].append(place)
    if not places or num_labelled < len(places):
        raise DataError(
            f"--labelled {num_labelled}: the training samples have {len(places)} classes; give at "
            "least one label per class."
            if places
            else "--labelled: the training samples have no labels of one number each."
        )
    each, more = divmod(num_labelled, len(places))
    chosen: set[int] = set()
    for rank, (label, found) in enumerate(sorted(places.items())):
        wanted = each + (rank < more)
        if len(found) < wanted:
            raise DataError(
                f"--labelled {num_labelled}: class {label} has {len(found)} training samples and "
                f"{wanted} are wanted; give a smaller number."
            )
        hashes = {
            place: blake2b(place.to_bytes(8, "big"), digest_size=8, key=key).digest()
            for place in found
        }
        chosen |= set(sorted(found, key=hashes.__getitem__)[:wanted])
    return chosen
