"""Library: the trained alternatives of a network's sites, made once and kept in the store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from trimtab.compress.swap import start
from trimtab.compress.swap.learn import Pupil, data_of, errors, features, learn, placed, teacher_of
from trimtab.compress.swap.modules import FeedForward, LinearAttention, Pooling, Same, chain
from trimtab.compress.swap.sites import Site
from trimtab.core.context import Context
from trimtab.core.store import digest
from trimtab.core.task import Batch
from trimtab.graph.model import Graph
from trimtab.graph.splice import spliced
from trimtab.train.checkpoint import identity
from trimtab.train.data import checked, fingerprint, in_memory, take
from trimtab.train.recipe import Recipe

SAMPLES = 256
"""That errors are measured on, and convolutions that stand for blocks are fitted to."""
_ATEN = torch.ops.aten
Choice = tuple[Site, str]


@dataclass(frozen=True)
class Alternative:
    """A trained alternative.

    Args:
        site: where it stands.
        kind: what it is.
        module: with its weights.
        began: its relative squared error at the site before training; None without data.
        error: after it.
    """

    site: Site
    kind: str
    module: nn.Module
    began: float | None
    error: float | None


def library(
    graph: Graph, choices: Sequence[Choice], context: Context, recipe: Recipe | None
) -> dict[tuple[str, str], Alternative]:
    """Trained alternatives by the name of their site and their kind.

    What the store has is taken from there; the others are trained together. Where training made one worse on
    the calibration data, it is as it began.

    Args:
        graph: the original.
        choices: sites with kinds.
        context: data, device, store.
        recipe: of the training; None for none.
    """
    keys = _keys(graph, choices, context, recipe)
    found: dict[tuple[str, str], Alternative] = {}
    missing: list[Choice] = []
    for site, kind in choices:
        key = keys[site.name, kind]
        said = context.store.get(key) if context.store is not None else None
        if said is None or context.store is None:
            missing.append((site, kind))
            continue
        module = _module(graph, site, kind, None)
        if list(module.parameters()):
            module.load_state_dict(context.store.tensors(key))
        found[site.name, kind] = Alternative(site, kind, module, said["began"], said["error"])
    for each in _made(graph, missing, context, recipe, digest(*keys.values())) if missing else ():
        found[each.site.name, each.kind] = each
        if context.store is not None:
            weights = dict(each.module.state_dict()) or None
            said = {"site": each.site.name, "kind": each.kind, "began": each.began, "error": each.error}
            context.store.put(keys[each.site.name, each.kind], said, weights)
    return {(site.name, kind): found[site.name, kind] for site, kind in choices}


def swapped(graph: Graph, alternatives: Sequence[Alternative]) -> Graph:
    """The graph with alternatives in the place of their sites; their parameters are `<site>.swapped.<theirs>`.

    Args:
        graph: the network.
        alternatives: in graph order.
    """
    # from the end: what a site reads is still there under its name
    for each in reversed(alternatives):
        end = each.site.gives(each.kind)
        module = each.module
        if each.kind == "identity" and _written(graph, end):
            module = Same()
        graph = spliced(graph, module, each.site.reads(each.kind), end, f"{each.site.name}.swapped")
    return graph


def _written(graph: Graph, name: str) -> bool:
    """Whether something writes into a node's value."""
    node = next(n for n in graph.net.graph.nodes if n.name == name)
    schemas = (getattr(user.target, "_schema", None) for user in node.users if user.args and user.args[0] is node)
    return any(schema is not None and schema.is_mutable for schema in schemas)


def _keys(
    graph: Graph, choices: Sequence[Choice], context: Context, recipe: Recipe | None
) -> dict[tuple[str, str], str]:
    """What names each alternative in the store: everything that decides its weights, and not what else is trained."""
    data = (fingerprint(context.task), calibrated(graph, context))
    common = digest(identity(graph), recipe, data, context.device, context.seed)
    versions = (torch.__version__, torch.get_num_threads())
    return {(s.name, k): f"swap-{digest(common, versions, s.name, k)}" for s, k in choices}


def calibrated(graph: Graph, context: Context) -> str:
    """A hash of the inputs that alternatives are measured on and fitted to; of nothing without calibration data."""
    batches = [checked(batch, graph, "calibrate")[0] for batch in take(context.calibrate, SAMPLES)]
    return digest(*(tensor for inputs in batches for tensor in inputs))


def _made(
    graph: Graph, choices: Sequence[Choice], context: Context, recipe: Recipe | None, name: str
) -> list[Alternative]:
    seen = _seen(graph, context, needed=recipe is not None)
    first = _first(graph, choices, seen[:1], context)
    pupils = [Pupil(s, k, _module(graph, s, k, first.get(s.name)).to(context.device)) for s, k in choices]
    began: Mapping[str, float | None] = errors(graph, pupils, seen, context) if seen else {p.name: None for p in pupils}
    before = {p.name: {k: v.clone() for k, v in p.module.state_dict().items()} for p in pupils}
    ended = began
    if recipe is not None:
        learn(graph, pupils, context, recipe, f"swap-{name}-unfinished")
        ended = errors(graph, pupils, seen, context)
        if context.store is not None:
            context.store.drop(f"swap-{name}-unfinished")
    found = []
    for pupil in pupils:
        start_error, error = began[pupil.name], ended[pupil.name]
        if start_error is not None and error is not None and error > start_error:
            pupil.module.load_state_dict(before[pupil.name])
            error = start_error
        module = pupil.module.cpu().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        found.append(Alternative(pupil.site, pupil.kind, module.eval(), start_error, error))
    return found


def _seen(graph: Graph, context: Context, needed: bool) -> tuple[Batch, ...]:
    """A few samples to measure errors on; the first to train on where there are none to calibrate on."""
    if context.calibrate:
        return take(context.calibrate, SAMPLES)
    if context.train is None and not needed:
        return ()
    return in_memory(data_of(context), graph, "train", SAMPLES, context.seed)


def _first(
    graph: Graph, choices: Sequence[Choice], batches: Sequence[Batch], context: Context
) -> dict[str, tuple[Tensor, Tensor]]:
    """Weight and bias of the convolution nearest to each block that one may stand for, on a few samples."""
    blocks = [s for s, k in choices if s.part == "block" and k == "convolution"]
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for batch in batches if blocks else ():
        teacher = teacher_of(graph, blocks, context.device)
        for site, x, y in features(teacher.graph, blocks, placed(batch, teacher.graph, "calibrate"), ends=False):
            weight, bias = start.fitted(x[0], y, site.forms["convolution"].layers[0].kernel)
            found[site.name] = (weight, bias)
    return found


def _module(graph: Graph, site: Site, kind: str, fit: tuple[Tensor, Tensor] | None) -> nn.Module:
    """An alternative with the weights that it begins with."""
    if kind == "identity":
        return nn.Identity()
    nodes: dict[str, Node] = {n.name: n for n in graph.net.graph.nodes}
    node, form = nodes[site.layer], site.forms[kind]
    if site.part == "attention":
        return _mixer(nodes, site, kind)
    if site.part == "block":
        layer = form.layers[0]
        weight, bias = fit or (start.dirac(layer.inputs, layer.kernel), torch.zeros(layer.inputs))
        return chain(form, (weight.cpu(),), bias.cpu())
    if site.part == "convolution":
        weight, own = _weights(graph, node)
        return chain(form, start.OF_CONVOLUTION[kind](weight, form.layers), own)
    first, second = nodes[site.nodes[0]], node
    (w1, b1), (w2, b2) = _weights(graph, first), _weights(graph, second)
    keep = start.units(w1, w2, form.layers[0].outputs)
    activation = nodes[site.nodes[1]]
    act, rest, more = activation.target, activation.args[1:], activation.kwargs

    def function(x: Tensor) -> Tensor:
        return act(x, *rest, **more)  # type: ignore[operator, no-any-return]

    return FeedForward((w1[keep], None if b1 is None else b1[keep]), (w2[:, keep], b2), function)


def _mixer(nodes: Mapping[str, Node], site: Site, kind: str) -> nn.Module:
    shapes = [tuple(nodes[name].meta["val"].shape) for name in site.inputs]
    heads = shapes[0][1] if len(shapes[0]) == 4 else 1
    if kind == "pooling":
        return Pooling(heads, site.causal)
    return LinearAttention(heads, shapes[1][-1], site.transposed)


def _weights(graph: Graph, node: Node) -> tuple[Tensor, Tensor | None]:
    tensors = graph.tensors()
    weight, bias, *_ = (*node.args[1:3], None)
    named: Any = weight
    found = None if bias is None else tensors[str(bias.target)].detach()  # type: ignore[union-attr]
    return tensors[str(named.target)].detach(), found
