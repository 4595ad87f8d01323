"""The command line: exit statuses, one line for what is wrong, and what goes to which stream."""

import errno
import json
import subprocess
import sys

import pytest

import trimtab
from tests.report.sample import report
from trimtab._version import VERSION
from trimtab.cli import main, status
from trimtab.cli.app import app
from trimtab.cli.options import Wishes
from trimtab.cli.show import Bars
from trimtab.core.errors import ExportError, GoalNotMet, InputError
from trimtab.pipeline.fit import Result

COMMANDS = (
    *("fit", "compress", "apply", "distil", "choose", "verify", "profile"),
    *("targets", "probe", "device", "doctor", "report"),
)

SMALL = """
import torch
from torch import nn
from trimtab import Arrays, Task, accuracy

def task():
    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
    data = Arrays(x, (x[:, 0] > 0).long(), batch=32)
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2))
    return Task(net, x[:2], validate=data, test=data, score=accuracy, name="small")
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working folder with a task in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.py").write_text(SMALL)
    return tmp_path


@pytest.fixture
def run_left(here):
    """The folder of a run."""
    folder = here / "run"
    folder.mkdir()
    (folder / "report.json").write_text(json.dumps(report()))
    return folder


def refused(capsys, *arguments):
    """The one line on stderr of a command that exits with 2 and prints nothing."""
    assert status(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1, err
    assert "Traceback" not in err
    return err


def test_version_and_help(capsys):
    assert status(["--version"]) == 0
    assert capsys.readouterr().out == f"trimtab {VERSION}\n"
    assert status(["--help"]) == 0
    out = capsys.readouterr().out
    for name in COMMANDS:
        assert f"\n  {name} " in out


@pytest.mark.parametrize("name", [c.callback.__name__ for c in app.registered_commands])
def test_every_command_explains_itself(capsys, name):
    assert status([name, "--help"]) == 0
    assert "Usage: trimtab " + name in capsys.readouterr().out


def test_main_exits_with_the_status():
    with pytest.raises(SystemExit) as caught:
        main(["fit", "nothing.py"])
    assert caught.value.code == 2


def test_help_does_not_wait_for_torch():
    code = "import sys; from trimtab.cli import status; status(['--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--target", "cortex-m5"], "target: got 'cortex-m5', expected cortex-m7 or cortex-m4. See `trimtab targets`."),
        (["--target", "./board.toml"], "device: cannot be read: board.toml: got No such file or directory"),
        (["--target", "cpu:threads=0"], "a whole number above 0"),
        (["--minimise", "speed"], "speed: expected a metric"),
        (["--max-latency", "2"], "option --at-most latency: got '2', expected a number in s, such as 2ms"),
        (["--max-latency", "2MB"], "expected a number in s"),
        (["--max-size", "1"], "option --at-most size: got '1', expected a number in byte"),
        (["--at-most", "latency"], "expected NAME=QUANTITY"),
        (["--at-most", "beauty=2"], "expected NAME=QUANTITY with a NAME of score, latency"),
        (["--at-most", "latency=2ms", "--max-latency", "1ms"], "latency is given twice"),
        (["--at-most", "latency=2ms", "--at-least", "latency=3ms"], "latency contradicts itself"),
        (["--at-most", "size=-1MB"], "above 0"),
        (["--min-speedup", "fast"], "option --at-least latency_ratio: got 'fast'"),
        (["--min-speedup", ""], "option --at-least latency_ratio"),
        (["--max-drop", "-0.1"], "max_drop"),
        (["--max-drop", "a bit"], "option --max-drop: got 'a bit', expected a number in fraction"),
        (["--hours", "0"], "goal: hours"),
        (["--hours", "nan"], "goal: hours"),
        (["--hours", "soon"], "--hours"),
        (["--seed", "-1"], "--seed"),
        (["--out", "small.py"], "option --out: got small.py, a file, expected a folder"),
        (["--bogus"], "No such option"),
        (["more"], "unexpected extra argument"),
    ],
)
def test_fit_refuses_a_wrong_option(here, capsys, options, told):
    assert told in refused(capsys, "fit", "small.py", *options)
    assert not (here / "runs").exists()


@pytest.mark.parametrize("command", ["fit", "compress", "apply", "choose", "verify", "report", "profile"])
def test_a_missing_argument(capsys, command):
    assert "Missing" in refused(capsys, command)


def test_no_such_command(capsys):
    assert "No such command 'fitt'" in refused(capsys, "fitt")


def test_no_such_task(here, capsys):
    assert "no such file: nothing.py" in refused(capsys, "fit", "nothing.py")
    assert "no such file: nothing.py" in refused(capsys, "compress", "nothing.py", "--with", "quantise(bits=8)")
    assert "no such file: nothing.py" in refused(capsys, "profile", "nothing.py")


def test_a_task_that_fails_names_its_line(here, capsys):
    (here / "bad.py").write_text("def task():\n    return open('not-there').read()\n")
    assert "bad.py:2: got FileNotFoundError" in refused(capsys, "fit", "bad.py")


@pytest.mark.parametrize(
    ("recipe", "told"),
    [
        ("prun(0.5)", "'prun' is no technique"),
        ("prune(rate=0.5)", "unknown setting 'rate'"),
        ("prune(ratio=open('x'))", "a literal"),
        ("__import__('os').system('true')", "one call"),
        ("", "one call"),
    ],
)
def test_compress_refuses_a_wrong_recipe(here, capsys, recipe, told):
    assert told in refused(capsys, "compress", "small.py", "--with", recipe)


def test_compress_without_steps(here, capsys):
    assert "--with" in refused(capsys, "compress", "small.py")


@pytest.mark.parametrize("text", ["{", "[]", '{"schema": 9, "steps": []}', '{"schema": 1, "steps": [{"a": 1}]}'])
def test_apply_refuses_what_is_no_plan(here, capsys, text):
    (here / "plan.json").write_text(text)
    assert "plan.json" in refused(capsys, "apply", "plan.json", "small.py")
    assert "not-there.json" in refused(capsys, "apply", "not-there.json", "small.py")


@pytest.mark.parametrize("command", [["verify"], ["report"], ["choose", "plan-1"]])
def test_a_folder_without_a_run(here, capsys, command):
    (here / "empty").mkdir()
    assert "no such folder" in refused(capsys, command[0], "nothing", *command[1:])
    assert "no report.json in it" in refused(capsys, command[0], "empty", *command[1:])


def test_a_hostile_report(run_left, capsys):
    (run_left / "report.json").write_text('{"schema": 1, "task": []}')
    assert "report: task" in refused(capsys, "report", str(run_left))


def test_report_writes_the_page_again(run_left, capsys):
    assert status(["report", str(run_left)]) == 0
    assert capsys.readouterr().out.strip() == str(run_left / "report.html")
    assert "plan-3" in (run_left / "report.html").read_text()


def result(folder, met=True, binding=None):
    return Result(folder, report() | {"met": met, "binding": binding}, met, binding)


def test_fit_passes_everything_on(here, capsys, monkeypatch):
    seen = {}

    def fit(task, target, goal, **rest):
        seen.update(task=task, target=target, goal=goal, **rest)
        return result(here / "run")

    monkeypatch.setattr(trimtab, "fit", fit)
    options = "--target openvino:threads=2 --minimise size --max-drop 2% --at-most energy=300uJ --at-least score=0.9"
    more = "--min-speedup 4x --max-latency 2ms --max-size 1.5MB --hours 0.25 --seed 3 --no-control --out run"
    assert status(["fit", "small.py", *options.split(), *more.split()]) == 0
    goal = seen["goal"]
    assert (goal.minimise, goal.max_drop, goal.hours) == ("size", 0.02, 0.25)
    assert goal.at_most == {"energy": pytest.approx(3e-4), "latency": 2e-3, "size": 1.5e6}
    assert goal.at_least == {"score": 0.9, "latency_ratio": 4.0}
    assert (seen["target"].runtime, seen["target"].threads) == ("openvino", 2)
    assert (seen["task"].name, seen["seed"], seen["control"], str(seen["out"])) == ("small", 3, False, "run")
    out = capsys.readouterr().out
    assert "times faster" in out
    assert "5.37x" in out
    assert "measured" in out


def test_fit_json_prints_the_report_and_nothing_else(here, capsys, monkeypatch):
    monkeypatch.setattr(trimtab, "fit", lambda *a, **k: result(here))
    assert status(["fit", "small.py", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == report()


def test_a_goal_that_is_not_met_exits_with_3(here, capsys, monkeypatch):
    monkeypatch.setattr(trimtab, "fit", lambda *a, **k: result(here, False, "latency_ratio"))
    assert status(["fit", "small.py"]) == 3
    assert "latency_ratio binds" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (InputError("data: train: empty"), 2, "data: train: empty"),
        (ExportError("export: no agreement"), 2, "no agreement"),
        (GoalNotMet("goal: nothing fits"), 3, "nothing fits"),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "no space left on the disk"),
        (KeyboardInterrupt(), 130, "resumable: run the same command again"),
    ],
)
def test_what_a_run_raises_is_one_line(here, capsys, monkeypatch, error, code, told):
    def fit(*arguments, **settings):
        raise error

    monkeypatch.setattr(trimtab, "fit", fit)
    assert status(["fit", "small.py"]) == code
    out, err = capsys.readouterr()
    assert (out, err.strip().count("\n")) == ("", 0)
    assert told in err


def test_an_error_of_ours_is_not_hidden(here, monkeypatch):
    def fit(*arguments, **settings):
        raise ZeroDivisionError

    monkeypatch.setattr(trimtab, "fit", fit)
    with pytest.raises(ZeroDivisionError):
        status(["fit", "small.py"])


def test_a_bound_on_the_score_takes_the_place_of_the_drop():
    assert Wishes().goal().max_drop == 0.01
    assert Wishes(at_least=["score=90%"]).goal().max_drop is None
    assert Wishes(at_least=["score=90%"]).goal().at_least == {"score": 0.9}
    assert Wishes(at_least=["score=0.9"], max_drop="0.02").goal().max_drop == 0.02
    assert Wishes(max_drop="none").goal().max_drop is None


def test_targets_and_doctor_tell_what_is_here(capsys):
    assert status(["targets", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    found = {row["name"]: row["state"] for row in rows}
    assert {row["name"]: row["estimated"] for row in rows}["loihi"] == ""
    assert "energy" in {row["name"]: row["estimated"] for row in rows}["h100"]
    assert found["onnxruntime"] == "measured"
    assert {"cpu", "openvino"} <= set(found)
    assert found["cortex-m7"] == "modelled"
    assert status(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["trimtab"] == VERSION
    assert {"python", "torch", "onnxruntime", "openvino", "cores", "free disk", "data"} <= set(found)
    assert status(["doctor"]) == 0
    assert status(["targets"]) == 0
    assert "onnxruntime" in capsys.readouterr().out


def test_a_missing_runtime_names_what_to_install(capsys, monkeypatch):
    from trimtab.run import OpenVino

    monkeypatch.setattr(OpenVino, "available", lambda self: "openvino is not installed. Install it: pip install X")
    assert status(["targets"]) == 0
    assert "missing" in capsys.readouterr().out
    assert status(["doctor"]) == 0
    assert "pip install X" in capsys.readouterr().out


def test_public_names_are_there_and_no_others_are():
    for name in trimtab.__all__:
        assert getattr(trimtab, name) is not None
    assert set(trimtab.__all__) <= set(dir(trimtab))
    with pytest.raises(AttributeError, match="prune"):
        trimtab.prune  # noqa: B018


@pytest.mark.parametrize("first", ["trimtab.compress.plan", "trimtab.pipeline.compress", "trimtab.profile.probe"])
def test_a_folder_that_is_a_verb_stays_one(first):
    code = (
        f"import {first}, trimtab; print(callable(trimtab.compress), callable(trimtab.profile), trimtab.compress.Prune)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[:2] == ["True", "True"]


def test_a_verb_refuses_an_unknown_setting():
    with pytest.raises(TypeError, match="ratio"):
        trimtab.compress(None, [], ratio=0.5)


def test_progress_is_few_lines_on_stderr_without_a_terminal(capsys, monkeypatch):
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    with Bars() as bars:
        for i in range(1000):
            bars("train", i, 1000)
    out, err = capsys.readouterr()
    assert (out, err) == ("", "train 0/1000\n")


def test_progress_is_bars_with_the_time_left_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    with Bars() as bars:
        for name in "abcdef":
            for i in range(3):
                bars(f"work {name}", i, 2)
        bars("work a", 0, 2)
    out, err = capsys.readouterr()
    assert out == ""
    last = err.rpartition("work a")[2]
    assert "0/2" in last
    assert "left" in last


@pytest.mark.slow
def test_compress_then_verify_then_a_report_that_lies(here, capsys):
    steps = ["--with", "prune(ratio=0.5)", "--with", "quantise(int8)"]
    assert status(["compress", "small.py", *steps, "--out", "made"]) == 0
    made = here / "made"
    assert {"model.onnx", "model.trim.json", "plan.json", "report.json", "report.html"} <= {
        p.name for p in made.iterdir()
    }
    assert [s["technique"] for s in json.loads((made / "plan.json").read_text())["steps"]] == ["Prune", "Quantise"]
    assert status(["verify", "made", "--task", "small.py"]) == 0
    written = json.loads((made / "report.json").read_text())
    chosen = next(p for p in written["points"] if p["name"] == written["chosen"])
    chosen["metrics"]["size"]["value"] = 10.0
    (made / "report.json").write_text(json.dumps(written))
    capsys.readouterr()
    assert status(["verify", "made"]) == 1
    out, err = capsys.readouterr()
    assert "differs" in out
    assert "differs from its report" in err
    assert status(["choose", "made", "original"]) == 0
    assert json.loads((made / "plan.json").read_text())["steps"] == []
    capsys.readouterr()
    assert "one of" in refused(capsys, "choose", "made", "nothing")
