"""Lists of objects in a bucket that also hold when keys in it are no legal names.

S3 takes keys such as `runs//stray`, `a/../b` or names with control characters; the client refuses
them, and with them the whole page of up to 1,000 keys. Such an object is left out, and reported
once; where others would be lost with it, there is an error that names it.
"""

import logging
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING

from obstore import exceptions

from aae_dist.errors import StorageError

if TYPE_CHECKING:
    from obstore import ObjectMeta
    from obstore.store import ObjectStore

logger = logging.getLogger(__name__)
_PATH = re.compile(r'path: "((?:[^"\\]|\\.)*)"')
_MOST = 1000  # illegal names in one listing


def list_objects(store: "ObjectStore", top: str, place: str) -> "list[ObjectMeta]":
    """Return the objects in folder `top` ('' is all) and below it; `place` is its address."""
    try:
        return [meta for page in store.list(top or None) for meta in page]
    except exceptions.InvalidPathError as error:
        problem = error
    # Folder by folder, so that an illegal name costs no more than its own folder's listing.
    try:
        found = store.list_with_delimiter(top or None)
    except exceptions.InvalidPathError:
        return list(_past_illegal(store, top, place, problem))
    below = [list_objects(store, folder, place) for folder in found["common_prefixes"] if folder]
    return [*found["objects"], *(meta for metas in below for meta in metas)]


def list_folders(store: "ObjectStore", top: str, place: str) -> list[str]:
    """Return the names of the folders directly in folder `top`, sorted."""
    try:
        found = store.list_with_delimiter(top or None)["common_prefixes"]
        return sorted(name for path in found if (name := path.rsplit("/", 1)[-1]))
    except exceptions.InvalidPathError as error:
        objects = _past_illegal(store, top, place, error)
        inside = [meta["path"][len(top) + 1 if top else 0 :] for meta in objects]
        return sorted({path.split("/", 1)[0] for path in inside if "/" in path})


def _past_illegal(
    store: "ObjectStore", top: str, place: str, error: Exception
) -> "Iterator[ObjectMeta]":
    """Yield the objects that follow illegal names directly in folder `top`."""
    for _ in range(_MOST):
        key = _key_of(error)
        after = _after(key, top)
        if after is None:
            raise StorageError(
                f"{place}: the key {key!r} is no legal name, and what stands near it cannot be "
                "listed. Rename or delete that object"
            ) from error
        _report(place, after.removesuffix("0") + key[len(after) - 1 :].split("/", 1)[0] + "/")
        try:
            # The offset itself is left out of the list, so it is asked for.
            yield from _object_at(store, after)
            for page in store.list(top or None, offset=after):
                yield from page
            return
        except exceptions.InvalidPathError as next_error:
            error = next_error
    raise StorageError(f"{place}: more than {_MOST} keys are no legal names. Delete them")


def _key_of(error: Exception) -> str:
    """Return the illegal key that the client's error names."""
    found = _PATH.search(str(error))
    text = found.group(1) if found else ""
    return re.sub(r"\\u\{([0-9a-f]+)\}", lambda m: chr(int(m.group(1), 16)), text)


def _after(key: str, top: str) -> str | None:
    """Return the first legal key behind all that begin as the illegal one.

    None where legal names may stand before it in the same folder: the client's page lost them.
    """
    inside = key[len(top) + 1 :] if top else key
    folder = f"{top}/" if top else ""
    # '/' is followed by '0'. Names that begin with one of the characters before it, such as '-',
    # are none of ours: runs, trials and shards begin with a letter or a digit.
    return f"{folder}0" if inside.split("/", 1)[0] in ("", ".", "..") else None


def _object_at(store: "ObjectStore", key: str) -> "Iterator[ObjectMeta]":
    try:
        yield store.head(key)
    except FileNotFoundError:
        return


@lru_cache(1024)
def _report(place: str, key: str) -> None:
    """Log once per process that an object is left out."""
    logger.warning(
        "%s: the key %r is no legal name: it is left out, as are keys there that begin with a "
        "character before '0', such as '-'. Rename or delete it",
        place,
        key,
    )
