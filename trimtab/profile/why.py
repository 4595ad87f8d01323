"""Why: the reason, in words, that an operator has a kernel of its own."""

from __future__ import annotations

from trimtab.profile.join import Wiring
from trimtab.profile.network import QUANTISING, Network, Op

_TITLES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
_ACTIVATIONS = frozenset({
    "Relu", "Clip", "Sigmoid", "Tanh", "LeakyRelu", "PRelu", "Elu", "Selu", "Softplus", "Softsign", "Gelu", "Erf",
    "HardSwish", "HardSigmoid", "Mish", "Swish", "Exp", "Sqrt", "Neg", "Abs", "Cast", "Reciprocal", "Log", "Not",
})  # fmt: skip
_PAIRS = frozenset({"Add", "Sub", "Mul", "Div", "Max", "Min", "Pow", "Sum", "Where", "Equal", "Less", "Greater", "And"})
_GATES = frozenset({"Sigmoid", "HardSigmoid", "Tanh", "Softmax"})
_LAYOUT = frozenset({
    "Transpose", "Concat", "Split", "Slice", "Gather", "Pad", "Expand", "Tile", "DepthToSpace", "SpaceToDepth",
    "Resize", "Upsample", "GatherElements", "GatherND", "ScatterND",
})  # fmt: skip
_SHAPES = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Shape"})
_NORMS = frozenset({
    "Softmax", "LogSoftmax", "LayerNormalization", "GroupNormalization", "InstanceNormalization", "RMSNormalization",
    "LpNormalization", "LRN",
})  # fmt: skip
_WINDOWS = ("Pool", "Reduce", "ArgMax", "ArgMin", "TopK", "CumSum")


def why(network: Network, wiring: Wiring, position: int, runtime: str) -> str:
    """Why a runtime computes an operator alone.

    What can be read from the file is said: another reader, an output, what stands before. Where nothing in the file
    stands in the way, the runtime has no kernel for it.

    Args:
        network: as read from the file.
        wiring: of the network.
        position: of the operator.
        runtime: by name.
    """
    op, title = network.ops[position], _TITLES.get(runtime, runtime)
    if op.kind in QUANTISING:
        return _border(network, wiring, op)
    if op.macs:
        return _product(network, wiring, op, title)
    if op.kind in _NORMS:
        return "needs sums over a whole row before its first result"
    if op.kind in _LAYOUT:
        return "moves bytes and computes nothing"
    if op.kind in _SHAPES:
        return "renames dimensions: no bytes move, but the call remains"
    if any(word in op.kind for word in _WINDOWS):
        return "reads many values for each result"
    if op.kind == "BatchNormalization":
        return _norm(network, wiring, op)
    if op.kind in _ACTIVATIONS | _PAIRS:
        return _elementwise(network, wiring, op, title)
    return f"{title} has no fused kernel for it"


def _product(network: Network, wiring: Wiring, op: Op, title: str) -> str:
    """What follows a product that took nothing along."""
    readers = [network.ops[i] for name in op.makes for i in wiring.readers.get(name, ())]
    if not readers:
        return "nothing follows it"
    if len(readers) > 1:
        return f"its output has {len(readers)} readers"
    if readers[0].kind == "Add" and set(readers[0].reads) & set(op.reads):
        return "the Add behind it adds what it reads itself, so that its result can't be written over that"
    return f"{readers[0].kind} behind it is nothing that {title} computes with {_article(op.kind)} here"


def _border(network: Network, wiring: Wiring, op: Op) -> str:
    """A quantising operator that is left stands between integers and floats."""
    if op.kind == "QuantizeLinear":
        before = _maker(network, wiring, op.reads[0])
        if before is None:
            return "Q/DQ border: the network's input comes in floating point"
        return f"Q/DQ border left: {before.kind} before it runs in floating point"
    readers = [network.ops[i].kind for name in op.makes for i in wiring.readers.get(name, ())]
    if not readers:
        return "Q/DQ border: the network's output leaves in floating point"
    return f"Q/DQ border left: {readers[0]} behind it runs in floating point"


def _norm(network: Network, wiring: Wiring, op: Op) -> str:
    before = _maker(network, wiring, op.reads[0])
    if before is None or not before.macs:
        return f"stands behind {_named(before)}: no weight to fold it into"
    return _held(network, wiring, op.reads[0], before, "not foldable: ") or f"{before.kind}'s weight is no constant"


def _elementwise(network: Network, wiring: Wiring, op: Op, title: str) -> str:
    computed = [n for n in op.reads if n in network.inputs or _maker(network, wiring, n) is not None]
    makers = [_maker(network, wiring, n) for n in computed]
    if op.kind == "Mul" and len(computed) > 1 and any(m is not None and m.kind in _GATES for m in makers):
        return f"a gate: {title} has no kernel that multiplies by a computed {_named(_gate(makers))}"
    products = [(n, m) for n, m in zip(computed, makers, strict=True) if m is not None and m.macs]
    for name, maker in products:
        held = _held(network, wiring, name, maker, "")
        if held:
            return held
    if products:
        return f"{title} has no kernel of {products[-1][1].kind} with {op.kind} here"
    if len(computed) > 1:
        return f"joins two values that no product has just made: {', '.join(_named(m) for m in makers)}"
    return f"stands behind {_named(makers[0] if makers else None)}, which takes no {op.kind} along in {title}"


def _gate(makers: list[Op | None]) -> Op | None:
    return next((m for m in makers if m is not None and m.kind in _GATES), None)


def _held(network: Network, wiring: Wiring, name: str, maker: Op, prefix: str) -> str:
    """What in the file keeps a product's value from being changed before it is stored; '' if nothing does."""
    readers = len(wiring.readers.get(name, ()))
    if readers > 1:
        return f"{prefix}behind {_article(maker.kind)} whose output has {readers} readers"
    if name in network.outputs:
        return f"{prefix}behind {_article(maker.kind)} whose output the network returns"
    return ""


def _maker(network: Network, wiring: Wiring, name: str) -> Op | None:
    """The operator that computes a value from the network's input; None for inputs and constants."""
    position = wiring.makers.get(name)
    return None if position is None or position in wiring.constant else network.ops[position]


def _named(op: Op | None) -> str:
    return "the network's input" if op is None else op.kind


def _article(kind: str) -> str:
    return f"{'an' if kind[:1] in 'AEIO' else 'a'} {kind}"
