"""Predict: the latency of a network on a device, from a table of layers and a few whole networks measured there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import nnls

from trimtab.core.errors import InputError
from trimtab.core.metric import Metric, metric
from trimtab.graph.executed import executed
from trimtab.graph.model import Graph
from trimtab.hardware.layer import Layer
from trimtab.run.runtime import Array
from trimtab.run.shapes import layers

Rows = Callable[[Sequence[Layer]], Sequence[float]]
"""Seconds of layers: the measured table, or a `LayerModel` for shapes that nobody measured."""

FEATURES = ("layers", "joins", "join bytes", "others", "other bytes", "whole")
"""What a latency is a sum over: seconds of the layers by the table; operators of several tensors and all other
operators that stay kernels of their own, with the bytes they move; and once for the network."""
_WEIGHTED = {"conv1d", "conv2d", "conv3d", "linear"}
_JOINS = {"add", "sub", "mul", "div", "cat"}
LEAST = 8
"""Networks that a calibration needs."""


@dataclass(frozen=True)
class LayerModel:
    """Seconds of layer shapes that nobody measured, from those that somebody did.

    A Gaussian process over the logarithm of seconds (Rasmussen and Williams 2006, algorithm 2.1), with a squared
    exponential kernel over the logarithms of the shape's figures, around a linear trend.

    Args:
        points: [n, features], standardised.
        solved: [n], the weights of the kernel's columns.
        trend: [features + 1], of the linear part.
        mean: [features], of the shapes' figures.
        scale: [features], the same.
        width: of the kernel, in standard deviations of the figures.
        error: median relative error on layers left out, ten at a time.
    """

    points: Array
    solved: Array
    trend: Array
    mean: Array
    scale: Array
    width: float
    error: float

    def __call__(self, shapes: Sequence[Layer]) -> list[float]:
        """Predicted seconds of each shape."""
        if not shapes:
            return []
        x = (np.array([_figures(s) for s in shapes]) - self.mean) / self.scale
        smooth = _kernel(x, self.points, self.width) @ self.solved
        return [float(v) for v in np.exp(_design(x) @ self.trend + smooth)]


def layer_model(seconds: dict[Layer, float], noise: float = 0.05, width: float = 1.5) -> LayerModel:
    """Learn the seconds of layers from a table.

    Args:
        seconds: measured, by shape; ten at least.
        noise: standard deviation of a measurement's logarithm.
        width: of the kernel, in standard deviations of the figures.

    Raises:
        InputError: too few shapes, or a time that is not above zero.
    """
    shapes = list(seconds)
    if len(shapes) < 10:
        raise InputError("layer model", got=f"{len(shapes)} layers", expected="10 or more")
    if not all(np.isfinite(v) and v > 0 for v in seconds.values()):
        raise InputError("layer model", got="a time that is not above 0", expected="seconds")
    raw = np.array([_figures(s) for s in shapes])
    y = np.log([seconds[s] for s in shapes])
    mean, scale = raw.mean(0), np.maximum(raw.std(0), 1e-6)
    x = (raw - mean) / scale
    trend, solved = _solve(x, y, noise, width)
    order = np.random.default_rng(0).permutation(len(shapes))
    missed: list[float] = []
    for part in range(10):
        out = order[part::10]
        kept = np.setdiff1d(order, out)
        own_trend, own = _solve(x[kept], y[kept], noise, width)
        guess = _design(x[out]) @ own_trend + _kernel(x[out], x[kept], width) @ own
        missed += [float(v) for v in np.abs(np.exp(guess - y[out]) - 1)]
    return LayerModel(x, solved, trend, mean, scale, width, float(np.median(missed)))


def _solve(x: Array, y: Array, noise: float, width: float) -> tuple[Array, Array]:
    design = _design(x)
    penalty = 1e-3 * len(x) * np.eye(design.shape[1])
    trend = np.linalg.solve(design.T @ design + penalty, design.T @ y)
    rest = y - design @ trend
    spread = max(float(rest.var()), 1e-6)
    gram = _kernel(x, x, width) + (noise**2 / spread) * np.eye(len(x))
    return trend, cho_solve(cho_factor(gram), rest)


def _design(x: Array) -> Array:
    return np.hstack([x, np.ones((len(x), 1))])


def _kernel(a: Array, b: Array, width: float) -> Array:
    squares = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T
    return np.asarray(np.exp(-np.maximum(squares, 0.0) / (2 * width**2 * a.shape[1])))


def _figures(layer: Layer) -> list[float]:
    """What a layer's time depends on, as logarithms, and how far its widths are from whole vectors."""
    per = layer.inputs // layer.groups
    pixels = max(int(np.prod(layer.result)), 1)
    figures = (layer.macs, layer.weights, layer.activations, per, layer.outputs, pixels, int(np.prod(layer.kernel)))
    waste = [(-n % 16) / 16 for n in (per, layer.outputs)]
    flags = [float(layer.groups > 1), float(not layer.kernel), float(max(layer.stride, default=1) > 1)]
    return [*np.log([max(f, 1) for f in figures]), *waste, *flags]


def features(graph: Graph, rows: Rows, batch: int = 1) -> Array:
    """What a network's latency is a sum over, in the order of FEATURES.

    Args:
        graph: in evaluation mode and floating point.
        rows: seconds of layers, in the precision that is asked for.
        batch: samples in one inference.
    """
    shapes = {name.rpartition(".")[0]: layer for name, layer in layers(graph).items()}
    found = np.zeros(len(FEATURES))
    timed = []
    for step in executed(graph, batch).steps:
        if step.name in shapes and step.kinds[0] in _WEIGHTED:
            timed.append(shapes[step.name])
            continue
        at = 1 if step.kinds[0].rstrip("_") in _JOINS else 3
        found[at] += 1
        found[at + 1] += step.activations
    found[0] = sum(rows(timed))
    found[-1] = 1.0
    return found


@dataclass(frozen=True)
class Predictor:
    """Latency as a sum over FEATURES, with weights from whole networks.

    Args:
        weights: [features], not negative: 1 of a second of the table, seconds of an operator, seconds of a byte.
        error: relative error that 95 % of the calibration's networks keep when each is left out in turn.
        n: networks in the calibration.
        device: whose latencies these are.
    """

    weights: tuple[float, ...]
    error: float
    n: int
    device: str

    def __call__(self, graph: Graph, rows: Rows, batch: int = 1) -> Metric:
        """The latency of a graph as a predicted metric; its interval is the calibration's error."""
        seconds = float(features(graph, rows, batch) @ np.array(self.weights))
        interval = (seconds * (1 - self.error), seconds * (1 + self.error))
        how = f"table of layers and {self.n} networks measured on {self.device}; 95 % within {self.error:.0%}"
        return metric("latency", seconds, "predicted", interval=interval, how=how)


def calibrate(found: Sequence[Array], seconds: Sequence[float], device: str) -> Predictor:
    """Weights of FEATURES that give measured latencies: least squares of relative errors, none negative.

    minimise sum_i (f_i . w / t_i - 1)^2, w >= 0   (Lawson and Hanson 1974)

    Args:
        found: `features` of each network, eight or more.
        seconds: measured latency of each.
        device: where they were measured.

    Raises:
        InputError: too few networks, or a latency that is not above zero.
    """
    f, t = np.array(found, float), np.array(seconds, float)
    if len(f) < LEAST or len(f) != len(t):
        raise InputError("calibrate", got=f"{len(f)} networks, {len(t)} latencies", expected=f"{LEAST} or more of each")
    if not bool(np.all(np.isfinite(t) & (t > 0))):
        raise InputError("calibrate", got="a latency that is not above 0", expected="seconds")
    weights = _weights(f, t)
    missed = []
    for i in range(len(f)):
        kept = np.arange(len(f)) != i
        missed.append(abs(float(f[i] @ _weights(f[kept], t[kept])) / t[i] - 1))
    return Predictor(tuple(float(w) for w in weights), float(np.quantile(missed, 0.95)), len(f), device)


def _weights(f: Array, t: Array) -> Any:
    scaled = f / t[:, None]
    size = np.maximum(np.abs(scaled).max(0), 1e-30)
    found, _ = nnls(scaled / size, np.ones(len(f)))
    return found / size
