"""Mapping: one layer on an accelerator, its dataflow found and its cycles and joules modelled by ZigZag."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from trimtab.core.errors import NotRunnable
from trimtab.hardware.accelerator import Accelerator, Buffer
from trimtab.hardware.layer import Layer

_LOOPS = {
    "outputs": "K", "inputs": "C", "groups": "G", "kernel_x": "FX", "kernel_y": "FY",
    "x": "OX", "y": "OY", "batch": "B",
}  # fmt: skip
"""Names of the loops there."""
_OPERANDS = {"weights": "I2", "inputs": "I1", "outputs": "O"}
_SUM_BITS = 32
_SPATIAL = 2
"""Ways to spread a layer over the array that are tried, the fullest first."""
_FACTORS = 5
"""Factors that the loops of a layer are split into at most, unless there are more loops; all their orders are tried."""


@dataclass(frozen=True)
class Mapped:
    """A layer on an accelerator.

    Args:
        cycles: from the first load to the last store.
        joules: multiply-adds and all memories.
        utilisation: share of the multipliers that work, over all cycles.
        spatial: what is spread along each side, such as `outputs 16 | inputs 16 x kernel_x 3`.
        temporal: the loops in time for each operand, innermost first, by memory.
        buffers: joules by memory.
    """

    cycles: float
    joules: float
    utilisation: float
    spatial: str
    temporal: str
    buffers: tuple[tuple[str, float], ...]


@lru_cache(maxsize=4096)
def mapped(accelerator: Accelerator, layer: Layer, batch: int = 1) -> Mapped:
    """The mapping of least energy-delay product among those tried.

    Inputs come from where a layer's inputs and outputs lie between layers, and outputs go there; weights come from
    the farthest memory that holds them.

    Args:
        accelerator: that it runs on.
        layer: a convolution of one or two dimensions, or a linear layer.
        batch: samples.

    Raises:
        NotRunnable: no mapping was found; the message tells the layer's shape.

    Source: Mei et al. 2021, ZigZag, IEEE Trans. Computers 70(8).
    """
    if len(layer.kernel) > 2:
        raise _unmapped(accelerator, layer, f"a convolution of {len(layer.kernel)} dimensions", "1 or 2 dimensions")
    inputs, outputs = (n * batch for n in _ends(layer))
    home = accelerator.home(inputs, outputs)
    kept = accelerator.buffers.index(home)
    buffers = tuple(
        replace(b, holds=tuple(h for h in b.holds if h == "weights" or i <= kept))
        for i, b in enumerate(accelerator.buffers)
    )
    own = replace(accelerator, buffers=tuple(b for b in buffers if b.holds))
    with _quiet():
        try:
            return _found(own, layer, batch)
        except Exception as error:  # whatever ZigZag raises where nothing fits: asserts, empty sequences, its own
            line = next(iter(str(error).splitlines()), "") or type(error).__name__
            raise _unmapped(accelerator, layer, line[:160], "a mapping that its memories hold") from error


def _found(accelerator: Accelerator, layer: Layer, batch: int) -> Mapped:
    from zigzag.mapping.temporal_mapping import TemporalMappingType
    from zigzag.parser.accelerator_factory import AcceleratorFactory
    from zigzag.parser.workload_factory import LayerNodeFactory
    from zigzag.stages.evaluation.cost_model_evaluation import CostModelStage
    from zigzag.stages.mapping.spatial_mapping_generation import SpatialMappingGeneratorStage
    from zigzag.stages.mapping.temporal_mapping_generator_stage import TemporalMappingGeneratorStage
    from zigzag.stages.results.reduce_stages import MinimalEDPStage
    from zigzag.workload.layer_attributes import LayerTemporalOrdering

    node = LayerNodeFactory(_workload(layer, batch), [_hints(accelerator)]).create()
    node.temporal_ordering = LayerTemporalOrdering(_order(accelerator, layer))
    stage = MinimalEDPStage(
        [SpatialMappingGeneratorStage, MinimalEDPStage, TemporalMappingGeneratorStage, CostModelStage],
        accelerator=AcceleratorFactory(_hardware(accelerator)).create(),
        layer=node,
        loma_lpf_limit=_FACTORS,
        loma_show_progress_bar=False,
        nb_mappings_generated=_SPATIAL,
        enable_mix_spatial_mapping_generation=True,
        temporal_mapping_type=TemporalMappingType("uneven"),
        access_same_data_considered_as_no_access=True,
    )
    best = next(iter(stage.run()))[0]
    buffers = _by_buffer(best, accelerator)
    return Mapped(
        cycles=float(best.latency_total2),
        joules=layer.macs * batch * accelerator.energy + sum(joules for _, joules in buffers),
        utilisation=float(best.mac_utilization2),
        spatial=_spatial(best),
        temporal=_temporal(best, accelerator),
        buffers=buffers,
    )


def _workload(layer: Layer, batch: int) -> dict[str, Any]:
    """The layer as seven loops; a linear layer is a 1x1 convolution over a row of its rows."""
    y, x = _sides(layer.result)
    fy, fx = _sides(layer.kernel)
    sy, sx = _sides(layer.stride)
    dy, dx = _sides(layer.dilation)
    py, px = _sides(layer.padding, 0)
    iy, ix = _sides(layer.spatial)
    groups = layer.groups
    return {
        "id": 0,
        "name": "layer",
        "operator_type": "Conv",
        "equation": "O[b][g][k][oy][ox]+=W[g][k][c][fy][fx]*I[b][g][c][iy][ix]",
        "dimension_relations": [f"ix={sx}*ox+{dx}*fx", f"iy={sy}*oy+{dy}*fy"],
        "loop_dims": ["B", "G", "K", "C", "OY", "OX", "FY", "FX"],
        "loop_sizes": [batch, groups, layer.outputs // groups, layer.inputs // groups, y, x, fy, fx],
        "operand_precision": {"W": 8, "I": 8, "O": _SUM_BITS, "O_final": 8},
        "operand_source": {"W": 0, "I": 0},
        "pr_loop_dims": ["IX", "IY"],
        "pr_loop_sizes": [ix, iy],
        "padding": [[px, px], [py, py]],
    }


def _hints(accelerator: Accelerator) -> dict[str, Any]:
    """What may be spread along each side."""
    return {
        "name": "default",
        "spatial_mapping": None,
        "memory_operand_links": {"W": "I2", "I": "I1", "O": "O"},
        "spatial_mapping_hint": {
            f"D{i}": [_LOOPS[loop] for loop in loops] for i, loops in enumerate(accelerator.unroll, 1)
        },
    }


def _order(accelerator: Accelerator, layer: Layer) -> list[list[str]]:
    """Loops of fixed place: the dataflow's innermost, and groups outermost where none are spread over the array."""
    y, x = _sides(layer.result)
    fy, fx = _sides(layer.kernel)
    sizes = {"x": x, "y": y, "kernel_x": fx, "kernel_y": fy}
    inner = [[_LOOPS[loop], "*"] for loop in accelerator.order if sizes.get(loop, 2) > 1]
    apart = layer.groups > 1 and not any("groups" in loops for loops in accelerator.unroll)
    return [*inner, ["*", "*"], ["G", "*"]] if apart else inner


def _hardware(accelerator: Accelerator) -> dict[str, Any]:
    sides = [f"D{i}" for i, _ in enumerate(accelerator.sides, 1)]
    return {
        "name": accelerator.name,
        "memories": {b.name: _memory(b) for b in accelerator.buffers},
        "dataflows": None,
        "operational_array": {
            "is_imc": False,
            "unit_energy": accelerator.energy,
            "unit_area": 0.0,
            "dimensions": sides,
            "sizes": list(accelerator.sides),
            "systolic_dimensions": sides if accelerator.systolic else [],
        },
    }


def _memory(buffer: Buffer) -> dict[str, Any]:
    """A memory whose accesses cost by the byte, whatever its width."""
    operands = [_OPERANDS[h] for h in buffer.holds]
    gives = [f"{o}, {d}" for o in operands for d in (("tl", "th") if o == "O" else ("tl",))]
    takes = [f"{o}, {d}" for o in operands for d in (("fh", "fl") if o == "O" else ("fh",))]

    def port(name: str, kind: str, width: float, allocation: list[str]) -> dict[str, Any]:
        return {
            "name": name, "type": kind, "bandwidth_min": 8, "bandwidth_max": int(8 * width), "allocation": allocation
        }  # fmt: skip

    apart = [port("r_port_1", "read", buffer.read, gives), port("w_port_1", "write", buffer.write, takes)]
    return {
        "size": int(8 * buffer.capacity),
        "r_cost": buffer.energy * int(8 * buffer.read) / 8,
        "w_cost": buffer.energy * int(8 * buffer.write) / 8,
        "area": 0.0,
        "latency": 1,
        "operands": operands,
        "ports": [port("rw_port_1", "read_write", buffer.read, gives + takes)] if buffer.one_port else apart,
        "served_dimensions": [f"D{i}" for i in buffer.shared],
        "mem_type": "sram",
        "auto_cost_extraction": False,
        "force_double_buffering": False,
    }


def _spatial(best: Any) -> str:
    names = {v: k for k, v in _LOOPS.items()}
    sides = [
        " x ".join(f"{names[d.name]} {int(n)}" for d, n in side.items() if n > 1) or "-"
        for _, side in sorted(best.layer.spatial_mapping.items(), key=lambda item: str(item[0]))
    ]
    return " | ".join(sides)


def _temporal(best: Any, accelerator: Accelerator) -> str:
    names = {v: k for k, v in _LOOPS.items()}
    operands = {"W": "weights", "I": "inputs", "O": "outputs"}
    parts = []
    for operand, levels in best.temporal_mapping.mapping_dic_origin.items():
        own = [b.name for b in accelerator.buffers if operands[operand.name] in b.holds]
        held = [
            f"{name} {' '.join(f'{names[d.name]} {int(n)}' for d, n in loops)}"
            for name, loops in zip(own, levels, strict=False)
            if loops
        ]
        parts.append(f"{operands[operand.name]}: {', '.join(held) or '-'}")
    return "; ".join(sorted(parts))


def _by_buffer(best: Any, accelerator: Accelerator) -> tuple[tuple[str, float], ...]:
    """Joules by memory, from the bytes that the mapping moves.

    Where we differ: ZigZag counts accesses of a port's whole width, and cuts them down to an integer, so that the 16
    weights of a small layer come from a wide DRAM for nothing.
    """
    from zigzag.mapping.data_movement import DataDirection, DataMoveAttr

    operands = {"W": "weights", "I": "inputs", "O": "outputs"}
    found = {b.name: 0.0 for b in accelerator.buffers}
    for operand, levels in best.mapping.unit_mem_data_movement.items():
        own = [b for b in accelerator.buffers if operands[operand.name] in b.holds]
        for level, (buffer, moves) in enumerate(zip(own, levels, strict=False), 1):
            units = best.mapping.spatial_mapping.unit_count[operand][level]
            amounts, widths, counts = (
                moves.get_attribute(what)
                for what in (
                    DataMoveAttr.DATA_TRANS_AMOUNT_PER_PERIOD,
                    DataMoveAttr.DATA_PRECISION,
                    DataMoveAttr.DATA_TRANS_PERIOD_COUNT,
                )
            )
            bits = sum(amounts.get(d) * widths.get(d) * counts.get(d) for d in DataDirection)
            found[buffer.name] += float(bits * units) / 8 * buffer.energy
    return tuple(found.items())


def _ends(layer: Layer) -> tuple[int, int]:
    """Bytes of the inputs and of the outputs of one sample."""
    outputs = layer.outputs
    for n in layer.result:
        outputs *= n
    return layer.activations - outputs, outputs


def _sides(values: tuple[int, ...], default: int = 1) -> tuple[int, int]:
    """Height and width; what has one dimension is a row."""
    y, x = (default, default, *values)[-2:]
    return y, x


def _unmapped(accelerator: Accelerator, layer: Layer, got: str, expected: str) -> NotRunnable:
    return NotRunnable(
        f"{accelerator.name} maps no such layer",
        where=shape_of(layer),
        got=got,
        expected=expected,
        do="Give that layer fewer channels or a smaller input, or choose another target.",
    )


def shape_of(layer: Layer) -> str:
    """A layer for people: `conv 16 -> 32, kernel 3x3, on 32x32`."""
    spatial = "x".join(map(str, layer.spatial)) or "1"
    if not layer.kernel:
        return f"linear {layer.inputs} -> {layer.outputs}, {spatial} rows"
    groups = f", {layer.groups} groups" if layer.groups > 1 else ""
    return f"conv {layer.inputs} -> {layer.outputs}, kernel {'x'.join(map(str, layer.kernel))}{groups}, on {spatial}"


@contextmanager
def _quiet() -> Iterator[None]:
    """ZigZag warns at every step; what matters comes as an error."""
    logger = logging.getLogger("zigzag")
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(before)
