"""Folders of images to pack: a sub-folder per class, and sets that are split already."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from aae_dist.data.format.manifest import ClassMap
from aae_dist.data.format.patterns import IMAGE_SUFFIXES
from aae_dist.data.pack import names
from aae_dist.data.pack.sources import Found, PackOptions, PackSource, image_files
from aae_dist.errors import DataError

SET_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""The set that a folder of this name, in lower case, holds."""


@dataclass(frozen=True)
class _Tree:
    """The image files of a folder, by their paths below it, and what else lies there."""

    root: Path
    images: list[Path]
    others: Counter[str] = field(default_factory=Counter)
    """Files of other suffixes, which are not packed."""

    def below(self, name: str) -> "_Tree":
        inner = [Path(*path.parts[1:]) for path in self.images if path.parts[0] == name]
        return _Tree(self.root / name, inner)


def folder_source(root: Path, options: PackOptions) -> PackSource:
    """Return the images in the sub-folders of `root`, labelled by the names of these.

    Names that are all integers are the labels; others are numbered in their order, or by
    `options.classes`. Images in `root` itself have no labels, if no sub-folder has images. Folders
    named train, val and test are sets, as is `options.validation_root`; one numbering serves all.
    Hidden files and folders (.ipynb_checkpoints, ._photo.jpg) are ignored, and a folder without
    images is no class. Images that lie deeper, or next to sub-folders with images, are a DataError.
    """
    tree = _read(root)
    given, trees = options.validation_root, {"train": tree}
    if given is not None:
        trees["validation"] = _read(given)
    elif folders := _sets(tree):
        trees = {name: tree.below(folder) for name, folder in folders.items()}
    classes = _classes(trees, options.known_classes, root)
    sets = {name: _found(each, classes) for name, each in trees.items()}
    if given is None:  # keys name the files from `root` on
        prefixes = {name: each.root.relative_to(root) for name, each in trees.items()}
        sets = {n: [f.moved(prefixes[n]) for f in found] for n, found in sets.items()}
    notes = [*_unused(trees, tree), *_only_elsewhere(sets, classes)]
    return image_files(sets, classes, options, notes)


def _read(root: Path) -> _Tree:
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; give a folder with a sub-folder for each class.")
    others = Counter[str]()
    images = sorted(_images(root, others))
    if not images:
        raise DataError(
            f"{root}: no {', '.join(IMAGE_SUFFIXES)} file in it or its sub-folders; "
            "give a folder with a sub-folder for each class."
            + (f" ({names.list_counts(others)} files are there.)" if others else "")
        )
    return _Tree(root, images, others)


def _images(root: Path, others: Counter[str]) -> Iterator[Path]:
    """Yield the paths, below `root`, of image files. A class may be a link to a folder."""
    links = [path for path in root.iterdir() if path.is_symlink() and path.is_dir()]
    for top in (root, *(link for link in links if not link.name.startswith("."))):
        for folder, folders, files in os.walk(top):  # follows no other link: none leads in a circle
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in files:
                path = Path(folder, name)
                if name[0] == ".":
                    continue
                if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file():
                    yield path.relative_to(root)
                else:
                    others[path.suffix.lower() or "files without a suffix"] += 1


def _sets(tree: _Tree) -> dict[str, str]:
    """Return the folder of each set, if all folders with images are sets and one is for training.

    DataError if two folders are one set.
    """
    folders = sorted({path.parts[0] for path in tree.images if len(path.parts) > 1})
    loose = any(len(path.parts) == 1 for path in tree.images)
    if loose or not all(name.lower() in SET_NAMES for name in folders):
        return {}
    found: dict[str, str] = {}
    for folder in folders:
        name = SET_NAMES[folder.lower()]
        if (other := found.setdefault(name, folder)) != folder:
            raise DataError(f"{tree.root}: {other} and {folder} are both the {name} set; keep one.")
    return found if "train" in found else {}


def _classes(trees: Mapping[str, _Tree], known: ClassMap | None, root: Path) -> ClassMap:
    """Return the numbers of the classes of all sets."""
    for tree in trees.values():
        _check_depth(tree)
    named = {
        name: {path.parts[0] for path in tree.images if len(path.parts) > 1}
        for name, tree in trees.items()
    }
    all_names = set().union(*named.values())
    if known is not None and not all_names:
        raise DataError(f"{root}: --classes names classes, and there is no folder of one; leave it")
    flat = [str(trees[name].root) for name, classes in named.items() if not classes]
    if flat and all_names:
        raise DataError(f"{flat[0]}: has no sub-folder of a class, and other sets have; make some.")
    return names.number_classes(all_names, known, str(root)) if all_names else {}


def _check_depth(tree: _Tree) -> None:
    deep = next((path for path in tree.images if len(path.parts) > 2), None)
    if deep is not None:
        raise DataError(
            f"{tree.root}: {deep.as_posix()} lies in a folder of a folder, so its class is not "
            f"clear; pack {tree.root / deep.parts[0]} by itself if that holds the classes, or list "
            "paths and labels for `pack csv`."
        )
    loose = [path.name for path in tree.images if len(path.parts) == 1]
    if loose and len(loose) < len(tree.images):
        raise DataError(
            f"{tree.root}: {loose[0]} and {len(loose) - 1} more lie next to the folders of the "
            "classes; move them into one, or remove them."
        )


def _found(tree: _Tree, classes: ClassMap) -> list[Found]:
    return [
        Found(tree.root / path, path.as_posix(), classes.get(path.parts[0]) if classes else None)
        for path in tree.images
    ]


def _unused(trees: Mapping[str, _Tree], tree: _Tree) -> Iterator[str]:
    others = sum((each.others for each in trees.values()), Counter(tree.others))
    if others and tree in trees.values():
        others -= tree.others
    if others:
        yield (
            f"warning: {sum(others.values())} files are not packed ({names.list_counts(others)}): "
            f"only {', '.join(IMAGE_SUFFIXES)} are"
        )


def _only_elsewhere(sets: Mapping[str, Sequence[Found]], classes: ClassMap) -> Iterator[str]:
    trained = {found.label for found in sets["train"]}
    absent = [name for name, number in classes.items() if number not in trained]
    for name in absent:
        if any(found.label == classes[name] for each in sets.values() for found in each):
            yield f"warning: the class {name!r:.80} has no training image, and other sets have some"
