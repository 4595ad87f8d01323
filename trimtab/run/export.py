"""Export: a Graph, float or quantised, becomes one small ONNX file that agrees with it."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trimtab.core.errors import ExportError
from trimtab.core.store import write_atomic
from trimtab.graph.choices import choices, opened
from trimtab.graph.fuse import fold_batch_norm, for_inference
from trimtab.graph.model import Graph
from trimtab.graph.simplify import simplify
from trimtab.run.overflow import clipped
from trimtab.run.pack import pack
from trimtab.run.score import NAMED
from trimtab.run.skip import skip_unneeded

FLOAT_TOLERANCE = 1e-4
"""Largest difference allowed between a float graph and its file, relative to the output's largest value."""
QUANTISED_TOLERANCE = 0.03
"""The same for a quantised graph run node by node as it is written, by root mean square: sums in another order
flip a quantum here and there, and one flipped early flips others later (measured: 0.001 to 0.005)."""
INTEGER_TOLERANCE = 0.15
"""The same for a quantised graph after ONNX Runtime's optimiser put integer kernels in: these requantise with
other roundings in every layer (measured: 0.01 to 0.02, the size of the quantisation error itself)."""
_OPERATOR_SET = 20
"""Of ONNX, where a file needs no later one."""
FEW_TOLERANCE = 0.5
"""The same where activations have fewer than 8 bits: one level is up to a third of their range, and sums of few levels
often lie just between two of them (measured: 0.39 with 2 bits and ternary weights)."""
_DRAWN = 48
"""Random inputs of which three are compared, where a network chooses by what it computes."""
_SEPARATE = int(1.8e9)
"""Bytes of constants above which they go into a file of their own (protobuf ends at 2 GiB)."""


def export_onnx(graph: Graph, path: Path) -> None:
    """Write a graph as ONNX: evaluating, dynamic batch, weights as they are stored (int8 if quantised).

    The file is packed (see `trimtab.run.pack`), checked by ONNX's own checker, loaded in ONNX Runtime, and
    its outputs compared with the graph's on random inputs.

    Args:
        graph: float, or with quantise/dequantise nodes; it is not changed.
        path: of the `.onnx` file; constants of more than 1.8 GB go to `<path>.data` beside it.

    Raises:
        ExportError: an operator has no ONNX form, the batch would be fixed, or the outputs disagree.
        FileError: the file cannot be written.
    """
    own = _for_export(graph)
    model = pack(_converted(own), {name: tensor.detach().numpy() for name, tensor in own.tensors().items()})
    model = skip_unneeded(own, model)
    _check_batch(own, model)
    if not graph.bare:
        model.metadata_props.add(key="outputs", value=NAMED)
    if sum(_bytes(t) for t in model.graph.initializer) > _SEPARATE:
        _write_separate(own, model, path)
        return

    def write(temporary: Path) -> None:
        temporary.write_bytes(model.SerializeToString())
        _check(own, temporary, model)

    write_atomic(path, write)


def _for_export(graph: Graph) -> Graph:
    """A copy on the CPU as it is deployed; of a quantised graph, constants stay as they are stored."""
    own = graph.to("cpu")
    quantised = any(str(node.target).startswith("quantized_decomposed.") for node in own.nodes())
    return fold_batch_norm(simplify(own)) if quantised else for_inference(own)


def is_quantised(model: Any) -> bool:
    """Whether an onnx.ModelProto holds quantise or dequantise nodes."""
    return any(n.op_type in ("QuantizeLinear", "DequantizeLinear") for n in model.graph.node)


def _converted(graph: Graph) -> Any:
    from trimtab.run.bits import OPERATOR_SET
    from trimtab.run.translate import translations

    example = graph.example()
    groups = any("channel_group" in str(node.target) for node in graph.nodes())
    shapes = tuple({0: torch.export.Dim.DYNAMIC} if None in spec.shape[:1] else None for spec in graph.inputs)
    with quiet(), torch.no_grad():
        try:
            program = torch.export.export(graph.net, example, dynamic_shapes=shapes, strict=False)
            found: Any = torch.onnx.export(
                program,
                example,
                dynamo=True,
                input_names=[s.name for s in graph.inputs],
                output_names=list(graph.outputs),
                opset_version=OPERATOR_SET if groups else _OPERATOR_SET,
                custom_translation_table=translations(),
                verbose=False,
                external_data=False,
            )
            return found.model_proto
        except Exception as error:  # the exporter raises whatever an operator's translation raises
            raise ExportError(
                "export to ONNX",
                got=_reason(error),
                do="Replace the operator named here, or keep to torch for this network.",
            ) from error


def _reason(error: BaseException) -> str:
    last: BaseException = error
    while last.__cause__ is not None:
        last = last.__cause__
    lines = [line.strip() for line in str(last).splitlines() if line.strip()]
    return f"{type(last).__name__}: {lines[0] if lines else ''}"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporter's progress, its notes on packages that are not there, and its warnings off the terminal."""
    logger = logging.getLogger("torch")
    names = [n for n in list(logging.root.manager.loggerDict) if n.startswith(("torch.", "onnxscript"))]
    loggers = [logger, *(logging.getLogger(n) for n in (*names, "torch.onnx._internal.exporter._registration"))]
    levels = [item.level for item in loggers]
    for item in loggers:
        item.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for item, level in zip(loggers, levels, strict=True):
            item.setLevel(level)


def _check_batch(graph: Graph, model: Any) -> None:
    for spec, value in zip(graph.inputs, model.graph.input, strict=True):
        if spec.shape and spec.shape[0] is None and not value.type.tensor_type.shape.dim[0].dim_param:
            raise ExportError("export to ONNX", where=f"input {spec.name}", got="a fixed batch", expected="any batch")


def _bytes(tensor: Any) -> int:
    return len(tensor.raw_data)


def _write_separate(graph: Graph, model: Any, path: Path) -> None:
    """Constants into `<path>.data` first, then the model, so that a model is never without them."""
    import onnx

    quantised = is_quantised(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        temporary = Path(folder) / path.name
        onnx.save_model(model, temporary, save_as_external_data=True, location=f"{path.name}.data", size_threshold=1024)
        onnx.checker.check_model(str(temporary))
        _compare(graph, temporary, quantised)
        os.replace(Path(folder) / f"{path.name}.data", path.with_name(f"{path.name}.data"))
        os.replace(temporary, path)


def _check(graph: Graph, path: Path, model: Any) -> None:
    import onnx

    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise ExportError("export to ONNX: the file is not valid", got=_reason(error)) from error
    _compare(graph, path, is_quantised(model))


def _compare(graph: Graph, path: Path, quantised: bool) -> None:
    """Batches of 3 (as no example has) through the graph and the file."""
    for inputs in _undisputed(graph) if choices(graph) else [graph.example(batch=3, seed=1)]:
        _compare_on(graph, path, quantised, inputs)


def _compare_on(graph: Graph, path: Path, quantised: bool, inputs: tuple[torch.Tensor, ...]) -> None:
    with torch.no_grad():
        expected = [value.numpy() for value in graph.net(*inputs)]
    given = {s.name: x.numpy() for s, x in zip(graph.inputs, inputs, strict=True)}
    fused = FEW_TOLERANCE if _has_few(graph) else INTEGER_TOLERANCE
    checks = ((False, QUANTISED_TOLERANCE), (True, fused)) if quantised else ((True, FLOAT_TOLERANCE),)
    for optimised, limit in checks:
        found = _run(path, given, graph.outputs, optimised)
        for name, value, array in zip(graph.outputs, expected, found, strict=True):
            wrong = difference(array, value, quantised)
            if not wrong <= limit:
                raise ExportError(
                    "export to ONNX: the file computes something else than the network",
                    where=f"output {name}",
                    got=f"a relative difference of {wrong:.2g}",
                    expected=f"at most {limit:g}",
                )


def _undisputed(graph: Graph) -> list[tuple[torch.Tensor, ...]]:
    """Batches of random inputs for which the network's choices are least a matter of rounding.

    Three together, and for each side of each choice that some input takes, one input twice: every branch is run.
    """
    inputs = graph.example(batch=_DRAWN, seed=1)
    nodes = {node.name: node for node in graph.nodes()}
    tests: list[Any] = [nodes[choice.test] for choice in choices(graph)]
    moved = ("aten.view.default", "aten.reshape.default")
    tests = [n.args[0] if str(n.target) in moved else n for n in tests]
    told = [n for n in tests if str(n.target) in ("aten.ge.Scalar", "aten.gt.Scalar")]
    read: list[Any] = [n.args[0] for n in told]
    with torch.no_grad():
        values = opened(graph, [n.name for n in read]).net(*inputs)
    margins = [(v - float(n.args[1])).abs().flatten(1).amin(1) for v, n in zip(values, told, strict=True)]
    least = torch.stack(margins).amin(0) if margins else torch.arange(_DRAWN, 0, -1)
    rows = [least.topk(3).indices]
    for value, node in zip(values, told, strict=True):
        above = (value >= float(node.args[1])).flatten(1).all(1)
        for side in (above, ~above):
            if side.any():
                rows.append(torch.where(side, least, -1.0).argmax().repeat(2))

    def taken(rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(x[rows] if spec.shape[:1] == (None,) else x for x, spec in zip(inputs, graph.inputs, strict=True))

    return [taken(each) for each in rows]


def _has_few(graph: Graph) -> bool:
    """Whether activations are quantised to fewer than 256 levels."""
    found = (n for n in graph.nodes() if str(n.target).startswith("quantized_decomposed.quantize_per_tensor."))
    return any(int(n.args[4]) - int(n.args[3]) < 255 for n in found)  # type: ignore[arg-type]


def _run(path: Path, given: dict[str, Any], outputs: tuple[str, ...], optimised: bool) -> list[Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = torch.get_num_threads()
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    elif clipped(path, "onnxruntime"):  # the file is compared, not kernels of another device's network
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return list(session.run(list(outputs), {i.name: given[i.name] for i in session.get_inputs()}))
    except Exception as error:  # onnxruntime's errors have no common base but Exception
        raise ExportError("export to ONNX: ONNX Runtime does not run the file", got=_reason(error)) from error


def difference(found: np.ndarray[Any, Any], expected: np.ndarray[Any, Any], quantised: bool) -> float:
    """Relative difference: max |f - e| / max |e|; if quantised, rms(f - e) / rms(e). Infinite if shapes differ."""
    if found.shape != expected.shape:
        return float("inf")
    if expected.size == 0:
        return 0.0
    a, b = found.astype(np.float64), expected.astype(np.float64)
    if not np.array_equal(np.isfinite(a), np.isfinite(b)):
        return float("inf")
    a, size = np.where(np.isfinite(a), a, 0.0), np.where(np.isfinite(b), b, 0.0)
    gap = a - size
    if quantised:
        return float(np.sqrt(np.mean(gap**2)) / max(np.sqrt(np.mean(size**2)), 1e-12))
    return float(np.abs(gap).max() / max(np.abs(size).max(), 1e-6))
