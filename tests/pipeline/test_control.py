"""Control: which training of a plan the original is given too."""

from __future__ import annotations

from trimtab.core.plan import Plan
from trimtab.pipeline.control import control_plan


def test_what_trains_the_network_trains_the_control() -> None:
    train = {"steps": 30, "lr": 0.01}
    steps = (
        {"technique": "Swap", "blocks": {"conv1": "separable"}, "train": {"steps": 200}},
        {"technique": "Prune", "ratio": 0.5, "schedule": "iterative", "rounds": 3, "train": train},
        {"technique": "Exits", "train": {"steps": 7}},
        {"technique": "Quantise", "train": {"steps": 5}},
        {"technique": "Distil", "steps": 11},
    )
    found = control_plan(Plan(steps)).steps
    assert {step["technique"] for step in found} == {"Distil"}
    assert [step["steps"] for step in found] == [30, 30, 30, 5, 11]
    assert found[0]["lr"] == 0.01


def test_a_swap_alone_trains_no_control() -> None:
    assert control_plan(Plan(({"technique": "Swap", "share": 0.5, "train": {"steps": 200}},))).steps == ()
