"""Keys of samples from the paths of their files, labels from texts, and the names of classes."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path, PurePosixPath

from aae_dist.data.format.manifest import ClassMap, parse_classes
from aae_dist.errors import DataError
from aae_dist.storage import open_storage

_MISSING = frozenset(("", "nan", "-nan", "<na>", "#n/a", "#na", "null"))
"""Texts of a missing label, in lower case: what pandas and SQL write for a gap."""
_MISSING_NUMBER = frozenset(("na", "n/a", "none"))
"""Texts of a gap among numbers; among names they may be classes (no defect, Namibia)."""
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?", re.ASCII)
_INTEGER = re.compile(r"[0-9]{1,18}", re.ASCII)
_ANY_INTEGER = re.compile(r"[+-]?[0-9]+", re.ASCII)
_LIKE_A_NUMBER = re.compile(r"(?=.*([,'_ ]|[^\x00-\x7f]))[+-]?\d[\d.,'_ ]*")
"""10,0 and 1'000 and digits of other scripts: as names, 10,0 would be numbered before 2,0."""
_MAX_LABEL = 10**18
_MAX_KEY_BYTES = 200  # a path of 255 bytes per part is legal; keys are columns, names and legends
_SHOWN = 5


def keys_of(paths: Sequence[str]) -> list[str]:
    """Return the WebDataset key of each path: the path without its suffix, made legal and unique.

    A key ends at the first dot of its last part, so further dots become `_`, as do control
    characters and bytes that are no UTF-8. Paths that then have one key keep it with their suffix
    (`1_png`, `1_jpg`), and with a number if that is not enough.
    """
    keys = [_legal(path) for path in paths]
    doubled = {key for key, count in Counter(keys).items() if count > 1}
    taken = set(keys) - doubled
    for place, (path, key) in enumerate(zip(paths, keys, strict=True)):
        if key not in doubled:
            continue
        wanted = f"{key}_{PurePosixPath(path).suffix.lstrip('.') or 'file'}"
        number, unique = 1, wanted
        while unique in taken:
            number += 1
            unique = f"{wanted}_{number}"
        taken.add(unique)
        keys[place] = unique
    return keys


def _legal(path: str) -> str:
    parts = [part for part in path.split("/") if part not in ("", ".", "..")]
    parts[-1] = PurePosixPath(parts[-1]).stem.replace(".", "_")
    key = "".join("_" if unicodedata.category(c)[0] == "C" else c for c in "/".join(parts))
    if key.startswith("__"):  # readers skip members such as __meta__
        key = "_" + key.lstrip("_")
    while len(key.encode()) > _MAX_KEY_BYTES:
        key = key[1:].lstrip("/_")  # the end of a path tells more than its beginning
    return key or "_"


@dataclass(frozen=True)
class Labels:
    """Labels of samples, None for those without, and the names of classes where there are any."""

    numbers: list[int | None]
    classes: ClassMap = field(default_factory=dict)

    @property
    def num_missing(self) -> int:
        """Samples without a label where others have one; 0 where none has."""
        missing = self.numbers.count(None)
        return 0 if missing == len(self.numbers) else missing


def labels_of_texts(texts: Sequence[str], known: ClassMap | None, where: str) -> Labels:
    """Return the label of each text of a list.

    Whole numbers (also `7.0`) are themselves, other texts are the names of classes, which `known`
    or the order of their names numbers. A missing label (empty, NaN, -1) is None. Raises DataError
    if numbers and names are mixed, a number is not whole, or `known` lacks a name.
    """
    stripped = [text.strip() for text in texts]
    given = {text for text in stripped if text.lower() not in _MISSING}
    if known is not None:
        return _labels_of_known(stripped, known, where)
    numbers = {text for text in given if _NUMBER.fullmatch(text)}
    if numbers and given - numbers <= {t for t in given if t.lower() in _MISSING_NUMBER}:
        whole = {text: _whole(text) for text in numbers}
        if fractions := sorted(text for text, number in whole.items() if number is None):
            raise DataError(
                f"{where}: the label {fractions[0]!r:.40} is no whole number; give whole numbers, "
                "names, or the number of each in a file for --classes."
            )
        _refuse_two_spellings(filter(_INTEGER.fullmatch, numbers), f"{where}: the labels")
        found = [whole.get(text) for text in stripped]
        return Labels([None if number == -1 else number for number in found])
    if numbers:
        raise DataError(
            f"{where}: labels are numbers ({min(numbers)!r:.40}) and names "
            f"({min(given - numbers)!r:.40}); give one of both, or the number of each in a file "
            "for --classes."
        )
    if odd := sorted(text for text in given if _LIKE_A_NUMBER.fullmatch(text)):
        raise DataError(
            f"{where}: the label {odd[0]!r:.40} is like a number, and no number; write digits and "
            "a point, as in 1.0, or give the number of each in a file for --classes."
        )
    classes = {name: number for number, name in enumerate(sorted(given))}
    return Labels([classes.get(text) for text in stripped], classes)


def _labels_of_known(texts: Sequence[str], known: ClassMap, where: str) -> Labels:
    numbers, labels = set(known.values()), list[int | None]()
    absent = set[str]()
    for text in texts:
        number = _whole(text) if _NUMBER.fullmatch(text) else None
        if text in known:
            labels.append(known[text])
        elif number in numbers:
            labels.append(number)
        else:
            labels.append(None)
            if text.lower() not in _MISSING and number != -1:
                absent.add(text)
    refuse_unknown(absent, known, where)
    return Labels(labels, known)


def _whole(text: str) -> int | None:
    value = Decimal(text)
    is_whole = abs(value) < _MAX_LABEL and value == value.to_integral_value()
    return int(value) if is_whole else None


def refuse_unknown(names: Iterable[str], known: ClassMap, where: str) -> None:
    """Raise DataError if there are names; `known` is the class map that lacks them."""
    if absent := sorted(names):
        raise DataError(
            f"{where}: the class {absent[0]!r:.80} and {len(absent) - 1} more are not among the "
            f"{len(known)} of --classes ({shown(known)}); add them there, or remove their images."
        )


def number_classes(names: Iterable[str], known: ClassMap | None, where: str) -> ClassMap:
    """Return the number of each class, named by its folder.

    That of `known`; else names that are all integers are these integers, and others are numbered in
    the order of their names. Raises DataError if `known` lacks a name, or two names are one number.
    """
    ordered = sorted(names)
    if known is not None:
        refuse_unknown(set(ordered) - set(known), known, where)
        return known
    if not all(_ANY_INTEGER.fullmatch(name) for name in ordered):
        return {name: number for number, name in enumerate(ordered)}
    if other := next((name for name in ordered if not _INTEGER.fullmatch(name)), ""):
        raise DataError(
            f"{where}: all folders are named by integers, and {other:.40} is no label (0 to "
            "10**18 - 1); rename it, or give the number of each in a file for --classes."
        )
    _refuse_two_spellings(ordered, f"{where}: the folders")
    return {name: int(name) for name in sorted(ordered, key=int)}


def _refuse_two_spellings(integers: Iterable[str], what: str) -> None:
    """Raise DataError if two texts, such as 1 and 01, are one number: they may be two classes."""
    spelled: dict[int, str] = {}
    for text in sorted(integers):
        if (other := spelled.setdefault(int(text), text)) != text:
            raise DataError(f"{what} {other} and {text} are one number; rename one.")


def is_plain(classes: ClassMap) -> bool:
    """Return whether the names say no more than the numbers do."""
    return all(_INTEGER.fullmatch(name) and int(name) == n for name, n in classes.items())


def shown(classes: ClassMap) -> str:
    """Return the first names of classes, for messages."""
    more = ", ..." if len(classes) > _SHOWN else ""
    return ", ".join(f"{name!r:.40}" for name in list(classes)[:_SHOWN]) + more


def read_classes(path: Path | None) -> ClassMap | None:
    """Return the class map of a JSON file: a list of names, or an object of name: number."""
    if path is None:
        return None
    folder = open_storage(str(path.parent.absolute()))
    try:
        data = folder.read(path.name)
    except OSError as error:
        raise DataError(f"--classes {path}: cannot be read ({error.strerror}).") from None
    return parse_classes(data, f"--classes {path}")


def list_counts(counts: Mapping[str, int]) -> str:
    """Return 'n of a, m of b', the most frequent first."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    more = f", and {len(ordered) - _SHOWN} more" if len(ordered) > _SHOWN else ""
    return ", ".join(f"{number} {name}" for name, number in ordered[:_SHOWN]) + more
