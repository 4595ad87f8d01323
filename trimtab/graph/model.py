"""The Graph: a network as captured ATen nodes. The one form in which networks travel here."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule, Node
from torch.fx.passes.fake_tensor_prop import FakeTensorProp
from torch.utils._pytree import tree_map_only

EXAMPLE_BATCH = 2
"""The batch size at which `Node.meta["val"]` shapes are written (any value above 1 would do)."""


@dataclass(frozen=True)
class TensorSpec:
    """Name, shape and type of one input. `None` in `shape` is the batch.

    `fill` is a value that integers and booleans may always have: the smallest of the user's example
    (a token that exists; ones for an attention mask, for which all zeros would mean nothing at all).
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: torch.dtype
    fill: int = 0

    def at(self, batch: int) -> tuple[int, ...]:
        """The shape with the batch filled in."""
        return tuple(batch if n is None else n for n in self.shape)


class Outputs(dict[str, torch.Tensor]):
    """A network's outputs by name (`out["logits"]`), attribute (`out.logits`) or index (`out[0]`).

    Those of a network that returns a plain tuple unpack as it does: `a, b = out`.
    """

    def __iter__(self) -> Iterator[Any]:
        positional = list(self.keys()) == [str(i) for i in range(len(self))]
        return iter(self.values()) if positional else super().__iter__()

    def __getitem__(self, key: str | int) -> torch.Tensor:
        return list(self.values())[key] if isinstance(key, int) else super().__getitem__(key)

    def __getattr__(self, key: str) -> torch.Tensor:
        try:
            return super().__getitem__(key)
        except KeyError:
            raise AttributeError(f"no output {key!r}; the outputs are {', '.join(self)}") from None


@dataclass(frozen=True)
class Graph:
    """A captured network. Passes return new ones and leave their argument as it was.

    Args:
        net: the nodes, with parameters and buffers under the user's own names. Called with the
            flat input tensors in the order of `inputs`; returns a tuple in the order of `outputs`.
            Every node carries `meta["val"]`, a fake tensor (or number) of its shape at
            `EXAMPLE_BATCH`.
        inputs: the input tensors.
        outputs: the names of the output tensors.
        bare: the network returns one tensor as such, not in a container.
        notes: what was left as it was and why, one sentence each.
        tied: the user's further names of a parameter, each with the name under which `net` holds it.
        unsaved: buffers that are no part of the user's `state_dict`, constants in the code among them.
    """

    net: GraphModule
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[str, ...]
    bare: bool
    notes: tuple[str, ...] = field(default=())
    tied: tuple[tuple[str, str], ...] = field(default=())
    unsaved: tuple[str, ...] = field(default=())

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor | Outputs:
        """Run on flat inputs; a tensor if the network returns one bare tensor, else `Outputs`."""
        values = self.net(*inputs)
        return values[0] if self.bare else Outputs(zip(self.outputs, values, strict=True))

    def copy(self) -> Graph:
        """A graph of its own nodes, parameters and buffers."""
        return replace(self, net=copy.deepcopy(self.net))

    def note(self, *sentences: str) -> Graph:
        """The same graph with sentences added to its notes, each once."""
        return replace(self, notes=tuple(dict.fromkeys(self.notes + sentences)))

    def nodes(self, *targets: Any) -> Iterator[Node]:
        """The operator nodes in order, or those of the given ATen overloads only."""
        for node in self.net.graph.nodes:
            if node.op == "call_function" and (not targets or node.target in targets):
                yield node

    def tensors(self) -> Mapping[str, torch.Tensor]:
        """Parameters and buffers by name; tied ones appear once, under their first name."""
        return {**dict(self.net.named_parameters()), **dict(self.net.named_buffers())}

    @property
    def device(self) -> torch.device:
        """Where the parameters and buffers live; the CPU if there are none."""
        return next((t.device for t in self.tensors().values()), torch.device("cpu"))

    def to(self, device: torch.device | str) -> Graph:
        """A copy on another device, with the devices that nodes name (of fresh zeros, of casts) moved too."""
        place = torch.device(device)
        moved = self.copy()
        moved.net.to(place)
        for node in moved.net.graph.nodes:
            node.args, node.kwargs = tree_map_only(torch.device, lambda _: place, (node.args, node.kwargs))
        moved.net.recompile()
        return shaped(moved)

    def example(self, batch: int = EXAMPLE_BATCH, seed: int = 0) -> tuple[torch.Tensor, ...]:
        """Random inputs of the right shapes: normal floats, integers and booleans of one value."""
        generator = torch.Generator().manual_seed(seed)
        return tuple(
            torch.randn(s.at(batch), generator=generator).to(self.device, s.dtype)
            if s.dtype.is_floating_point
            else torch.full(s.at(batch), s.fill, dtype=s.dtype, device=self.device)
            for s in self.inputs
        )


class _Shapes(FakeTensorProp):
    """Shapes without kernels; batch norm, whose own shape rule takes half of the time, keeps its input's."""

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if target is torch.ops.aten.batch_norm.default:
            return torch.empty_like(args[0])
        return super().call_function(target, args, kwargs)


def shaped(graph: Graph, batch: int = EXAMPLE_BATCH) -> Graph:
    """Write `meta["val"]` on every node of the graph, in place, and return it. Runs no kernel."""
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        inputs = [torch.empty(s.at(batch), dtype=s.dtype, device=graph.device) for s in graph.inputs]
    _Shapes(graph.net, mode).propagate_dont_convert_inputs(*inputs)
    return graph


def place(root: nn.Module, name: str, tensor: torch.Tensor) -> None:
    """Put a parameter or buffer into a module under a dotted name, in place, with the modules on the way."""
    *parents, leaf = name.split(".")
    for parent in parents:
        if parent not in root._modules:
            root.add_module(parent, nn.Module())
        root = root.get_submodule(parent)
    if isinstance(tensor, nn.Parameter):
        root.register_parameter(leaf, tensor)
    else:
        root.register_buffer(leaf, tensor)
