"""Plans in words."""

from trimtab.report.words import step


def test_bits_of_layers_are_counted():
    layers = {"a": {"bits": 4}, "b": {"bits": 2}, "c": {"bits": 4}}
    made = {"technique": "Quantise", "skip": ["d"], "layers": layers, "calibration": "mse"}
    assert step(made) == "Quantise: bits 4 in 2 layers; bits 2 in 1 layer; skip d; calibration mse"
    assert step({"technique": "Quantise", "layers": {}}) == "Quantise"
