"""Narrow: floating-point constants stored in the smallest type that holds them exactly, widened when a file is loaded.

fp16, bf16 and fp8 weights cost a half or a quarter of the bytes. No runtime of this machine's processor multiplies in
them: each widens them once, as it loads the file, and runs what it runs for fp32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from trimtab.run.work import Work

Array = np.ndarray[Any, Any]

_LEAST = 64
"""Elements under which a constant stays as it is: a node to widen it takes some 30 bytes."""


def store_narrow(work: Work) -> None:
    """Store fp32 constants in fewer bytes where no value changes by it, in place."""
    from onnx import TensorProto, helper

    for name in list(work.constants):
        tensor = work.constants[name]
        if tensor.data_type != TensorProto.FLOAT or name in {*work.outputs, *work.pinned}:
            continue
        value = work.array(name)
        found = narrowest(value) if value is not None and value.size >= _LEAST else None
        if found is None or value is None:
            continue
        kind, data = found
        wide = f"{name}/wide"
        work.replace({name: wide})
        work.constants[name] = TensorProto(data_type=kind, dims=value.shape, raw_data=data)
        work.nodes.insert(0, helper.make_node("Cast", [name], [wide], to=TensorProto.FLOAT))


def narrowest(value: Array) -> tuple[int, bytes] | None:
    """The ONNX type and the bytes of the smallest floating-point type that holds all values, bit for bit."""
    import ml_dtypes
    from onnx import TensorProto

    kinds = (
        (TensorProto.FLOAT8E4M3FN, ml_dtypes.float8_e4m3fn),
        (TensorProto.FLOAT8E5M2, ml_dtypes.float8_e5m2),
        (TensorProto.BFLOAT16, ml_dtypes.bfloat16),  # before fp16, into which most of it would fit too
        (TensorProto.FLOAT16, np.float16),
    )
    few = value.reshape(-1)[:_LEAST]
    for kind, dtype in kinds:
        if _holds(few, dtype) and _holds(value, dtype):
            return kind, value.astype(dtype).tobytes()
    return None


def _holds(value: Array, dtype: Any) -> bool:
    with np.errstate(over="ignore", invalid="ignore"):
        back = value.astype(dtype).astype(np.float32)
    return bool(np.array_equal(back.view(np.uint32), np.ascontiguousarray(value).view(np.uint32)))
