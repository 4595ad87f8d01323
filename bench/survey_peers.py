"""What other tools make of the networks of bench/survey_table.py: torch-pruning, torch itself, NNCF, ONNX Runtime."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import nn

from bench.quantise_files import calibration_images
from bench.quantise_peers import nncf_onnx, onnxruntime_static
from trimtab.core.errors import RuntimeMissing
from trimtab.graph.capture import capture
from trimtab.graph.model import Graph
from trimtab.graph.modes import set_mode
from trimtab.pipeline.prepare import Prepared
from trimtab.run.export import export_onnx

Peer = Callable[[Prepared, Path], Graph | None]
"""Gives a network that the row's parts go on with, or writes the file itself and gives None."""


def torch_pruning(ratio: float) -> Peer:
    """Channels removed by torch-pruning, by magnitude over coupled groups, until so many multiply-adds are gone."""

    def make(prepared: Prepared, into: Path) -> Graph:
        try:
            import torch_pruning as tp
        except ImportError as error:
            raise RuntimeMissing("torch-pruning", got="not installed", do="pip install 'trimtab[bench]'") from error
        task = prepared.context.task
        model = copy.deepcopy(task.model)
        last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
        before = tp.utils.count_ops_and_params(model, task.example)[0]
        pruner = tp.pruner.MetaPruner(
            model,
            task.example,
            importance=tp.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=0.95,
            iterative_steps=200,
            round_to=8,
            ignored_layers=[last],
        )
        for _ in range(200):
            pruner.step()
            if tp.utils.count_ops_and_params(model, task.example)[0] <= (1 - ratio) * before:
                break
        return set_mode(capture(model, task.example), False)

    return make


def torch_unstructured(ratio: float) -> Peer:
    """The least weights of all layers together made zero by `torch.nn.utils.prune.global_unstructured`."""

    def make(prepared: Prepared, into: Path) -> Graph:
        from torch.nn.utils import prune

        task = prepared.context.task
        model = copy.deepcopy(task.model)
        layers = [(m, "weight") for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
        prune.global_unstructured(layers, pruning_method=prune.L1Unstructured, amount=ratio)
        for module, name in layers:
            prune.remove(module, name)
        return set_mode(capture(model, task.example), False)

    return make


def written(tool: Callable[..., None]) -> Peer:
    """A tool that quantises the original's ONNX file, calibrated on the same inputs."""

    def make(prepared: Prepared, into: Path) -> None:
        source = into.with_name("source.onnx")
        export_onnx(prepared.graph, source)
        tool(source, into, calibration_images(prepared))
        source.unlink()

    return make


PEERS: Mapping[str, Peer] = {
    **{f"torch-pruning {ratio:g}": torch_pruning(ratio) for ratio in (0.4, 0.7)},
    **{f"torch unstructured {ratio:g}": torch_unstructured(ratio) for ratio in (0.9, 0.95)},
    "onnxruntime int8": written(onnxruntime_static),
    "nncf int8": written(nncf_onnx),
}
"""By the name that a row gives."""
