"""Books: weights as look-ups in codebooks, which train."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx import Node

from trimtab.graph.model import Graph, place, shaped

_ATEN = torch.ops.aten


@dataclass(frozen=True)
class Book:
    """A weight as entries of a codebook, one behind the other in the order of memory.

    Args:
        values: the entries, [entries, block].
        indices: the entry of each part of the weight, int64 [n / block].
        zero: the first entry is zero and stays so.
    """

    values: Tensor
    indices: Tensor
    zero: bool = False

    def weight(self, shape: torch.Size) -> Tensor:
        """The weight, of a shape."""
        return self.values[self.indices].reshape(shape)


def with_books(graph: Graph, books: Mapping[str, Book]) -> Graph:
    """A network that looks these weights up in its codebooks, which are its parameters in their place.

    dL/dC_k = sum over the weights that are entry k of dL/dw: the gradient of a look-up.

    Args:
        graph: copied.
        books: by the parameter's name; all its parts are of one block length.

    Source: Han et al. (2016), Deep Compression, equation 3.
    """
    result = graph.copy()
    nodes = result.net.graph
    for name, book in books.items():
        weight = result.net.get_parameter(name)
        trained = nn.Parameter(book.values.clone().to(weight.dtype), weight.requires_grad)
        place(result.net, codebook_name(name), trained)
        place(result.net, f"{name}_indices", book.indices.to(torch.int64))
        readers: list[Node] = list(nodes.find_nodes(op="get_attr", target=name))
        with nodes.inserting_before(next(iter(nodes.nodes))):
            values, indices = nodes.get_attr(codebook_name(name)), nodes.get_attr(f"{name}_indices")
        with nodes.inserting_after(indices):
            rows = nodes.call_function(_ATEN.embedding.default, (values, indices, 0 if book.zero else -1))
        with nodes.inserting_after(rows):
            whole = nodes.call_function(_ATEN.reshape.default, (rows, list(weight.shape)))
        for reader in readers:
            reader.replace_all_uses_with(whole)
            nodes.erase_node(reader)
        module, _, leaf = name.rpartition(".")
        del result.net.get_submodule(module)._parameters[leaf]
    nodes.lint()
    result.net.recompile()
    return shaped(result)


def codebook_name(name: str) -> str:
    """The parameter that holds a weight's codebook."""
    return f"{name}_codebook"


@torch.no_grad()
def written(graph: Graph, books: Mapping[str, Book]) -> Graph:
    """A network with its weights as their codebooks have them; the argument is copied."""
    result = graph.copy()
    for name, book in books.items():
        weight = result.net.get_parameter(name)
        weight.copy_(book.weight(weight.shape))
    return result
