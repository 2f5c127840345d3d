"""Every block of code of the documentation is run or checked, and so are commands in its text."""

import ast
import builtins
import re
from pathlib import Path

import pytest
from helpers.pages import PAGES, ROOT, blocks, commands, inline, problem_of, problem_of_trees

from aae_dist.config.schema import Value
from aae_dist.config.yaml import parse

WRITTEN = [page for page in PAGES if page.name not in ("CHANGELOG.md", "configuration.md")]
"""Pages written by hand that tell what holds today."""
LANGUAGES = {"", "bash", "dockerfile", "python", "yaml"}
RUN = {
    "README.md": "end_to_end/test_readme.py",
    "counts.md": "end_to_end/test_python_pages.py",
    "networks.md": "end_to_end/test_own_parts.py",
    "own-loop.md": "end_to_end/test_own_loop.py",
    "python.md": "end_to_end/test_python_pages.py",
    "start.md": "end_to_end/test_python_pages.py",
    "using.md": "end_to_end/test_python_pages.py",
}
"""Pages with Python, and the test that runs it."""
COMMAND = re.compile(r"^(?:aae-dist|make|pip|torchrun|srun) .*", re.MULTILINE)
OVERRIDE = re.compile(r"(?!sweep\.)[a-z_]+(\.[a-z_0-9]+)+=[^\s.]\S*")
FRAGMENT = re.compile(r"(run|data|model|posterior|prior|method|phases|train|launch): ?\{.*\}")
MISTAKE = re.compile(r"unknown key|unknown kind|should be|did you mean|there is no|renamed")

each_page = pytest.mark.parametrize("page", WRITTEN, ids=lambda page: str(page.relative_to(ROOT)))


@each_page
def test_commands_are_accepted_by_the_command_line(
    page: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = "\n".join(blocks(page, "")).replace("\\\n", " ")
    texts = [*blocks(page, "bash"), "\n".join(COMMAND.findall(plain))]
    for words in (words for text in texts for words in commands(text)):
        assert problem_of(words) is None, " ".join(words)


@each_page
def test_commands_in_the_text_name_verbs_and_options_that_exist(
    page: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for code in inline(page):
        if code.startswith(("aae-dist ", "make ")) and "..." not in code and "VERB" not in code:
            for words in commands(code):
                assert problem_of(words, is_whole=False) is None, code


@each_page
def test_keys_and_values_in_the_text_exist(page: Path) -> None:
    for code in inline(page):
        problem = None
        if OVERRIDE.fullmatch(code):
            problem = problem_of_trees([], [code])
        elif FRAGMENT.fullmatch(code) and "..." not in code:
            problem = problem_of_trees([parse(code, "text")])
        # What an example needs besides, such as another prior, is said in the text around it.
        assert not MISTAKE.search(problem or ""), f"{code}: {problem}"


@each_page
def test_yaml_is_a_configuration_or_a_part_of_one(page: Path) -> None:
    for text in blocks(page, "yaml"):
        lines = text.splitlines()
        if lines[0].startswith("metric:"):  # alternatives, one per line
            parts = [f"sweep: {{space: {{model.latent_dim: {{grid: [2, 4]}}}}, {line}}}"
                     for line in (line.partition(" #")[0] for line in lines)]  # fmt: skip
        elif "choice:" in text and "space:" not in text:
            parts = [f"sweep: {{num_trials: 3, search: random, space: {{{text.strip()}}}}}"]
        else:
            parts = [text]
        for part in parts:
            tree = parse(part, page.name)
            if "sweep" in tree:
                tree["sweep"] = {"name": Value("s", "test"), **tree["sweep"]}
            assert problem_of_trees([tree]) is None, part


@each_page
def test_python_of_a_page_is_run_and_uses_names_that_it_defines(page: Path) -> None:
    examples = blocks(page, "python")
    if not examples:
        return
    assert page.read_text().count("```python") == len(examples)
    runner = (ROOT / "tests" / RUN[page.name]).read_text()
    assert page.name in runner, f"{RUN[page.name]} runs it"
    tree = ast.parse("\n".join(examples))
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    known = {*vars(builtins), *(n.id for n in names if isinstance(n.ctx, ast.Store))}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            known |= {(a.asname or a.name).partition(".")[0] for a in node.names}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            known.add(node.name)
        elif isinstance(node, ast.arg):
            known.add(node.arg)
    assert not {n.id for n in names} - known


def test_blocks_name_a_language_that_is_checked() -> None:
    for page in PAGES:
        found = set(re.findall(r"^```(\w+)$", page.read_text(), re.MULTILINE))
        assert found <= LANGUAGES, page.name


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("aae-dist trains x.yaml", "No such command"),
        ("aae-dist sample run --colour --out x.png", "No such option"),
        ("aae-dist train configs/quickstart.yaml train.stepz=3", "unknown key"),
        ("aae-dist train configs/absent.yaml", "no file"),
        ("aae-dist evaluate run data.resize=squash", "should be"),
        ("make nothing", "no target"),
        ("python benchmarks/step.py --colour", "has no --colour"),
        ("pip install '.[rays]'", "no extra rays"),
        ("aae-dits train x.yaml", "an unknown program"),
    ],
)
def test_a_wrong_command_is_found(line: str, said: str) -> None:
    (words,) = commands(line)
    assert said in str(problem_of(words))
