"""Zeros padded before a maximum pool, kept from a runtime's fusion that forgets them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from trimtab.run.work import Work


def keep_pads(work: Work) -> None:
    """Pad by the smallest normal number instead of zero where a maximum pool reads it; in place.

    ONNX Runtime joins `Pad` by zero with the `MaxPool` behind it, whose own padding is minus infinity:
    another result wherever a window holds negative values only (seen with 1.31). A value that is not
    zero is not joined, and 1.2e-38 changes no sum.
    """
    from onnx import numpy_helper

    producers = work.producers()
    for pool in (node for node in work.nodes if node.op_type == "MaxPool"):
        pad = producers.get(pool.input[0])
        if pad is None or pad.op_type != "Pad" or any(a.name == "mode" and a.s != b"constant" for a in pad.attribute):
            continue
        value = work.array(pad.input[2]) if len(pad.input) > 2 and pad.input[2] else np.zeros((), np.float32)
        if value is None or value.dtype.kind != "f" or value.any():
            continue
        name = f"{pad.output[0]}/value"
        smallest = np.finfo(value.dtype).tiny if value.dtype != np.float16 else np.finfo(np.float16).smallest_subnormal
        work.constants[name] = numpy_helper.from_array(np.full(value.shape, smallest, value.dtype))
        if len(pad.input) > 2:
            pad.input[2] = name
        else:
            pad.input.append(name)
