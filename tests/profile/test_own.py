"""A profile by a runtime's own kernels, and what such a runtime is refused."""

import io

import pytest
from rich.console import Console

from trimtab.core.errors import InputError
from trimtab.core.metric import metric
from trimtab.core.target import Target
from trimtab.profile import profile
from trimtab.profile.own import OwnProfile
from trimtab.profile.table import own_summary, own_table
from trimtab.run.kernels import Kernel

FOUND = OwnProfile(
    "executorch",
    1,
    1,
    (Kernel("Convolution #1", "XNNPACK", 3e-5, ("stem",)), Kernel("slice_copy", "portable", 1e-5)),
    metric("latency", 5e-5, "measured", n=30),
    ("a note",),
)


def text(made):
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(made)
    return console.export_text()


def test_kernels_stand_in_order_with_their_shares():
    shown = text(own_table(FOUND))
    assert "stem" in shown
    assert "75.0%" in shown
    assert "25.0%" in shown
    assert shown.index("Convolution") < shown.index("slice_copy")
    assert "slice_copy" not in text(own_table(FOUND, 1))
    assert own_summary(FOUND) == ["Whole network 50 us, measured apart; kernels 40 us.", "a note"]


def test_json_tells_all_of_it():
    told = FOUND.json()
    assert told["kernels"][0] == {"kernel": "Convolution #1", "by": "XNNPACK", "layer": "stem", "seconds": 3e-5}
    assert (told["runtime"], told["latency"]["value"], told["notes"]) == ("executorch", 5e-5, ["a note"])


@pytest.mark.parametrize(
    ("target", "told"),
    [
        (Target(runtime="executorch"), "names no operators of an ONNX file, expected onnxruntime or openvino"),
        (Target(runtime="inductor"), "`trimtab profile TASK --target inductor` lists its own kernels"),
        (Target("cortex-m7"), "got cortex-m7, expected a runtime of this machine's processor"),
    ],
)
def test_what_cannot_be_joined_with_a_file_is_refused(tmp_path, target, told):
    with pytest.raises(InputError) as caught:
        profile(tmp_path / "none.onnx", target)
    assert told in str(caught.value)
