"""Heads: small classifiers on what a network has computed so far, and the choice among their answers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.fx import Node

from trimtab.core.errors import InputError
from trimtab.core.store import digest
from trimtab.graph.chain import Link
from trimtab.graph.model import Graph
from trimtab.graph.rules.ties import shape

Confidence = Literal["probability", "entropy", "margin"]
NAME = "exits"
"""What the parameters of exits begin with."""
_SMALL = 8
"""Images of fewer pixels a side are not halved any more."""


def confidence(logits: Tensor, kind: Confidence) -> Tensor:
    """How sure logits [N, classes] are, [N, 1], from 0 to 1.

    `probability`: the largest of p = softmax(logits) (Kaya et al. 2019); `entropy`: 1 - H(p) / log(classes)
    (Teerapittayanon et al. 2016, who bound H itself); `margin`: the largest less the second of p.
    """
    if kind == "entropy":
        log = torch.log_softmax(logits, 1)
        spread = (log.exp() * log).sum(1, keepdim=True)
        return 1 + spread / math.log(logits.shape[1])
    likely = torch.softmax(logits, 1)
    if kind == "margin":
        two = torch.topk(likely, 2, 1).values
        return two[:, :1] - two[:, 1:]
    return likely.amax(1, keepdim=True)


class Head(nn.Module):
    """Layers that halve an image, a mean over positions, and a linear layer.

    Args:
        sizes: of what it reads, without the batch: [C, ...positions], or [...positions, C] with `last`.
        classes: of the answer.
        widths: channels of each layer before the mean; none for the mean alone.
        last: channels are the last dimension.
    """

    def __init__(self, sizes: Sequence[int], classes: int, widths: Sequence[int], last: bool) -> None:
        super().__init__()
        self.last, self.positions = last, len(sizes) - 1
        own = sizes[-1] if last else sizes[0]
        layers: list[nn.Module] = []
        kinds = {1: (nn.Conv1d, nn.BatchNorm1d), 2: (nn.Conv2d, nn.BatchNorm2d), 3: (nn.Conv3d, nn.BatchNorm3d)}
        least = min(sizes[1:], default=1)
        for width in widths:
            if last or not self.positions:
                layers += [nn.Linear(own, width), nn.ReLU()]
            else:
                convolution, norm = kinds[self.positions]
                stride = 2 if least > _SMALL else 1
                layers += [convolution(own, width, 3, stride, 1, bias=False), norm(width), nn.ReLU()]
                least = -(-least // stride)
            own = width
        self.layers = nn.Sequential(*layers)
        self.linear = nn.Linear(own, classes)

    def forward(self, x: Tensor) -> Tensor:
        """To logits [N, classes]."""
        first = 1 if self.last else 2
        if self.last and self.positions:  # every position alike, so the mean comes first
            x = x.mean(tuple(range(first, first + self.positions)))
            return self.linear(self.layers(x))  # type: ignore[no-any-return]
        x = self.layers(x)
        return self.linear(x.mean(tuple(range(2, x.ndim))) if self.positions else x)  # type: ignore[no-any-return]


class Selected(nn.Module):
    """The answer of the first head that is sure enough of it, else the network's own.

    y = z_k for the least k with confidence(z_k) >= tau_k, else z (EQUATIONS eq. 10)

    Args:
        heads: by the name of their place, in order.
        thresholds: tau of each, in the same order.
        kind: of the confidence.
    """

    def __init__(self, heads: Mapping[str, Head], thresholds: Sequence[float], kind: Confidence) -> None:
        super().__init__()
        self.heads = nn.ModuleDict({key(name): head for name, head in heads.items()})
        self.thresholds, self.kind = tuple(thresholds), kind

    def forward(self, *values: Tensor) -> Tensor:
        """The values at the places of the heads, and the network's own logits [N, classes] behind them."""
        *features, found = values
        steps = list(zip(self.heads.values(), features, self.thresholds, strict=True))
        for head, feature, threshold in reversed(steps):
            logits = head(feature)
            found = torch.where(confidence(logits, self.kind) >= threshold, logits, found)
        return found


def key(name: str) -> str:
    """A place's name as that of a module: it must hold no dot."""
    return name.replace(".", "_").replace("/", "_") or "_"


def classes(graph: Graph) -> tuple[Node, int]:
    """The node of a classifier's logits and the number of its classes.

    Raises:
        InputError: the network has another output than one of [N, classes].
    """
    held: Any = graph.net.graph.output_node().args[0]
    outputs: list[Node] = list(held)
    sizes = [shape(n) for n in outputs if isinstance(n, Node)]
    if len(sizes) != 1 or len(sizes[0]) != 2 or sizes[0][1] < 2:
        told = ", ".join(str(["N", *s[1:]]) for s in sizes)
        raise InputError("Exits: the network is no classifier", got=f"outputs {told}", expected="one of [N, classes]")
    return outputs[0], sizes[0][1]


def heads(graph: Graph, links: Sequence[Link], layers: int, width: int | None, seed: int) -> dict[str, Head]:
    """A fresh head for each place, drawn from the seed and the place's name alone.

    Args:
        graph: the network.
        links: its places.
        layers: before the mean over positions.
        width: channels of each layer; None doubles them each time, up to what the classifier reads.
        seed: of the weights.
    """
    nodes = {n.name: n for n in graph.net.graph.nodes}
    end, count = classes(graph)
    widest = _read(end)
    found: dict[str, Head] = {}
    for link in links:
        sizes, last = shape(nodes[link.node])[1:], channels_last(nodes[link.node])
        own = sizes[-1] if last else sizes[0]
        doubled = [min(own * 2 ** (i + 1), max(widest, own)) for i in range(layers)]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(digest("exit", seed, link.name)[:8], 16))
            found[link.name] = Head(sizes, count, [width] * layers if width else doubled, last)
    return found


def _read(end: Node) -> int:
    """How many features the classifier reads."""
    node = end
    while isinstance(node, Node):
        if str(node.target) in ("aten.linear.default", "aten.addmm.default"):
            read = node.args[0 if "linear" in str(node.target) else 1]
            return shape(read)[-1]
        node = next((n for n in node.all_input_nodes if n.op == "call_function"), None)  # type: ignore[assignment]
    return 64


def channels_last(node: Node) -> bool:
    """Whether the last dimension of a value holds its channels, as it does behind a linear layer or layer norm."""
    rank = len(shape(node))
    for _ in range(64 if rank > 2 else 0):
        name = str(node.target)
        if any(word in name for word in ("conv", "batch_norm", "group_norm", "instance_norm")):
            return False
        if any(word in name for word in ("linear", "layer_norm", "addmm", "matmul", "rms_norm", "embedding")):
            return True
        before = [n for n in node.all_input_nodes if n.op == "call_function" and len(shape(n)) == rank]
        if not before:
            return rank == 3
        node = before[-1]
    return rank < 4
