"""Single: one layer alone as a TOSA program, for the table of layer costs."""

from __future__ import annotations

import numpy as np

from trimtab.core.errors import InputError, NotRunnable
from trimtab.hardware.layer import Layer

_SPREAD = 32.0
"""Standard deviation of the random weights, in levels: Vela compresses weights, and narrow ones more."""
_SHIFT = 40


def single(layer: Layer, batch: int = 1) -> bytes:
    """A layer in int8, with its requantisation, as a TOSA flatbuffer in the layout of the hardware (NHWC).

    Args:
        layer: a convolution of one or two dimensions with one group or one for each input channel, or a linear one.
        batch: only 1.

    Raises:
        NotRunnable: a convolution of three dimensions. InputError: another batch, or groups of several channels.
    """
    import tosa_serializer as ts

    if batch != 1:
        raise InputError("Ethos-U: batch", got=batch, expected="1")
    if len(layer.kernel) > 2:
        raise NotRunnable("Ethos-U: convolution of three dimensions", where=layer)
    if layer.groups not in (1, layer.inputs):
        raise InputError("Ethos-U: a grouped convolution", got=layer, expected="one group, or one for each channel")
    depthwise = layer.groups > 1
    size, kernel, stride, padding, dilation = _sides(layer)
    pad, size = _exact(size, kernel, stride, padding, dilation)
    out = [(size[i] + pad[2 * i] + pad[2 * i + 1] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in (0, 1)]
    rng = np.random.default_rng(0)
    levels = np.clip(np.round(rng.normal(0, _SPREAD, layer.weights)), -127, 127).astype(np.int8)
    shape = (
        [*kernel, layer.inputs, layer.outputs // layer.inputs] if depthwise else [layer.outputs, *kernel, layer.inputs]
    )

    graph = ts.TosaSerializer("", targetMajor=1, targetMinor=0, targetPatch=0, targetDraft=False)
    graph.addInputTensor(ts.TosaSerializerTensor("x", [1, *size, layer.inputs], ts.DType.INT8, data=None))
    constants = [
        graph.addConst(shape, ts.DType.INT8, levels.reshape(shape), name="w"),
        graph.addConst([layer.outputs], ts.DType.INT32, np.zeros(layer.outputs, np.int32), name="b"),
        graph.addConst([1], ts.DType.INT8, np.array([-128], np.int8), name="xz"),
        graph.addConst([1], ts.DType.INT8, np.array([0], np.int8), name="wz"),
    ]
    attribute = ts.TosaSerializerAttribute()
    settings = {"pad": pad, "stride": stride, "dilation": dilation, "local_bound": False, "acc_type": ts.DType.INT32}
    (attribute.DepthwiseConv2dAttribute if depthwise else attribute.Conv2dAttribute)(**settings)
    sums = graph.addIntermediate([1, *out, layer.outputs], ts.DType.INT32)
    operator = ts.Op.DEPTHWISE_CONV2D if depthwise else ts.Op.CONV2D
    graph.addOperator(operator, inputs=["x", *(c.name for c in constants)], outputs=[sums.name], attributes=attribute)

    n = layer.outputs
    scales = [
        graph.addConst([n], ts.DType.INT32, np.full(n, 1 << 30, np.int32), name="m"),
        graph.addConst([n], ts.DType.INT8, np.full(n, _SHIFT, np.int8), name="s"),
        graph.addConst([1], ts.DType.INT32, np.array([0], np.int32), name="iz"),
        graph.addConst([1], ts.DType.INT8, np.array([-128], np.int8), name="oz"),
    ]
    attribute = ts.TosaSerializerAttribute()
    attribute.RescaleAttribute(
        scale32=True,
        rounding_mode=ts.RoundingMode.SINGLE_ROUND,
        per_channel=True,
        input_unsigned=False,
        output_unsigned=False,
    )
    result = graph.addIntermediate([1, *out, layer.outputs], ts.DType.INT8)
    names = [sums.name, *(c.name for c in scales)]
    graph.addOperator(ts.Op.RESCALE, inputs=names, outputs=[result.name], attributes=attribute)
    graph.addOutputTensor(result)
    return bytes(graph.serialize())


def _sides(layer: Layer) -> tuple[list[int], ...]:
    """Input size, kernel, stride, padding and dilation in two dimensions; rows of a linear layer are a column."""
    if not layer.kernel:
        return [layer.spatial[0], 1], [1, 1], [1, 1], [0, 0], [1, 1]
    given = (layer.spatial, layer.kernel, layer.stride, layer.padding, layer.dilation)
    fill = (1, 1, 1, 0, 1)
    return tuple([one] * (2 - len(value)) + list(value) for one, value in zip(fill, given, strict=True))


def _exact(
    size: list[int], kernel: list[int], stride: list[int], padding: list[int], dilation: list[int]
) -> tuple[list[int], list[int]]:
    """Padding before and behind each side, and the input's size, without the rows that no window reads.

    TOSA takes only windows that cover their input exactly.
    """
    pads, sizes = [], []
    for n, k, s, p, d in zip(size, kernel, stride, padding, dilation, strict=True):
        left = (n + 2 * p - d * (k - 1) - 1) % s
        behind = max(p - left, 0)
        pads += [p, behind]
        sizes.append(n - max(left - p, 0))
    return pads, sizes
