"""Factorise: layers of low rank, as chains of smaller layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from trimtab.compress.factorise.aware import Moments, outputs_of, projected, refitted, spectrum
from trimtab.compress.factorise.build import chained
from trimtab.compress.factorise.layers import Whole, chosen, left_whole, moving, refuse, wholes
from trimtab.compress.factorise.ranks import by_bayes, by_energy, by_share, choices, fits, rounded, spectra
from trimtab.compress.factorise.shapes import METHODS, Method, Ranks, consistent, kind, limits, matrices, misfit, parts
from trimtab.compress.factorise.weights import decomposed
from trimtab.compress.quantise.calibrate import calibration_inputs
from trimtab.compress.quantise.technique import refuse_quantised
from trimtab.core.context import Context
from trimtab.core.errors import InputError
from trimtab.core.space import Axis
from trimtab.graph.model import Graph
from trimtab.graph.modes import set_mode
from trimtab.graph.splice import spliced

NOTHING = "Factorise: no layer has fewer multiply-adds at these ranks: all stay whole."
"""What is told where there is nothing to do."""


@dataclass(frozen=True)
class Factorise:
    """Put chains of smaller layers in the place of layers whose weights are nearly of low rank.

        W ~ U V,    U of r columns: I O multiply-adds become r (I + O)

    Give `ranks`, `energy`, `share` or `rule`. `resolve` turns the others into ranks, and a plan holds ranks only. Of
    layers that are not named in `ranks`, those whose multiply-adds would not fall stay whole.

    Args:
        method: `svd`: two layers, of a convolution a k x k of r channels and a 1 x 1 (any number of sides; linear
            layers too); `spatial`: k x 1, then 1 x k; `tucker`: 1 x 1, k x k, 1 x 1; `cp`: 1 x 1, a depthwise kernel
            along each side, 1 x 1; `tt`: a tensor train, of a linear layer over its inputs and outputs in three
            factors each. The last three need tensorly (extra `factorise`).
        ranks: for a layer's name its rank, or its ranks in the order of the chain where the method has several (two
            of `tucker`, sides + 1 of `tt`, two of a linear layer's); one number stands for all, each up to its limit.
        energy: share of the weight's squared norm to keep (of the outputs' with `aware` and `svd`), above 0 to 1.
        share: of the layer's multiply-adds to keep, above 0 to below 1.
        rule: `vbmf`: ranks by empirical variational Bayes. `cp` has neither this nor `energy`.
        aware: keep the layer's outputs on calibration data, not its weight: `svd` solved whole, else the last factor.
        multiple: ranks that are not given are multiples of this, which kernels are fast at.
        layers: names of layers to take: exact, a prefix, or a pattern; all where there are none.
        skip: names of layers to leave whole, beside the task's `keep`.

    Raises:
        InputError: a setting is out of range, a layer is unknown or of another kind than the method takes, a rank is
            larger than the layer's matrix, no layer suits the method, `aware` has no data, or the network is quantised.
        RuntimeMissing: tensorly is not installed.

    Source: Denton et al. (2014), Exploiting Linear Structure Within Convolutional Networks; Jaderberg et al. (2014),
    Speeding up Convolutional Neural Networks with Low Rank Expansions; Lebedev et al. (2015), Speeding-up
    Convolutional Neural Networks Using Fine-tuned CP-Decomposition; Novikov et al. (2015), Tensorizing Neural
    Networks; Garipov et al. (2016), Ultimate Tensorization; Kim et al. (2016), Compression of Deep Convolutional
    Neural Networks for Fast and Low Power Mobile Applications; Zhang et al. (2016), Accelerating Very Deep
    Convolutional Networks for Classification and Detection.
    """

    method: Method = "svd"
    ranks: Mapping[str, int | Sequence[int]] | None = None
    energy: float | None = None
    share: float | None = None
    rule: Literal["vbmf"] | None = None
    aware: bool = False
    multiple: int = 8
    layers: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()

    def sites(self, graph: Graph, context: Context) -> tuple[Axis, ...]:
        """One axis for each layer: None for the whole layer, then ranks (lists of them where there are several)."""
        self._check_settings()
        found = []
        for name, layer in self._suited(graph, context).items():
            ranks = choices(self.method, layer.shape, self.multiple)
            plain = tuple(r[0] if len(r) == 1 else list(r) for r in ranks)
            if plain:
                found.append(Axis(f"Factorise:{name}", (None, *plain), ordered=True))
        return tuple(found)

    def apply(self, graph: Graph, context: Context) -> Graph:
        """The graph, evaluating, with chains in place of layers; their names are `<layer>.factors.0` and so on."""
        ranks = self.resolve(graph, context).ranks or {}
        result = set_mode(graph.copy(), False)
        known, others = wholes(result)
        layers = {name: (known[name], ranks_of(self.method, known[name], given)) for name, given in ranks.items()}
        inputs, notes = self._inputs(result, context)
        result = low_rank(result, self.method, layers, inputs)
        return result.note(*notes, *left_whole(others), *([] if ranks else [NOTHING]))

    def resolve(self, graph: Graph, context: Context) -> Factorise:
        """The same with `ranks` in place of `energy`, `share` or `rule`; none where no layer would become cheaper.

        Raises:
            InputError: as above.
        """
        self.check()
        refuse_quantised(graph, "Factorise")
        if self.ranks is not None:
            self._check_ranks(graph, context)
            return self
        layers = self._suited(graph, context)
        if not layers:
            raise InputError(f"Factorise: {self.method}: nothing to factorise", got="no layer that suits")
        seen: Mapping[str, Moments] = {}
        if self.aware and self.method == "svd" and self.energy is not None:
            own = set_mode(graph.copy(), False)
            seen = outputs_of(own, list(layers.values()), self._inputs(own, context)[0] or [])
        ranks: dict[str, int | Sequence[int]] = {}
        for k, (name, layer) in enumerate(layers.items()):
            context.progress("ranks", k, len(layers))
            found = self._settled(layer, layer.matrix(graph.tensors()), seen.get(name))
            if found is not None and fits(self.method, layer.shape, found):
                ranks[name] = found[0] if len(found) == 1 else list(found)
        context.progress("ranks", len(layers), len(layers))
        return replace(self, ranks=ranks, energy=None, share=None, rule=None, multiple=8, layers=(), skip=())

    def check(self) -> Factorise:
        """The technique itself, or InputError naming the setting that is wrong."""
        given = [n for n in ("ranks", "energy", "share", "rule") if getattr(self, n) is not None]
        if len(given) != 1:
            raise InputError(
                "Factorise", got=" and ".join(given) or "none of them", expected="one of ranks, energy, share and rule"
            )
        self._check_settings()
        if self.energy is not None and not 0 < self.energy <= 1:
            raise InputError("Factorise: energy", got=self.energy, expected="a share above 0, up to 1")
        if self.share is not None and not 0 < self.share < 1:
            raise InputError("Factorise: share", got=self.share, expected="a share above 0 and below 1")
        if self.rule not in (None, "vbmf"):
            raise InputError("Factorise: rule", got=repr(self.rule), expected="vbmf")
        if self.method == "cp" and (self.energy is not None or self.rule is not None):
            raise InputError(f"Factorise: {given[0]}", got="method cp", expected="ranks or share: cp cuts no matrix")
        return self

    def _check_settings(self) -> None:
        if self.method not in METHODS:
            raise InputError("Factorise: method", got=repr(self.method), expected=f"one of {', '.join(METHODS)}")
        if self.multiple < 1:
            raise InputError("Factorise: multiple", got=self.multiple, expected="1 or more")

    def _check_ranks(self, graph: Graph, context: Context) -> None:
        """InputError where a layer of `ranks` is unknown, kept, of the wrong kind, or its ranks out of range."""
        known, others = wholes(graph)
        free = chosen(known, graph, context, self.layers, self.skip)
        for name, given in (self.ranks or {}).items():
            if name not in known:
                refuse(name, known, others, "Factorise: ranks")
            if name not in free:
                raise InputError("Factorise: ranks", where=name, got="a layer that keep=, layers= or skip= leaves out")
            self._refuse_misfit(graph, known[name])
            ranks_of(self.method, known[name], given)

    def _refuse_misfit(self, graph: Graph, layer: Whole) -> None:
        """InputError where a layer does not suit the method."""
        wrong = misfit(self.method, layer.shape)
        if wrong or layer.name in self._moving(graph, {layer.name: layer}):
            got = kind(layer.shape) if wrong else "a linear layer whose batch is not its first side"
            expected = wrong or "the batch first"
            raise InputError(f"Factorise: {self.method}", where=layer.name, got=got, expected=expected)

    def _moving(self, graph: Graph, layers: Mapping[str, Whole]) -> set[str]:
        """Names of linear layers that a tensor train, which reshapes what it reads, cannot take."""
        if self.method != "tt":
            return set()
        linear = {layer.source: name for name, layer in layers.items() if not layer.shape.kernel}
        return {linear[source] for source in moving(graph, list(linear))} if linear else set()

    def _suited(self, graph: Graph, context: Context) -> dict[str, Whole]:
        """The layers to work on: those meant, without those that the method does not suit.

        Raises:
            InputError: an entry of `layers` is the exact name of a layer that the method does not suit.
        """
        known, _ = wholes(graph)
        found = chosen(known, graph, context, self.layers, self.skip)
        for name in self.layers:
            if name in found:
                self._refuse_misfit(graph, found[name])
        moves = self._moving(graph, found)
        return {n: layer for n, layer in found.items() if misfit(self.method, layer.shape) is None and n not in moves}

    def _settled(self, layer: Whole, weight: Tensor, seen: Moments | None) -> Ranks | None:
        method, shape = self.method, layer.shape
        if self.share is not None:
            return by_share(method, shape, self.share, self.multiple)
        values = spectra(method, weight) if seen is None else [spectrum(weight, seen)]
        found = by_energy(values, self.energy) if self.energy is not None else by_bayes(method, shape, values)
        return consistent(method, shape, rounded(found, limits(method, shape), self.multiple))

    def _inputs(self, graph: Graph, context: Context) -> tuple[list[tuple[Tensor, ...]] | None, list[str]]:
        """The inputs whose outputs are kept, None for none, and what is to be said of them."""
        if not self.aware:
            return None, []
        if not context.calibrate and not context.validate:
            do = "Give calibrate= or train= to the Task, or leave aware out."
            raise InputError("Factorise: aware needs data", got="none", do=do)
        inputs, note = calibration_inputs(graph, context, "Factorise")
        return inputs, [note] if note else []


def low_rank(
    graph: Graph,
    method: str,
    layers: Mapping[str, tuple[Whole, Ranks]],
    inputs: Sequence[tuple[Tensor, ...]] | None = None,
    seen: Mapping[str, Moments] | None = None,
) -> Graph:
    """A graph with chains in the place of layers.

    Args:
        graph: evaluating; it is not changed.
        method: that suits them.
        layers: with their ranks, by name.
        inputs: of calibration, for factors that keep the layers' outputs; None for those that keep their weights.
        seen: with `svd`, moments of the layers' outputs that are known already.
    """
    tensors = graph.tensors()
    if method == "svd" and seen is None and inputs is not None:
        seen = outputs_of(graph, [layer for layer, _ in layers.values()], inputs)
    refits = refitted(graph, method, layers, inputs) if method != "svd" and inputs is not None else {}
    result = graph
    places = {node.name: place for place, node in enumerate(graph.nodes())}
    # from the end, so that each finds the node that it reads, which may itself be replaced
    for name, (layer, ranks) in sorted(layers.items(), key=lambda item: -places[item[1][0].node]):
        weight, bias = layer.matrix(tensors), layer.offset(tensors) if layer.bias is not None else None
        if name in refits:
            factors, bias = refits[name]
        elif seen is not None:
            factors, bias = projected(weight, layer.offset(tensors), ranks[0], seen[name])
        else:
            factors = decomposed(method, weight, ranks)
        chain = parts(method, layer.shape, ranks)
        module = chained(layer.shape, chain, factors, bias, tensors[layer.weight])
        result = spliced(result, module, [layer.source], layer.node, _place(layer))
    return result


def _place(layer: Whole) -> str:
    """The name of the chain: `<module>.factors`, for a weight of another name than `weight` after that."""
    module, _, leaf = layer.weight.rpartition(".")
    own = "factors" if leaf == "weight" else f"{leaf}_factors"
    return f"{module}.{own}" if module else own


def ranks_of(method: str, layer: Whole, given: int | Sequence[int]) -> Ranks:
    """The ranks of a layer, checked.

    Raises:
        InputError: no whole numbers, too many or too few, below 1, or larger than the layer's matrices.
    """
    each = list(given) if isinstance(given, (list, tuple)) else [given]
    if any(isinstance(rank, bool) or not isinstance(rank, int) for rank in each):
        expected = "a whole number, or a list of them"
        raise InputError("Factorise: ranks", where=layer.name, got=repr(given), expected=expected)
    most, sides = limits(method, layer.shape), matrices(method, layer.shape)
    name = "its matrix is" if len(most) == 1 else "its matrices are"
    what = f"{name} {', '.join(f'{a} x {b}' for a, b in sides)}" if method != "cp" else "its tensor has no more"
    several = not isinstance(given, int)
    ranks = tuple(given) if isinstance(given, Sequence) else (given,)
    if several and len(ranks) != len(most):
        raise InputError("Factorise: ranks", where=layer.name, got=list(ranks), expected=f"{len(most)} of them: {what}")
    tops = most if several else (max(most),)
    for rank, top in zip(ranks, tops, strict=True):
        if not 1 <= rank <= top:
            raise InputError("Factorise: rank", where=layer.name, got=rank, expected=f"1 to {top}: {what}")
    if not several:
        return consistent(method, layer.shape, tuple(min(ranks[0], n) for n in most))
    can = consistent(method, layer.shape, ranks)
    if can != ranks:
        raise InputError(
            "Factorise: ranks", where=layer.name, got=list(ranks), expected=f"{list(can)}: each limits its neighbours"
        )
    return ranks
