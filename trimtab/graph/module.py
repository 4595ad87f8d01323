"""A captured network as a plain `nn.Module` with the user's parameter names."""

from __future__ import annotations

from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import nn

from trimtab.core.errors import InputError
from trimtab.graph.model import Graph, Outputs, place
from trimtab.graph.modes import set_mode


class Network(nn.Module):
    """A captured network that is called, trained, saved and moved as the user's own module was.

    Its `state_dict` has the user's names, tied parameters under each of theirs. `train()` and
    `eval()` switch the nodes of the graph. Made by `module`.
    """

    _graph: Graph

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        own, net = self.__dict__, graph.net
        own["_graph"] = graph
        # the very dicts of the graph's net, so that moving, casting and loading reach both
        for name in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
            own[name] = net.__dict__[name]
        for alias, first in graph.tied:
            place(self, alias, net.get_parameter(first))
        for name in graph.unsaved:
            path, _, leaf = name.rpartition(".")
            if leaf in net.get_submodule(path)._buffers:
                net.get_submodule(path)._non_persistent_buffers_set.add(leaf)
        self.train(net.training)

    @property
    def graph(self) -> Graph:
        """A copy of the graph with the weights as they are now."""
        return self._graph.copy()

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor | Outputs:
        """Run on tensors by position (containers are flattened) or by the names of the graph's inputs."""
        return self._graph(*_bind([spec.name for spec in self._graph.inputs], args, kwargs))

    def train(self, mode: bool = True) -> Network:
        """Switch to training (or, with False, to evaluation)."""
        super().train(mode)
        set_mode(self._graph, mode)
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Network:
        return Network(self._graph.copy())


def module(graph: Graph) -> Network:
    """Turn a graph into an `nn.Module` of its own weights, in the graph's mode."""
    return Network(graph.copy())


def _bind(names: list[str], args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[torch.Tensor]:
    values = [leaf for leaf in pytree.tree_leaves(args) if leaf is not None]
    if len(values) > len(names):
        raise InputError("network: too many inputs", got=len(values), expected=f"{len(names)}: {', '.join(names)}")
    given: dict[str, Any] = dict(zip(names, values, strict=False))
    for key, value in kwargs.items():
        for path, leaf in pytree.tree_flatten_with_path(value)[0]:
            name = "_".join([key, *(str(getattr(p, "key", getattr(p, "idx", p))) for p in path)])
            if leaf is not None:
                if name in given:
                    raise InputError("network: an input is given twice", where=name)
                given[name] = leaf
    wrong = [name for name, value in given.items() if name not in names or not isinstance(value, torch.Tensor)]
    missing = [name for name in names if name not in given]
    if wrong or missing:
        raise InputError(
            "network: the inputs do not match",
            got=", ".join(given) or "none",
            expected=f"tensors {', '.join(names)}",
            do="Numbers and options were fixed when the network was captured; leave them out.",
        )
    return [given[name] for name in names]
