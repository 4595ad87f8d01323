"""Tasks by name: every form, and every way that one can be wrong, on one line."""

import sys

import pytest
import torch
from torch import nn

import trimtab
from trimtab.core.errors import FileError, InputError
from trimtab.core.task import Task
from trimtab.graph.capture import capture
from trimtab.graph.save import save
from trimtab.pipeline.load import load, load_task, run_folder

GOOD = """
import torch
from torch import nn
from trimtab import Task

def task():
    return Task(nn.Linear(4, 2), torch.zeros(2, 4), name="line")

def other():
    return Task(nn.Linear(4, 3), torch.zeros(2, 4), name="other")
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working folder of the test's own."""
    monkeypatch.chdir(tmp_path)
    path, modules = list(sys.path), set(sys.modules)
    yield tmp_path
    assert sys.path == path
    for name in set(sys.modules) - modules:
        if name.startswith(("task_of_", "own_")):
            del sys.modules[name]


def wrong(text):
    with pytest.raises(InputError) as caught:
        load_task(text)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_file_and_a_name_in_it(here):
    (here / "mine.py").write_text(GOOD)
    assert load_task("mine.py").name == "line"
    assert load_task("mine.py:other").name == "other"
    assert load_task(str(here / "mine.py")).name == "line"


def test_a_module_in_the_working_folder(here):
    (here / "own_package").mkdir()
    (here / "own_package" / "__init__.py").write_text("")
    (here / "own_package" / "tasks.py").write_text(GOOD)
    assert load_task("own_package.tasks:other").name == "other"


def test_a_file_imports_its_neighbours(here):
    (here / "deep").mkdir()
    (here / "deep" / "own_helper.py").write_text("name = 'helped'\n")
    (here / "deep" / "mine.py").write_text(GOOD + "\ndef task():\n import own_helper\n return other()\n")
    assert load_task("deep/mine.py").name == "other"


def test_a_file_hides_no_module_of_its_name(here):
    (here / "json.py").write_text(GOOD)
    assert load_task("json.py").name == "line"
    assert sys.modules.get("json") is not None
    assert not hasattr(sys.modules["json"], "task")


def test_digits_comes_with_the_package():
    pytest.importorskip("sklearn")
    assert load_task("digits").name == "digits"
    assert load_task("digits").fingerprint == load_task("trimtab.examples.digits:task").fingerprint


def test_no_such_file(here):
    assert wrong("nothing.py").startswith("task: no such file: nothing.py")


@pytest.mark.parametrize("text", ["", "nothing", "a b:task", "mine.py:", "mine.py:1x", ":task", "..:task", "os.path"])
def test_no_form_of_a_task(here, text):
    (here / "mine.py").write_text(GOOD)
    assert "expected file.py, file.py:name, package.module:name, or digits" in wrong(text)


def test_no_such_module(here):
    assert wrong("own_nothing.deep:task").startswith("task: no such module: own_nothing.deep")


def test_no_task_in_it(here):
    (here / "mine.py").write_text("x = 1\n")
    assert "mine.py has no task(). Define `def task() -> trimtab.Task`" in wrong("mine.py")
    assert "expected a function that returns a Task" in wrong("mine.py:x")


def test_it_returns_something_else(here):
    (here / "mine.py").write_text("def task():\n    return 3\n")
    assert "mine.py:task() returns no Task: got int, expected trimtab.Task" in wrong("mine.py")


def test_an_error_names_the_users_own_file_and_line(here):
    (here / "own_broken.py").write_text("import json\n\ndef load():\n    return json.loads('{')\n")
    (here / "mine.py").write_text("def task():\n    from own_broken import load\n    return load()\n")
    assert "own_broken.py:4: got JSONDecodeError" in wrong("mine.py")


def test_an_error_on_import_names_the_line(here):
    (here / "mine.py").write_text("x = 1\ny = x / 0\n")
    assert "mine.py:2: got ZeroDivisionError: division by zero" in wrong("mine.py")
    assert not [name for name in sys.modules if name == "task_of_mine"]


def test_a_syntax_error_names_the_line(here):
    (here / "mine.py").write_text("def task():\n    return (\n")
    assert "mine.py:2: got SyntaxError" in wrong("mine.py")


def test_a_missing_library_says_what_to_install(here):
    (here / "mine.py").write_text("import own_missing_library\n")
    assert "mine.py:1: got ModuleNotFoundError: No module named 'own_missing_library'. Install it" in wrong("mine.py")


def test_a_file_that_exits_ends_nothing(here):
    (here / "mine.py").write_text("import sys\nsys.exit(0)\n")
    assert "SystemExit" in wrong("mine.py")


def test_an_input_error_of_the_task_is_passed_on(here):
    (here / "mine.py").write_text(
        "from trimtab.core.errors import InputError as E\ndef task():\n    raise E('data', do='Set TRIMTAB_DATA.')\n"
    )
    assert wrong("mine.py") == "data. Set TRIMTAB_DATA."


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("digits", "digits"),
        ("ResNet 56 / CIFAR", "ResNet-56-CIFAR"),
        ("../../etc", "etc"),
        ("", "task"),
        ("..", "task"),
    ],
)
def test_a_run_goes_below_runs_by_default(here, name, folder):
    task = Task(nn.Linear(1, 1), torch.zeros(2, 1), name=name)
    assert run_folder(task, None).as_posix() == f"runs/{folder}"


def test_a_file_is_no_folder(here):
    (here / "taken").write_text("")
    task = Task(nn.Linear(1, 1), torch.zeros(2, 1))
    for out in ("taken", "taken/below"):
        with pytest.raises(InputError, match="a file"):
            run_folder(task, out)


def test_a_saved_network_has_the_users_names_and_outputs(here):
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    save(capture(network, torch.zeros(2, 4)), here)
    found = load(here)
    assert list(found.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(found(x), network(x))
    assert trimtab.load is load


def test_no_saved_network(here):
    with pytest.raises(FileError):
        load(here)
