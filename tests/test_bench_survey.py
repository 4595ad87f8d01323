"""What the bench of the survey says of its rows: the page, the chart, and whether the hybrid beats the others."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from types import SimpleNamespace

import pytest
import torch

from bench import survey_files, survey_table
from bench.survey_files import Missing, compared
from bench.survey_page import against, chart, hybrid, report
from bench.survey_peers import PEERS
from bench.survey_rows import CONTROL, PRINTED, ROWS, recover
from trimtab.compress.order import check_order
from trimtab.compress.plan import recipe
from trimtab.compress.recover import Distil
from trimtab.core.store import Store
from trimtab.core.task import accuracy

MACHINE = {"processor": "test", "cores": 2, "flags": ["avx2"], "libraries": {"torch": "2"}}


def facts(technique, faster, size, drop, network="resnet56", level="", peer=None):
    """A row that was done: the original has 1,000 bytes."""
    return {
        "status": "done", "network": network, "technique": technique, "level": level, "peer": peer,
        "machine": MACHINE, "original": {"bytes": 1000}, "bytes": size, "coded": size - 10, "recipe": ["prune(0.5)"],
        "plan": [{"technique": "Distil", "steps": 1200}], "seconds": 60.0, "notes": [],
        "latency_ratio": {"value": faster, "interval": [faster - 0.1, faster + 0.1], "how": "interleaved"},
        "proving": {"score": 0.9 - drop, "drop": {"value": drop, "interval": [drop - 0.01, drop + 0.01]}, "broken": 5,
                    "mended": 3, "n": 5000},
    }  # fmt: skip


def test_every_row_is_a_sensible_order_of_techniques():
    for row in ROWS.values():
        check_order([recipe(part.text.replace("STEPS", "10")) for part in row.parts])
        assert row.technique in PRINTED
        assert row.peer is None or row.peer in PEERS
        assert row.parts or row.peer
        # as much training for each row of a network, the rounds of a part apart
        trains = [part.share for part in row.parts if "STEPS" in part.text]
        assert sum(trains) == pytest.approx(1.0) or not trains, row.name
    assert recipe(recover("'lr': 0.02, 'features': 30.0").text.replace("STEPS", "7")) == Distil(7, lr=0.02, features=30)


def test_controls_come_first_and_names_are_checked():
    chosen = survey_table.rows(["lenet5", "speech-int8"])
    assert [row.technique for row in chosen[:2]] == [CONTROL, CONTROL]
    assert {row.network for row in chosen} == {"lenet5", "speech"}
    with pytest.raises(SystemExit, match="no row or network nothing"):
        survey_table.rows(["nothing"])


def test_single_techniques_are_compared_at_the_accuracy_of_the_hybrid():
    best = facts("hybrid", 5.0, 100, 0.010)
    rows = [best, facts("int8", 2.0, 250, 0.001), facts("int8", 1.5, 90, 0.014, level="small"),
            facts("binary", 6.0, 50, 0.05), facts("int8", 9.0, 10, 0.0, peer="nncf int8"),
            facts("low rank", 5.5, 500, 0.0149)]  # fmt: skip
    found = {technique: (quick and quick["latency_ratio"]["value"], small and small["bytes"])
             for technique, quick, small in against(rows, best)}  # fmt: skip
    assert found == {"int8": (2.0, 90), "binary": (None, None), "low rank": (5.5, 500)}
    said = "\n".join(hybrid(rows))
    assert "of 3 single techniques 1 are as fast (low rank) and 1 as small (int8); 1 do not reach it: binary" in said


def test_the_page_and_its_chart_show_what_is_there_and_what_is_not():
    rows = {
        "resnet56-int8": facts("int8", 2.0, 250, 0.004),
        "resnet56-hybrid": facts("hybrid", 5.0, 100, 0.05),
        "vgg-int8-nncf": facts("int8", 2.0, 250, 0.004, "vgg", "nncf", "nncf int8"),
        "vgg-binary": {"status": "missing", "why": "no such thing", "network": "vgg", "technique": "binary",
                       "level": "", "peer": None, "recipe": []},
    }  # fmt: skip
    text = report(rows, survey_table.__doc__ or "")
    assert "| int8 |  | 4.00 | 4.17 | 4 | 2.00 [1.90, 2.10] | 2-4 | 89.60 | 0.40 [-0.60, 1.40] | 0.5-3 |" in text
    assert "missing: no such thing" in text
    assert "(1,200 steps)" in text
    widths = {line.count("|") for line in text.splitlines() if line.startswith("|")}
    assert len(widths) == 1
    root = ET.fromstring(chart(rows))
    shapes = [node.tag.split("}")[1] for node in root if node.find("{*}title") is not None]
    assert sorted(shapes) == ["circle", "circle", "rect"]
    hollow = [node for node in root if node.get("fill") == "white"]
    assert len(hollow) == 1  # five points lost


def test_a_drop_counts_against_the_better_of_the_original_and_its_control(tmp_path, monkeypatch):
    labels = torch.arange(10)
    known = {"original": 6, "control": 8, "row": 7}

    def answers(prepared, file, folder):
        outputs = torch.eye(10)
        outputs[known[file.name] :] = torch.eye(10)[0]
        return {"proving": (outputs, labels)}

    monkeypatch.setattr(survey_files, "answers", answers)
    prepared = SimpleNamespace(context=SimpleNamespace(score=accuracy))
    pairs = [(tmp_path / name, tmp_path) for name in ("original", "control")]
    found = compared(prepared, pairs, tmp_path / "row", tmp_path)["proving"]
    assert found["score"] == pytest.approx(0.7)
    assert found["drop"]["value"] == pytest.approx(0.1)
    assert (found["broken"], found["mended"]) == (1, 0)
    json.dumps(found)


def test_a_technique_that_is_not_there_and_one_that_fails_are_rows_that_say_so(tmp_path, monkeypatch):
    row = next(row for row in ROWS.values() if row.technique == "low rank")
    options = SimpleNamespace(runs=tmp_path, minutes=1.0, time=False)

    def missing(row, folder, options):
        raise Missing("factorise")

    monkeypatch.setattr(survey_table, "finished", missing)
    survey_table.run(row, options)
    told = json.loads((tmp_path / row.name / "facts.json").read_text())
    assert (told["status"], told["why"]) == ("missing", "factorise is not among the techniques")
    monkeypatch.setattr(survey_table, "finished", lambda *a: {"latency_ratio": {"value": 2.0}, "bytes": 7})
    survey_table.run(row, options)  # tried again, since it was not done
    assert json.loads((tmp_path / row.name / "facts.json").read_text())["status"] == "done"
    monkeypatch.setattr(survey_table, "finished", missing)
    survey_table.run(row, options)
    assert json.loads((tmp_path / row.name / "facts.json").read_text())["status"] == "done"


def test_techniques_are_known_by_their_public_names(monkeypatch):
    assert survey_files._technique("distil(3)") == Distil(3)
    monkeypatch.setattr(survey_files, "techniques", lambda: {"Prune": None})
    with pytest.raises(Missing, match="sparsify"):
        survey_files._technique("sparsify(0.9)")


def test_answers_are_kept_for_the_same_file(tmp_path, monkeypatch):
    asked = []

    def outputs(file, runtime, batches, half):
        asked.append((half, len(batches)))
        return torch.zeros(4, 10), torch.zeros(4, dtype=torch.int64)

    batch = (torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64))
    monkeypatch.setattr(survey_files, "file_outputs", outputs)
    monkeypatch.setattr(survey_files, "depends_on_input", lambda file: file.name == "exits.onnx")
    prepared = SimpleNamespace(context=SimpleNamespace(validate=(batch,), store=Store(tmp_path)), test=(batch, batch))
    for name in ("plain.onnx", "plain.onnx", "exits.onnx"):
        (tmp_path / name).write_text(name)
        survey_files.answers(prepared, tmp_path / name, tmp_path)
    # a network with branches is asked one input at a time
    assert asked == [("choosing", 1), ("proving", 2), ("choosing", 4), ("proving", 8)]
