"""Vela as it is called, on the reference models of MLPerf Tiny: the figures of Arm's compiler."""

import os
from pathlib import Path

import pytest

from trimtab.core.errors import NotRunnable
from trimtab.run.ethos.configuration import read
from trimtab.run.ethos.vela import compiled

pytest.importorskip("ethosu.vela")

FOLDER = Path(os.environ.get("TRIMTAB_DATA", Path(__file__).parents[3].parent / "shared" / "data")) / "mlperf_tiny"
SIZES = ("ethos-u55-32", "ethos-u55-128", "ethos-u55-256", "ethos-u65-256", "ethos-u85-256")
CYCLES = {
    "pretrainedResnet_quant": (705368, 201747, 141933, 104235, 99010),
    "kws_ref_model": (266947, 89900, 58340, 55411, 54311),
    "vww_96_int8": (700729, 220870, 161459, 152904, 212034),
    "ad01_int8": (201104, 201184, 201184, 43118, 62705),
}


@pytest.mark.data
@pytest.mark.skipif(not FOLDER.exists(), reason="no data folder")
@pytest.mark.parametrize("model", CYCLES)
def test_cycles_of_mlperf_tiny(model):
    network = (FOLDER / f"{model}.tflite").read_bytes()
    assert tuple(compiled(network, "tflite", read(size)).cycles for size in SIZES) == CYCLES[model]


@pytest.mark.data
@pytest.mark.skipif(not FOLDER.exists(), reason="no data folder")
def test_operators_add_up():
    found = compiled((FOLDER / "pretrainedResnet_quant.tflite").read_bytes(), "tflite", read("ethos-u55-128"))
    assert sum(o.cycles for o in found.operators) == found.cycles
    assert max(o.macs for o in found.operators) == 16 * 16 * 9 * 32 * 32
    assert found.seconds == pytest.approx(0.40e-3, rel=0.01)
    assert 0 < found.sram < found.limit
    assert found.outside > 70_000  # the weights
    assert found.traffic["sram"] > found.traffic["off_chip_flash"] > 0
    assert all(o.on_npu for o in found.operators)


def test_what_is_no_network_is_refused():
    with pytest.raises(NotRunnable, match=r"Vela cannot compile it: net\.tosa"):
        compiled(b"no network at all" * 10, "tosa", read("ethos-u55-128"), where="net.tosa")
