"""The house's own rules, held over every file: no paths of one machine, nothing that runs what a file says."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from trimtab._version import VERSION

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted((ROOT / "trimtab").rglob("*.py"))
WRITTEN = sorted(
    path
    for path in (
        *(p for folder in ("trimtab", "tests", "bench", "examples", "docs", ".ci") for p in (ROOT / folder).rglob("*")),
        *ROOT.glob("*"),
        *ROOT.glob(".*"),
    )
    if path.is_file()
    and (path.suffix in {".py", ".md", ".toml", ".txt", ".yaml", ".json"} or path.name in {"Makefile", "run"})
)
LONGEST = 350
HOMES = "|".join(("work", "home", "root", "Users", "mnt", "opt", "data"))
PICKLING = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
RUNNING = {"eval", "exec", "__import__"}
UNSAFE = {"torch.load", "torch.export.load", "torch.jit.load", "os.system", "os.popen", "yaml.load", "builtins.eval"}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def unsafe(tree: ast.AST) -> list[str]:
    """What in a file could run code that another file holds."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name.split(".")[0] in PICKLING]
        elif isinstance(node, ast.ImportFrom):
            found += [node.module or ""] if (node.module or "").split(".")[0] in PICKLING else []
            found += [f"{node.module}.{a.name}" for a in node.names if f"{node.module}.{a.name}" in UNSAFE]
        elif isinstance(node, ast.Attribute) and dotted(node) in UNSAFE:
            found.append(dotted(node))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in RUNNING:
            found.append(node.func.id)
        elif isinstance(node, ast.keyword) and node.arg in {"allow_pickle", "shell"}:
            off = isinstance(node.value, ast.Constant) and node.value.value is False
            found += [] if off else [f"{node.arg}="]
    return found


def test_there_is_something_to_look_at():
    assert len(SOURCES) > 20
    assert len(WRITTEN) > len(SOURCES)


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_no_source_unpickles_or_evaluates(path):
    assert unsafe(ast.parse(path.read_text())) == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle", "from joblib import load", "eval('1')", "torch.load('x')", "from torch import load",
        "torch.export.load(p)", "numpy.load(p, allow_pickle=True)", "subprocess.run(c, shell=True)", "__import__(n)",
    ],
)  # fmt: skip
def test_the_rule_sees_what_it_forbids(line):
    assert unsafe(ast.parse(line))


def test_the_rule_lets_a_module_evaluate():
    assert unsafe(ast.parse("net.eval()\nnumpy.load(p, allow_pickle=False)")) == []


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_no_source_is_longer_than_a_reader_bears(path):
    assert len(path.read_text().splitlines()) < LONGEST


def test_no_file_names_a_place_on_one_machine():
    place = re.compile(rf"(?:^|[\s\"'`(=:])/(?:{HOMES})/\w", re.MULTILINE)
    assert place.search("see '/" + "home/somebody'")
    assert [name_of(p) for p in WRITTEN if place.search(p.read_text(encoding="utf-8"))] == []


def test_the_version_is_written_once():
    holders = [name_of(p) for p in SOURCES if f'"{VERSION}"' in p.read_text()]
    assert holders == ["trimtab/_version.py"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "version" not in project
    assert "version" in project["dynamic"]


def test_the_changelog_has_this_version():
    assert re.search(rf"^## .*\b{re.escape(VERSION)}\b", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_the_command_line_tells_the_same_version():
    command = [sys.executable, "-c", "from trimtab.cli import main; main()", "--version"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()[-1:]) == (0, [VERSION]), done.stderr


def test_importing_trimtab_does_not_import_the_heavy_optional_libraries():
    code = "import sys, trimtab; print(*sorted({'openvino', 'plotly', 'nncf', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_the_floors_hold():
    tool = Path(sys.executable).with_name("lint-imports")
    if not tool.exists():
        pytest.skip("import-linter is not installed: pip install -e '.[dev]'")
    done = subprocess.run([tool, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
