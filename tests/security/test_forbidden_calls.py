"""No call that runs what it reads: no pickle, no torch.load, no yaml.load, no eval, no shell."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(p for d in ("aae_dist", "tools", "benchmarks") for p in (ROOT / d).rglob("*.py"))
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
CALLS = {
    "eval",
    "exec",
    "get_checkpoint",  # Ray's checkpoints: our run folder is the only truth
    "ray.train.get_checkpoint",
    "train.get_checkpoint",
    "tune.get_checkpoint",
    "Tuner.restore",  # unpickles
    "tune.Tuner.restore",
    "os.popen",
    "os.system",
    "torch.load",
    "torch.jit.load",
    "torch.serialization.add_safe_globals",
    "yaml.load",
    "yaml.full_load",
    "yaml.unsafe_load",
}
FLAGS = {"shell", "allow_pickle", "weights_only"}


def dotted(node: ast.expr) -> str:
    """Return the name of what is called, with dots; "" for the result of an expression."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def problems(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.partition(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom):
            if (node.module or "").partition(".")[0] in MODULES:
                yield f"from {node.module}"
        elif isinstance(node, ast.Call):
            name = dotted(node.func)
            given = [f"{k.arg}={ast.unparse(k.value)}" for k in node.keywords if k.arg in FLAGS]
            if name in CALLS and "allow_pickle=False" not in given:
                yield name
            yield from {"shell=True", "allow_pickle=True", "weights_only=False"} & set(given)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_file_has_none(path: Path) -> None:
    assert list(problems(ast.parse(path.read_text()))) == []


def test_the_search_finds_them() -> None:
    text = "import pickle\nfrom dill import loads\ntorch.load(f)\nrun(c, shell=True)\neval('1')"
    text += "\ntune.Tuner.restore(p)\nray.train.get_checkpoint()"
    assert len(list(problems(ast.parse(text)))) == 7
