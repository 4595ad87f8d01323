"""Integer: which layers run in int8 once a runtime has optimised the file."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtab.core.errors import InputError, NotInteger
from trimtab.run.executorch import ExecuTorch
from trimtab.run.layers import Layer, layers, parts, source
from trimtab.run.openvino import compiled
from trimtab.run.runtime import read_onnx

KERNELS = frozenset({
    "QLinearConv", "ConvInteger", "QLinearMatMul", "MatMulInteger", "MatMulIntegerToFloat", "QGemm",
    "DynamicQuantizeMatMul", "QLinearConvTranspose", "QAttention", "MatMulNBits",
})  # fmt: skip
"""ONNX Runtime's operators that multiply integers; MatMulNBits rounds its input to int8 in blocks by itself."""
_OPENVINO = {"Convolution", "Deconvolution", "FullyConnected", "MatMul"}


@dataclass(frozen=True)
class LayerPrecision:
    """What one layer runs in.

    Args:
        name: the user's, from its parameters.
        op: the ONNX operator in the file.
        quantised: its weight is stored in integers.
        precision: `int8`, `fp32`, `bf16`, ...: what the runtime multiplies in.
        kernel: the runtime's own name of what runs it; empty if it was merged into something else.
        meant: its input is in integers too, so it should run in integers.
        stored: what its weight is stored in: `integers`, `fp16`, `bf16`, `fp8` or `fp32`.
    """

    name: str
    op: str
    quantised: bool
    precision: str
    kernel: str
    meant: bool = False
    stored: str = "fp32"


def integer_report(path: Path, runtime: str) -> tuple[LayerPrecision, ...]:
    """What each convolution and linear layer of a file runs in, read from the runtime's optimised model.

    Args:
        path: the ONNX file.
        runtime: one of those of this machine's processor. `executorch` and `inductor` are asked about what they
            make of the graph beside the file.

    Raises:
        FileError: the file cannot be read. RuntimeMissing: the runtime is not installed.
    """
    from trimtab.run import runtime as runtime_of

    model = read_onnx(path)
    found = layers(model)
    if runtime == "onnxruntime":
        runs = _onnxruntime(path, model, found)
    elif runtime == "openvino":
        runtime_of(runtime).load(path, 1).close()  # says what is missing
        runs = _openvino(path, found)
    elif runtime == "executorch":
        runs = _named(_executorch(path), found)
    elif runtime == "inductor":
        runs = _named(_inductor(path, found), found)
    else:
        raise InputError("integer kernels", got=repr(runtime), expected="onnxruntime or openvino")
    return tuple(
        LayerPrecision(layer.name, layer.op, layer.quantised, *run, layer.meant, layer.stored)
        for layer, run in zip(found, runs, strict=True)
    )


def require_integer(path: Path, runtime: str) -> tuple[LayerPrecision, ...]:
    """The report, if every layer whose weight and input are in integers runs in integers.

    A layer whose weight alone is in integers computes in floating point where the runtime has no kernel for it: that
    is what was asked for, and `smaller` says so.

    Raises:
        NotInteger: names the quantised layers that would run in floating point.
    """
    report = integer_report(path, runtime)
    quantised = [layer for layer in report if layer.meant]
    wrong = [layer for layer in quantised if layer.precision != "int8"]
    if wrong:
        raise NotInteger(
            f"{runtime} would run quantised layers in floating point",
            where=", ".join(layer.name for layer in wrong),
            got=f"{len(quantised) - len(wrong)} of {len(quantised)} in int8",
            expected="all of them",
            do="Skip these layers when quantising, or quantise what stands before and behind them too.",
        )
    return report


def smaller(report: Sequence[LayerPrecision], runtime: str) -> tuple[str, ...]:
    """A sentence for each type that weights are stored in and no kernel of the runtime multiplies.

    Args:
        report: of `integer_report`.
        runtime: that it is of.
    """
    kinds: dict[str, list[str]] = {}
    for layer in report:
        if layer.stored != "fp32" and not layer.meant and layer.precision != "int8":
            kinds.setdefault(layer.stored, []).append(layer.name)
    return tuple(
        f"Smaller, not faster: {runtime} computes in floating point what is stored in {kind}: {some(names)}."
        for kind, names in kinds.items()
    )


def some(names: Sequence[str], most: int = 6) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _onnxruntime(path: Path, file: Any, found: tuple[Layer, ...]) -> Iterator[tuple[str, str]]:
    import onnx

    from trimtab.run.onnxruntime import optimise

    with tempfile.TemporaryDirectory() as folder:
        optimised = Path(folder) / "optimised.onnx"
        optimise(path, optimised)
        model = onnx.load(str(optimised), load_external_data=False)
    nodes, _ = parts(model.graph)
    constants, producers = _parts(model)
    before = _parts(file)
    readers: dict[str, list[str]] = {}
    for node in nodes:
        if node.op_type in ("DequantizeLinear", "QuantizeLinear", "Transpose", "Reshape", "Cast"):
            continue
        for name in node.input:
            held = source(name, constants, producers)
            if held is not None:
                # what was decoded at load has the name of a value of the file; a product of 4 or 8 bits adds to it
                held = held.removesuffix("_T") if node.op_type == "MatMulNBits" else held
                readers.setdefault(source(held, *before) or held, []).append(str(node.op_type))
    for layer in found:
        kinds = list(dict.fromkeys(readers.get(layer.weight, [])))
        integer = bool(kinds) and all(kind in KERNELS for kind in kinds)
        yield ("int8" if integer else "fp32"), "+".join(kinds)


def _parts(model: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Constants by name, and the node that makes each value."""
    nodes, constants = parts(model.graph)
    return constants, {name: node for node in nodes for name in node.output}


def _openvino(path: Path, found: tuple[Layer, ...]) -> Iterator[tuple[str, str]]:
    runs: dict[str, tuple[str, str]] = {}
    merged: dict[str, tuple[str, str]] = {}
    for node in compiled(path, 1, 1, "f32").get_runtime_model().get_ops():
        facts = node.get_rt_info()
        names = [node.get_friendly_name(), *_text(facts, "originalLayersNames").split(",")]
        if _text(facts, "layerType") in _OPENVINO:
            kernel = _text(facts, "primitiveType")
            # of a product with integer weights alone the runtime tells the type of the weights
            multiplied = "f32" if kernel.endswith("_f32") else _text(facts, "runtimePrecision")
            run = (_precision(multiplied), kernel)
            for name in names:
                runs.setdefault(name.partition("/")[0], run)
        elif _text(facts, "layerType") == "Subgraph":
            merged |= _merged(node, names)
    for layer in found:
        own = merged.get(layer.marks[0], ("unknown", ""))
        yield next((runs[mark] for mark in layer.marks if mark in runs), own)


def _merged(node: Any, names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """What the layers of a generated kernel run in, by their outputs' names: OpenVINO makes one of a small MLP.

    A layer multiplies integers where its dequantising was moved behind it and the kernel reads integer weights.
    """
    integers = any(str(port.get_element_type().to_string()) in ("i8", "u8") for port in node.inputs())
    behind = {name.partition("/")[0] for name in names if name.endswith("/DequantizationMultiply")}
    found = dict.fromkeys((name.partition("/")[0] for name in names if name), ("fp32", "Subgraph"))
    return found | dict.fromkeys(behind if integers else (), ("int8", "Subgraph"))


def _named(runs: Mapping[str, tuple[str, str]], found: tuple[Layer, ...]) -> Iterator[tuple[str, str]]:
    for layer in found:
        yield runs.get(layer.name, ("unknown", ""))


def _executorch(path: Path) -> dict[str, tuple[str, str]]:
    """Of each layer, as the program says of itself: only XNNPACK multiplies integers."""
    from trimtab.run.pte import account

    (program,) = ExecuTorch().artifact(path)
    rows = account(program).get("layers", [])
    return {row["weight"].removesuffix(".weight"): (row["precision"], row["kernel"]) for row in rows}


def _inductor(path: Path, found: tuple[Layer, ...]) -> dict[str, tuple[str, str]]:
    """Of each layer: integer kernels keep the scale of their weight, and with it the name."""
    from trimtab.run.lowered import graph_beside, lowered, multiplications

    graph = graph_beside(path)
    runs = {layer.name: ("fp32", "torch") for layer in found}
    for node, integer in multiplications(lowered(graph, graph.example(1))):
        scales = [str(n.target) for n in node.all_input_nodes if str(n.target).endswith(".weight_scale")]
        if integer and scales:
            runs[scales[0].removesuffix(".weight_scale")] = ("int8", str(node.target))
    return runs


def _text(facts: Any, key: str) -> str:
    if key not in facts:
        return ""
    value = facts[key]
    return str(value.astype(str) if hasattr(value, "astype") else value)


def _precision(name: str) -> str:
    return {"u8": "int8", "i8": "int8", "f32": "fp32", "f16": "fp16"}.get(name, name)
