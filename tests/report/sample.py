"""A report.json as a run on ResNet-56 leaves one, written by hand."""

from __future__ import annotations

import json
from typing import Any


def figure(value: float, unit: str, direction: str, **more: Any) -> dict[str, Any]:
    return {"value": value, "unit": unit, "source": "measured", "direction": direction, **more}


def metrics(score: float, latency: float, size: float, macs: float) -> dict[str, Any]:
    ratio = 1.24e-3 / latency
    spread = [ratio * 0.97, ratio * 1.03]
    clock = "interleaved with the original, batch 1, one thread"
    return {
        "score": figure(score, "fraction", "up", n=5000, interval=[score - 0.008, score + 0.008], split="test"),
        "latency": figure(latency, "s", "down", n=400, interval=[latency * 0.98, latency * 1.02], how=clock),
        "latency_ratio": figure(ratio, "1", "up", n=400, interval=spread, how="median of paired ratios"),
        "size": figure(size, "byte", "down", how="files on disk"),
        "size_ratio": figure(3.46e6 / size, "1", "up"),
        "macs": figure(macs, "1", "down") | {"source": "modelled", "how": "from shapes"},
        "agreement": figure(0.9 + (score - 0.88), "fraction", "up", n=5000, split="test"),
    }


def layers() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [
        {"name": "conv1", "before": [16, 3, 3, 3], "after": [16, 3, 3, 3], "precision": "int8"}
    ]
    for stage, width in ((1, 16), (2, 32), (3, 64)):
        for block in range(9):
            gone = block in (4, 6, 7)
            left = width - 8 * (block % 2) * stage
            for conv, shape in (("conv1", [left, width, 3, 3]), ("conv2", [width, left, 3, 3])):
                rows.append(
                    {
                        "name": f"layer{stage}.{block}.{conv}",
                        "before": [width, width, 3, 3],
                        "after": None if gone else shape,
                        "precision": None if gone else "int8",
                    }
                )
    return [*rows, {"name": "linear", "before": [10, 64], "after": [10, 64], "precision": "float32"}]


def costs() -> list[dict[str, Any]]:
    """What a modelled device says of three layers, of which one fell back."""
    return [
        {"name": "conv1", "kind": "Conv2D", "cycles": 30000, "seconds": 6e-5, "joules": 2e-6, "macs": 442368},
        {"name": "linear", "kind": "Conv2D", "cycles": 10000, "seconds": 2e-5, "joules": 6e-6, "macs": 640},
        {"name": "head", "kind": "softmax", "runs_on": "the processor beside"},
    ]


def report() -> dict[str, Any]:
    """One of every kind of thing that a report may hold."""
    blocks = {"technique": "RemoveBlocks", "blocks": ["layer1.4", "layer2.6", "layer3.7"]}
    prune = {"technique": "Prune", "keep": {"layer1.0.conv1.weight:0": [0, 2, 5, 7], "layer2.1.conv1.weight:0": [1, 3]}}
    distil = {"technique": "Distil", "steps": 1200, "seed": 0, "temperature": 4.0, "alpha": 0.1}
    quantise = {"technique": "Quantise", "skip": ["linear"]}
    front = {
        "original": ([], metrics(0.9076, 1.24e-3, 3.46e6, 125.5e6), []),
        "int8": ([quantise], metrics(0.9058, 0.46e-3, 1.02e6, 125.5e6), []),
        "plan-1": ([prune, distil, quantise], metrics(0.9041, 0.36e-3, 0.71e6, 88e6), []),
        "plan-2": ([blocks, distil, quantise], metrics(0.9035, 0.29e-3, 0.52e6, 61e6), ["Prune: 0.29 ms with it."]),
        "plan-3": (
            [blocks, prune, distil, quantise],
            metrics(0.9004, 0.231e-3, 0.398e6, 44e6),
            ["Quantise of linear: 0.231 ms without it, 0.233 ms with it; its weights stay in floating point."],
        ),
        "plan-4": ([blocks, prune, distil, quantise], metrics(0.8921, 0.187e-3, 0.29e6, 31e6), []),
        "plan-5": ([blocks, prune, distil, quantise], metrics(0.8790, 0.152e-3, 0.21e6, 22e6), []),
    }
    points = [
        {"name": n, "plan": steps, "files": ["model.onnx", "model.xml", "model.bin"], "metrics": m, "dropped": dropped}
        for n, (steps, m, dropped) in front.items()
    ]
    control = dict(front["original"][1]) | {"score": figure(0.9088, "fraction", "up", n=5000, split="test")}
    data = {
        "schema": 1,
        "trimtab": "0.1.0",
        "task": "ResNet-56 on CIFAR-10",
        "target": {"device": "cpu", "runtime": None, "batch": 1, "threads": 1, "precision": "int8", "name": "cpu"},
        "goal": {
            "minimise": "latency",
            "max_drop": 0.01,
            "at_most": {"size": 5e5},
            "at_least": {"latency_ratio": 5.0},
            "hours": 0.5,
        },
        "seed": 0,
        "met": True,
        "binding": None,
        "machine": {
            "processor": "AMD EPYC (family 25, model 17, stepping 1)",
            "cores": 2,
            "usable": 2,
            "flags": ["avx2", "fma", "avx512f", "avx512_vnni"],
            "caches": {"L1": 32768, "L2": 1048576, "L3": 33554432},
            "memory": 25300000000,
            "system": "Linux 6.1",
            "python": "3.11.7",
            "libraries": {"onnxruntime": "1.31.0", "openvino": "2026.4.1", "torch": "2.13.0"},
        },
        "runtime": "openvino",
        "baseline": {"metrics": front["original"][1]},
        "control": {"metrics": control},
        "chosen": "plan-3",
        "points": points,
        "failed": [{"plan": [prune, quantise], "stage": "build", "error": "NotInteger: layer2.0.conv1 runs in fp32"}],
        "notes": ["`test` alone was given: split (seed 0) into 5,000 samples to choose on and 5,000 to prove on."],
        "layers": layers(),
        "timeline": [
            {"stage": "prepare", "seconds": 21.4},
            {"stage": "baseline", "seconds": 18.0},
            {"stage": "sensitivity", "seconds": 94.2},
            {"stage": "allocate", "seconds": 3.1},
            {"stage": "train", "seconds": 1480.0},
            {"stage": "prove", "seconds": 61.0},
        ],
    }
    return json.loads(json.dumps(data))  # no part shared with another
