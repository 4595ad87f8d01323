"""Learner: a network that computes in the precision and memory layout that training chose."""

from __future__ import annotations

from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from trimtab.graph.model import Graph, Outputs
from trimtab.graph.module import Network


class Learner(Network):
    """A graph called as the user's own module is; floating outputs are float32 whatever it computes in.

    Args:
        graph: shared, not copied.
        bf16: compute under autocast to bfloat16.
        channels_last: images [N, C, H, W] are given that memory layout, as the graph's kernels have.
    """

    bf16: bool
    channels_last: bool
    last: tuple[tuple[Any, ...], dict[str, Any], Any] | None

    def __init__(self, graph: Graph, bf16: bool = False, channels_last: bool = False) -> None:
        super().__init__(graph)
        # not as a module sets attributes: a part of the user's network may have one of these names
        self.__dict__.update(bf16=bf16, channels_last=channels_last, last=None)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor | Outputs:
        """The graph's outputs; arguments and outputs of the last call are kept in `last`."""
        args, kwargs = pytree.tree_map_only(Tensor, self._laid_out, (args, kwargs))
        with torch.autocast(self.graph_device, torch.bfloat16, enabled=self.bf16):
            found = super().forward(*args, **kwargs)
        named = found.items() if isinstance(found, Outputs) else None
        found = _float(found) if named is None else Outputs((name, _float(value)) for name, value in named)
        self.__dict__["last"] = (args, kwargs, found)
        return found

    @property
    def graph_device(self) -> str:
        """`cpu` or `cuda`."""
        return self._graph.device.type

    def _laid_out(self, value: Tensor) -> Tensor:
        wanted = self.channels_last and value.ndim == 4
        return value.contiguous(memory_format=torch.channels_last) if wanted else value


def _float(value: Any) -> Any:
    return value.float() if value.dtype == torch.bfloat16 else value
