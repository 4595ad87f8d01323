"""Numbers: what the Ethos-U's program computes, by Arm's reference model of TOSA, against the ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from trimtab.core.errors import ExportError
from trimtab.graph.model import Graph
from trimtab.run.ethos.integers import whole
from trimtab.run.ethos.lower import Lowered
from trimtab.run.ethos.vela import silent
from trimtab.run.export import INTEGER_TOLERANCE, difference
from trimtab.run.overflow import faithful
from trimtab.run.runtime import Array

_SAMPLES = 4


def check_numbers(graph: Graph, program: Lowered, file: Path) -> None:
    """Compare a program with the ONNX file of the same point on random inputs.

    A program in several parts, or with several inputs or outputs, is left unchecked.

    Raises:
        ExportError: they disagree by more than integer kernels of two runtimes do.
    """
    if len(program.parts) != 1 or program.fallen or len(graph.inputs) != 1 or len(graph.outputs) != 1:
        return
    inputs = graph.example(_SAMPLES, seed=1)[0].numpy()
    found = outputs(graph, program.parts[0].network, inputs)
    session = faithful(file, "onnxruntime", _SAMPLES)
    expected = session.run([inputs])[0]
    session.close()
    wrong = difference(found, expected, quantised=True)
    if not wrong <= INTEGER_TOLERANCE:
        raise ExportError(
            "Ethos-U: the program computes something else than the network",
            where=file,
            got=f"a relative difference of {wrong:.2g}",
            expected=f"at most {INTEGER_TOLERANCE:g}",
        )


def outputs(graph: Graph, network: bytes, inputs: Array) -> Array:
    """What a whole network's TOSA program gives, in floats, sample by sample.

    Args:
        graph: quantised, of one input and one output: gives the levels of both.
        network: its TOSA program.
        inputs: of any batch.
    """
    import tosa_reference_model

    first, last = _ends(whole(graph))
    given = np.clip(np.round(inputs * np.float32(1 / first[0])) + first[1], -128, 127).astype(np.int8)
    rows = []
    with silent():
        for sample in given:
            found, _ = tosa_reference_model.run(network, [sample[None]])
            rows.append((found[0].astype(np.float32) - last[1]) * np.float32(last[0]))
    return np.concatenate(rows)


def _ends(graph: Graph) -> tuple[tuple[float, int], tuple[float, int]]:
    """Scale and zero point of the input and of the output."""
    ops = torch.ops.quantized_decomposed
    placeholder = next(iter(graph.net.graph.find_nodes(op="placeholder")))
    reads: Any = next(n for n in graph.nodes(ops.quantize_per_tensor.default) if n.args[0] is placeholder)
    gives: Any = next(iter(graph.net.graph.output_node().all_input_nodes))
    return (reads.args[1], reads.args[2]), (gives.args[1], gives.args[2])
