"""Hooks of the documentation site: pages from outside of docs/, and links that lead to them."""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
PROJECT = {
    "README.md": "project/readme.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "CHANGELOG.md": "project/changelog.md",
    "SECURITY.md": "project/security.md",
    "cluster/README.md": "project/cluster.md",
    "configs/README.md": "project/configs.md",
}
"""Pages of the repository and their places in the site."""
_LINK = re.compile(r"(\[[^\]]*\])\(([^)\s]+)\)")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages of `PROJECT`."""
    for source, place in PROJECT.items():
        text = (ROOT / source).read_text()
        files.append(File.generated(config, place, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Point relative links, which hold in the repository, to pages of the site."""
    del config, files
    here = page.file.src_uri
    source = next((name for name, place in PROJECT.items() if place == here), f"docs/{here}")

    def moved(match: re.Match[str]) -> str:
        label, target = match.groups()
        name, hash_sign, anchor = target.partition("#")
        if not name or "://" in name or name.startswith("mailto:"):
            return match.group()
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), name))
        place = PROJECT.get(path)
        if place is None and path.startswith("docs/"):
            place = path.removeprefix("docs/")
        if place is None:  # a file of the repository that is no page
            return label.strip("[]")
        to = posixpath.relpath(place, posixpath.dirname(here) or ".")
        return f"{label}({to}{hash_sign}{anchor})"

    return _LINK.sub(moved, markdown)
