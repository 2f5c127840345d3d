"""Addresses as in `data.train`, resolved to folders and the names of shards in them."""

import glob
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import islice, product
from pathlib import Path

from aae_dist.data.format import manifest as manifests
from aae_dist.data.format.manifest import CLASSES_FILE, FILE_NAME, ClassMap, Manifest, is_shard_name
from aae_dist.errors import DataError, LaunchError, StorageError
from aae_dist.storage import Entry, Storage, check_key, is_remote, open_storage
from aae_dist.storage.base import WEB_SCHEMES, scheme_of

_MAX_EXPANDED = 2_000_000
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d{1,18})\.\.(\d{1,18})")
_GLOB = re.compile(r"[*?\[]")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
"""Suffixes of files that `aae-dist data pack` takes."""
_BUILTIN = "builtin://"
_BUILTIN_FOLDER = Path(__file__).parents[1] / "builtin"
MOST_NAMES = 5000  # names that are read in and below a local folder: a hint is not worth more
DEEPEST = 3
SHOWN = 5
MOST_LOOKUPS = 3  # shards of a pattern that are looked up before a run starts


@dataclass
class ShardSource:
    """Shards of one folder, in order, the manifest next to them, and names of classes, if any."""

    folder: str
    names: list[str] = field(default_factory=list)
    manifest: Manifest | None = None
    entries: Mapping[str, Entry] = field(default_factory=dict)
    """Size and tag of remote shards, by name, where a listing has them."""
    classes: ClassMap = field(default_factory=dict)


def find(urls: str | Sequence[str], *, use_manifests: bool = True) -> list[ShardSource]:
    """Return the shards of `urls`, in order: braces, globs, folders, manifests, builtin names."""
    sources: list[ShardSource] = []
    try:
        for url in [urls] if isinstance(urls, str) else urls:
            _check_unsigned(url)
            # A path that exists is taken as it is, whatever characters it has.
            literal = not is_remote(url) and os.path.lexists(os.path.expanduser(url))
            for text in [url] if literal else expand_braces(url):
                _add(sources, text, literal, use_manifests)
        for source in sources:
            if source.manifest is None and use_manifests:
                source.manifest = _read_manifest(open_storage(source.folder), FILE_NAME)
            source.classes = _classes_of(source)
    except LaunchError as error:
        raise DataError(str(error)) from error
    return sources


def check_present(urls: Iterable[str], *, look_here: bool) -> None:
    """Raise DataError for an address that names nothing; a few requests per address.

    An address that cannot be reached or read from here is skipped: another machine may have access.
    So are local paths unless `look_here`: other machines have them.
    """
    for url in urls:
        _check_unsigned(url)
        if url.startswith(_BUILTIN):
            _builtin(url)
        elif (is_remote(url) or look_here) and not _may_be_present(url):
            raise DataError(f"{url}: no such file or folder; check the path.")


def _check_unsigned(url: str) -> None:
    """Raise DataError for a web address with a query, such as a signature."""
    base, _, query = url.partition("?")
    if scheme_of(url) in WEB_SCHEMES and "=" in query:
        raise DataError(
            f"{base}?...: an address with a query is not supported: a signature in it runs out, "
            "and would be stored with the run. Use s3://, gs:// or az:// with credentials in the "
            "environment, or an address that needs none."
        )


def _may_be_present(url: str) -> bool:
    """Return False if none of the first shards of a pattern, nor a manifest, nor a folder exists.

    A data set with a manifest may lack a few shards, so one of several is enough.
    """
    if not is_remote(url) and os.path.lexists(os.path.expanduser(url)):
        return True
    try:
        return any(_exists(text) for text in islice(expand_braces(url), MOST_LOOKUPS))
    except StorageError:
        return True


def _exists(text: str) -> bool:
    pattern = _GLOB.search(text)
    base, _, name = text[: pattern.start() if pattern else None].rpartition("/")
    folder, names = text, [FILE_NAME]
    if pattern or is_shard_name(name) or name.endswith(".json"):
        folder = base or "/"
        names = [] if pattern else [name] if name.endswith(".json") else [name, FILE_NAME]
    storage = open_storage(folder, probe=True)
    if any(storage.size(each) is not None for each in names):
        return True
    if folder == text or pattern:
        return not storage.is_empty()
    return False


def expand_braces(text: str) -> Iterator[str]:
    """Yield `text` with {000..011} and {a,b} replaced by each of their values, left to right."""
    pieces = _BRACES.split(text)
    choices = [[p] if n % 2 == 0 else _choices(p, text) for n, p in enumerate(pieces)]
    total = 1
    for values in choices:
        total *= len(values)
    _check_size(total, text)
    return ("".join(parts) for parts in product(*choices))


def _choices(inside: str, text: str) -> Sequence[str]:
    found = _RANGE.fullmatch(inside)
    if found is None:
        return inside.split(",")
    low, high = found.groups()
    _check_size(int(high) - int(low) + 1, text)
    width = max(len(low), len(high)) if low.startswith("0") or high.startswith("0") else 0
    return [str(number).zfill(width) for number in range(int(low), int(high) + 1)]


def _check_size(size: int, text: str) -> None:
    if not 0 < size <= _MAX_EXPANDED:
        raise DataError(
            f"{text}: the braces stand for {size} names; use a range that rises, "
            f"with at most {_MAX_EXPANDED} names in all."
        )


def _add(sources: list[ShardSource], text: str, literal: bool, use_manifests: bool) -> None:
    """Append the shards that one address names: a shard, a manifest file, a glob, a folder."""
    if text.startswith(_BUILTIN):
        text = _builtin(text)
    if is_remote(text) and "://" not in text:
        raise DataError(
            f"{text!r:.200} is not supported; give a path or s3://, gs://, az://, https://."
        )
    if not is_remote(text):
        text = open_storage(text).uri  # absolute, '~' and file:// resolved
    found = None if literal else _GLOB.search(text)
    base, _, name = text[: found.start() if found else None].rpartition("/")
    if found:
        name = text[len(base) + 1 :]
        sources.append(_matching(base or "/", name, text))
    elif name.endswith(".json"):
        sources.append(_manifest_file(base or "/", name))
    elif is_shard_name(name):
        if not sources or sources[-1].manifest or sources[-1].folder != (base or "/"):
            sources.append(ShardSource(base or "/"))
        sources[-1].names.append(check_key(name))
    else:
        sources.append(_folder(text, use_manifests))


def _builtin(text: str) -> str:
    shipped = _BUILTIN_FOLDER.glob(f"*/*/{FILE_NAME}")
    known = sorted(p.parent.relative_to(_BUILTIN_FOLDER).as_posix() for p in shipped)
    name = text.removeprefix(_BUILTIN).strip("/")
    if name not in known:
        names = ", ".join(_BUILTIN + each for each in known)
        raise DataError(f"{text} is not a built-in data set. Use one of {names}.")
    return str(_BUILTIN_FOLDER / name)


def is_builtin(folder: str) -> bool:
    """Return whether a folder is one of this package's own data sets."""
    return not is_remote(folder) and Path(folder).resolve().is_relative_to(
        _BUILTIN_FOLDER.resolve()
    )


def _classes_of(source: ShardSource) -> ClassMap:
    """Return the class map of the manifest, else of a classes.json next to the shards or above.

    `data pack` writes one above the folders of its sets; what lies there may be of another kind.
    """
    folder = source.folder
    if source.manifest is not None and source.manifest.classes:
        return source.manifest.classes
    if folder.startswith(
        ("https:", "http:")
    ):  # a server may answer anything for a file that is absent
        return {}
    if not is_remote(folder) and not all((Path(folder) / name).exists() for name in source.names):
        return {}  # it is refused, and nothing else is looked at
    above, _, last = folder.rstrip("/").rpartition("/")
    for place in [folder, above] if last and above and not above.endswith("/") else [folder]:
        where = f"{place}/{CLASSES_FILE}"
        try:
            return manifests.parse_classes(open_storage(place).read(CLASSES_FILE), where)
        except (OSError, StorageError):
            continue
        except DataError:
            if place == folder:
                raise
    return {}


def _matching(folder: str, pattern: str, text: str) -> ShardSource:
    """Return the shards below `folder` whose path matches; '*' stays within one path part."""
    listed = open_storage(folder).list() if is_remote(folder) else []
    if is_remote(folder):
        names = [entry.key for entry in listed if _path_matches(entry.key, pattern)]
    else:
        names = glob.glob(pattern, root_dir=folder)
    shards = sorted(name for name in names if is_shard_name(name))
    if not shards:
        raise DataError(f"{text} matches no .tar or .tar.gz file; check the path and the pattern.")
    return ShardSource(folder, shards, entries=_entries(listed, shards))


def _path_matches(key: str, pattern: str) -> bool:
    parts, patterns = key.split("/"), pattern.split("/")
    return len(parts) == len(patterns) and all(map(fnmatchcase, parts, patterns))


def _manifest_file(folder: str, name: str) -> ShardSource:
    storage = open_storage(folder)
    manifest = _read_manifest(storage, name)
    if manifest is None:
        raise DataError(f"{storage.uri}/{name}: no such manifest; check the path.")
    names = [shard.name for shard in manifest.shards]
    place = manifest.shards[0].folder if manifest.shards else folder
    return ShardSource(place, names, manifest)


def _folder(text: str, use_manifest: bool) -> ShardSource:
    storage = open_storage(text)
    text = storage.uri  # without a '/' at its end, as in the manifest
    if not is_remote(text):
        _check_local_folder(text)
    manifest = _read_manifest(storage, FILE_NAME) if use_manifest else None
    if manifest is not None:
        return ShardSource(text, [shard.name for shard in manifest.shards], manifest)
    # One listing of a bucket has all keys below; a local tree may be the whole machine.
    listed = storage.list() if is_remote(text) else []
    if is_remote(text):
        keys = [entry.key for entry in listed]
    else:
        keys = [entry.name for entry in os.scandir(text) if entry.is_file()]
    names = sorted(key for key in keys if "/" not in key and is_shard_name(key))
    if not names:
        advice = hint(storage, keys if is_remote(text) else local_keys(text))
        raise DataError(f"{text}: no .tar or .tar.gz file in this folder; {advice}.")
    return ShardSource(text, names, entries=_entries(listed, names))


def _entries(listed: Sequence[Entry], names: Sequence[str]) -> dict[str, Entry]:
    wanted = set(names)
    return {entry.key: entry for entry in listed if entry.key in wanted}


def _check_local_folder(text: str) -> None:
    if not os.path.exists(text):
        raise DataError(f"{text}: no such file or folder; check the path.")
    if not os.path.isdir(text):
        raise DataError(f"{text} is no shard; give a .tar or .tar.gz file, or a folder of them.")
    if not os.access(text, os.R_OK | os.X_OK):
        raise DataError(f"{text}: no permission to read this folder; ask its owner for access.")


def _read_manifest(storage: Storage, name: str) -> Manifest | None:
    """Return the manifest file `name` in a folder, None when there is none."""
    where = f"{storage.uri}/{name}"
    try:
        data = storage.read(name)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except LaunchError:
        # Web servers of buckets answer 403, not 404, for a file that is absent.
        if storage.uri.startswith("https:"):
            return None
        raise
    return manifests.parse(data, where, storage.uri, may_point_elsewhere=not is_remote(storage.uri))


def hint(storage: Storage, keys: Iterable[str]) -> str:
    """Return advice on a folder without shards, from (perhaps not all) files in and below it."""
    folders: set[str] = set()
    has_images = False
    for key in keys:
        folder, _, name = key.rpartition("/")
        if folder and (is_shard_name(name) or name == FILE_NAME):
            folders.add(folder)
        has_images = has_images or name.lower().endswith(IMAGE_SUFFIXES)
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
    """Yield the first files in and below a local folder, without hidden ones."""
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
