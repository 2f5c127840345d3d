"""Report words and names that tools/words.toml replaces, with file, line and the better word.

    python tools/check_words.py [PATH ...]

Without paths: the package, docs/ and README.md. The exit code is 1 when something is found.
"""

import ast
import io
import re
import sys
import tokenize
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
TABLES = tomllib.loads((ROOT / "tools" / "words.toml").read_text())
WORDS = [
    (re.compile(rf"\b(?:{pattern})\b", re.IGNORECASE), better)
    for pattern, better in TABLES["words"].items()
]
Finding = tuple[int, str, str]
"""Line, what stands there, what is better."""


def words_in(text: str) -> Iterator[Finding]:
    """Yield the replaced words of a text; a phrase may go over the end of a line."""
    flat = re.sub(r"\n[ \t]*(#[ \t]+)?", lambda gap: " " * len(gap.group()), text)
    single = re.sub(r" {2,}", lambda gap: " " + "\0" * (len(gap.group()) - 1), flat)
    offsets = [n for n, letter in enumerate(single) if letter != "\0"]
    compact = single.replace("\0", "")
    for pattern, better in WORDS:
        for match in pattern.finditer(compact):
            line = text.count("\n", 0, offsets[match.start()]) + 1
            yield line, match.group(), better


def names_in(source: str) -> Iterator[Finding]:
    """Yield the replaced identifiers of a module."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.NAME and token.string in TABLES["names"]:
            yield token.start[0], token.string, TABLES["names"][token.string]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            name = node.name.removeprefix("_")
            if name in TABLES["definitions"]:
                yield node.lineno, node.name, TABLES["definitions"][name]


def findings(path: Path) -> list[Finding]:
    """Return what is found in one file, by line."""
    text = path.read_text()
    found = list(words_in(text))
    if path.suffix == ".py":
        found += names_in(text)
        if path.stem in TABLES["modules"]:
            found.append((1, path.name, TABLES["modules"][path.stem]))
    return sorted(found)


def files_of(paths: list[Path]) -> Iterator[Path]:
    """Yield the files below `paths` that are read."""
    for path in paths:
        below = [path] if path.is_file() else sorted(path.rglob("*"))
        yield from (p for p in below if p.suffix in (".py", ".md", ".j2") and p.is_file())


def main(arguments: list[str]) -> int:
    """Print all findings and how many each file has; return 1 if there are any."""
    standard = [ROOT / "aae_dist", ROOT / "docs", ROOT / "README.md"]
    counts: Counter[str] = Counter()
    for path in files_of([Path(a).resolve() for a in arguments] or standard):
        shown = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
        for line, found, better in findings(path):
            print(f"{shown}:{line}: {found!r}: better {better}")
            counts[str(shown)] += 1
    if counts:
        print(f"{counts.total()} words or names in {len(counts)} files; see tools/words.toml")
    return int(bool(counts))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
