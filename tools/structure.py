"""Count the shape of the code and print it as a table, each figure beside its target.

    python tools/structure.py [FOLDER]

Code lines are lines that are neither blank, nor comment, nor docstring; a string that stands alone
under a field counts as a docstring. The exit code is 1 when a target is missed.
"""

import ast
import io
import statistics
import sys
import tokenize
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
SMALL_FILE = 15
"""Files up to this many lines, such as re-exports, say nothing of the size of a chapter."""
LONG_FILE = 450


@dataclass(frozen=True)
class SourceFile:
    """Line counts of one file, and the lengths of its functions."""

    path: Path
    lines: int
    code: int
    imports: int
    comments: int
    docstrings: int
    functions: tuple[int, ...]


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    value: float
    target: str
    reached: bool
    digits: int = 0


def count_file(path: Path) -> SourceFile:
    """Parse one file and count its lines by kind."""
    text = path.read_text()
    tree = ast.parse(text)
    docstrings = _lines_of(tree, _is_bare_string)
    imports = _lines_of(tree, lambda node: isinstance(node, ast.Import | ast.ImportFrom))
    skip = {tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    comments, with_code = set(), set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        span = range(token.start[0], token.end[0] + 1)
        if token.type == tokenize.COMMENT:
            comments.update(span)
        elif token.type not in skip:
            with_code.update(span)
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    return SourceFile(
        path,
        lines=text.count("\n"),
        code=len(with_code - docstrings),
        imports=len(imports),
        comments=len(comments - with_code),
        docstrings=len(docstrings),
        functions=tuple((n.end_lineno or n.lineno) - n.lineno + 1 for n in functions),
    )


def _is_bare_string(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _lines_of(tree: ast.AST, wanted: Callable[[ast.AST], bool]) -> set[int]:
    return {
        line
        for node in ast.walk(tree)
        if wanted(node) and isinstance(node, ast.stmt)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }


def table(files: list[SourceFile]) -> list[Row]:
    """Return the figures with their targets."""
    lines = sum(f.lines for f in files)
    code = sum(f.code for f in files)
    median = statistics.median(f.lines for f in files if f.lines > SMALL_FILE)
    folders = Counter(f.path.parent for f in files if f.path.name != "__init__.py")
    largest = max(folders.values())
    long_files = sum(f.lines > LONG_FILE for f in files)
    share = 100 * sum(f.imports for f in files) / code
    lengths = sorted(n for f in files for n in f.functions)
    return [
        Row("files", len(files), "at most 200", len(files) <= 200),
        Row("lines", lines, "at most 25,000", lines <= 25_000),
        Row(f"median lines of files over {SMALL_FILE}", median, "150 to 300", 150 <= median <= 300),
        Row("modules in the largest folder", largest, "at most 20", largest <= 20),
        Row(f"files over {LONG_FILE} lines", long_files, "0", long_files == 0),
        Row("import lines per 100 code lines", share, "at most 8", share <= 8, digits=1),
        Row("longest function, lines", lengths[-1], "at most 50", lengths[-1] <= 50),
        Row("median function, lines", statistics.median(lengths), "", True),
        Row("code lines", code, "", True),
        Row("comment lines", sum(f.comments for f in files), "", True),
        Row("docstring lines", sum(f.docstrings for f in files), "", True),
    ]


def main(folder: Path) -> int:
    """Print the table; return 1 when a target is missed."""
    files = [count_file(path) for path in sorted(folder.rglob("*.py"))]
    rows = table(files)
    print("| | counted | target |\n|---|---|---|")
    for row in rows:
        mark = "" if row.reached else " (missed)"
        print(f"| {row.name} | {row.value:,.{row.digits}f} | {row.target}{mark} |")
    return int(not all(row.reached for row in rows))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if sys.argv[1:] else ROOT / "aae_dist"))
