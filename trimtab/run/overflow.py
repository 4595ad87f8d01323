"""Overflow: whether a runtime's 8-bit kernels lose the top of their sums on this processor.

Without VNNI an x86 processor multiplies unsigned by signed bytes with `vpmaddubsw`, which adds two products and clips
the sum to 16 bits: 255 x 127 + 255 x 127 is twice what they hold, and the network then answers something else than it
was calibrated to. Weights of the levels -64 to 64 never reach the clip, as 2 x 255 x 64 < 2^15, in the same kernels.

Source: Intel 64 and IA-32 Architectures Software Developer's Manual, PMADDUBSW; ONNX Runtime's documentation on
quantisation calls weights of 7 bits `reduce_range`, NNCF an overflow fix.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Iterable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.run.fusable import INTEGER, SUPPORT, IntegerSupport
from trimtab.run.onnxruntime import OnnxRuntime
from trimtab.run.runtime import Session, read_onnx

_ROUNDS = ("QuantizeLinear", "DynamicQuantizeLinear")
CHANNELS = 64
SIXTEEN = (1 << 15) - 1
"""The greatest sum of two products that such kernels hold."""
_HIGH = 127
_ASKED = {"onnxruntime": ["onnxruntime"], "openvino": ["openvino"], "inductor": ["onnxruntime"]}
"""Who is asked for a runtime: torch (oneDNN) reads no file, and has the same instruction; XNNPACK adds in 32 bits."""


@functools.cache
def support_here(runtime: str | None) -> IntegerSupport:
    """What a runtime of this processor runs in integers, and which sums its kernels hold here.

    Args:
        runtime: its name; None for what all of those that read the ONNX file itself do.
    """
    from trimtab.run import runtimes

    asked = [r.name for r in runtimes()] if runtime is None else _ASKED.get(runtime, [])
    support = SUPPORT.get(runtime or "", INTEGER)
    return replace(support, pairs=SIXTEEN) if any(overflows(name) for name in asked) else support


def support_of_flags(runtime: str | None, flags: Iterable[str]) -> IntegerSupport:
    """The same of another machine, which runs no probe: an x86 processor of AVX2 without VNNI adds in 16 bits.

    Args:
        runtime: its name, or None.
        flags: the instruction sets that the machine has, as in `hardware.machine.Machine`.
    """
    support, known = SUPPORT.get(runtime or "", INTEGER), set(flags)
    adds = "avx2" in known and not known & {"avx512_vnni", "avx_vnni", "amx_int8"}
    return replace(support, pairs=SIXTEEN) if adds and (runtime is None or runtime in _ASKED) else support


@functools.cache
def overflows(runtime: str) -> bool:
    """Whether a runtime that reads ONNX files gives less than the sum of the greatest products, by running them."""
    from trimtab.run import runtime as runtime_of

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "greatest.onnx"
        _write(file)
        with closing(runtime_of(runtime).load(file, 1)) as session:
            (found,) = session.run([np.ones((1, CHANNELS, 4, 4), np.float32)])
    return bool(np.abs(found - CHANNELS * _HIGH).max() > CHANNELS)


def clipped(path: Path, runtime: str) -> bool:
    """Whether a file, made for another device, has weights whose sums a runtime's kernels here would clip."""
    if not support_here(runtime).pairs:
        return False
    from onnx import TensorProto, numpy_helper

    graph, top = read_onnx(path).graph, support_here(runtime).top
    if not any(node.op_type in _ROUNDS for node in graph.node):
        return False  # integers are weights alone: no product of two
    held = (t for t in graph.initializer if t.data_type == TensorProto.INT8)
    levels = (numpy_helper.to_array(t, str(path.parent)) for t in held)
    return any(int(np.abs(each.astype(np.int16)).max(initial=0)) > top for each in levels)


def faithful(path: Path, runtime: str, batch: int | None = None, threads: int = 1) -> Session:
    """A session whose outputs are the file's: fused as the runtime does where nothing is clipped, else in floats.

    Args:
        path: the ONNX file.
        runtime: to load it in.
        batch: as in `Runtime.load`.
        threads: that it may use.
    """
    from trimtab.run import runtime as runtime_of

    if clipped(path, runtime):
        return OnnxRuntime().load(path, batch, threads, fused=False)
    return runtime_of(runtime).load(path, batch, threads)


def _write(file: Path) -> None:
    """A convolution of 8-bit integers, all of them the greatest, whose outputs are CHANNELS x 127."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    step = np.float32(1 / 255)
    constants: dict[str, Any] = {
        "step": step,
        "zero": np.uint8(0),
        "weight": np.full((CHANNELS, CHANNELS, 1, 1), _HIGH, np.int8),
        "scale": np.ones(CHANNELS, np.float32),
        "zeros": np.zeros(CHANNELS, np.int8),
        "wide": np.float32(CHANNELS),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "step", "zero"], ["levels"]),
        helper.make_node("DequantizeLinear", ["levels", "step", "zero"], ["input"]),
        helper.make_node("DequantizeLinear", ["weight", "scale", "zeros"], ["kernel"], axis=0),
        helper.make_node("Conv", ["input", "kernel"], ["sum"]),
        helper.make_node("QuantizeLinear", ["sum", "wide", "zero"], ["rounded"]),
        helper.make_node("DequantizeLinear", ["rounded", "wide", "zero"], ["y"]),
    ]
    shape = [1, CHANNELS, 4, 4]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", "y")]
    held = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "greatest", ends[:1], ends[1:], held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 10
    onnx.save(model, str(file))
