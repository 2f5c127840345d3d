"""What to do about a folder that was given as data and holds no shard itself."""

import os
import shlex
from collections.abc import Iterable, Iterator

from aae_dist.data.manifest import FILE_NAME, is_shard_name
from aae_dist.data.pack_sources import SUFFIXES
from aae_dist.storage import Storage, is_remote

MOST_NAMES = 5000
"""Names that are looked at in and below a local folder: a hint is not worth more."""
DEEPEST = 3
SHOWN = 5


def hint(storage: Storage, keys: Iterable[str]) -> str:
    """Return what a folder holds instead of shards, and what to do.

    Args:
        storage: the folder.
        keys: files in it and below, perhaps not all of them.
    """
    folders: set[str] = set()
    has_images = False
    for key in keys:
        folder, _, name = key.rpartition("/")
        if folder and (is_shard_name(name) or name == FILE_NAME):
            folders.add(folder)
        has_images = has_images or name.lower().endswith(SUFFIXES)
    if folders:
        more = ", ..." if len(folders) > SHOWN else ""
        return f"shards lie in {', '.join(sorted(folders)[:SHOWN])}{more}: name one of them"
    if has_images and is_remote(storage.uri):
        return "image files? `aae-dist data pack folder` makes shards of a local folder of them"
    if has_images:
        root = shlex.quote(storage.uri)
        return f"image files? `aae-dist data pack folder --root {root} --out shards` packs them"
    return "check the path"


def local_keys(folder: str) -> Iterator[str]:
    """Yield the first files in and below a local folder; what is hidden is passed over."""
    left = MOST_NAMES
    for place, folders, names in os.walk(folder):
        below = os.path.relpath(place, folder)
        if below != "." and below.count("/") + 1 >= DEEPEST:
            folders.clear()
        folders[:] = sorted(name for name in folders if not name.startswith("."))[:left]
        for name in names[:left]:
            if not name.startswith("."):
                yield name if below == "." else f"{below}/{name}"
        left -= len(names) + len(folders)
        if left <= 0:
            return
