"""The rows of bench/survey_table.py: each technique of the survey on each network, as recipes.

`STEPS` in a recipe stands for as many training steps as the row's time allows, measured on the network as it is then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import nn

import trimtab as tt
from bench import compression_networks as networks
from bench.compression_networks import NETWORKS, Vgg

CONTROL = "control"
HYBRID = "hybrid"
PRINTED: Mapping[str, tuple[str, str, str]] = {
    "structured pruning": ("2-10", "2-5", "0.5-2"),
    "unstructured pruning": ("10-100", "2-5", "0.5-2"),
    "N:M sparsity": ("10-50", "2-5", "0.5-2"),
    "low rank": ("", "", ""),
    "sharing and coding": ("", "", ""),
    "int8": ("4", "2-4", "0.5-3"),
    "4 bits": ("4-32", "2-4", "0.5-3"),
    "binary": ("32", "2-4", "3-10"),
    "distillation": ("3-10", "3-10", "1-3"),
    "early exits": ("", "", ""),
    "skipped blocks": ("", "", ""),
    "cheaper blocks": ("5-20", "5-20", "0-1"),
    HYBRID: ("50-200", "10-50", "1-3"),
    CONTROL: ("", "", ""),
}
"""What the survey prints of each technique: times smaller, times faster, drop in points; of some it prints nothing.
Cheaper blocks stand beside its range of architecture search."""
MINUTES: Mapping[str, float] = {"resnet56": 1.0, "vgg": 1.0, "speech": 0.3, "lenet300": 0.2, "lenet5": 0.3}
"""Share of `--minutes` that a row of each network trains for: the same for all rows of one."""


@dataclass(frozen=True)
class Part:
    """One step of a row.

    Args:
        text: a recipe, as on the command line.
        share: of the row's time, for each `STEPS` training that it does.
    """

    text: str
    share: float = 1.0


@dataclass(frozen=True)
class Row:
    """One network made smaller or faster one way.

    Args:
        network: its name among the networks of the benches.
        technique: its heading, a key of `PRINTED`.
        level: how far, a word for the row's name.
        parts: what is done, in order.
        student: a network of its own that the original teaches; None to start from the original.
        peer: another tool, of `survey_peers.PEERS`, that does its work before the parts.
    """

    network: str
    technique: str
    level: str
    parts: tuple[Part, ...] = ()
    student: Callable[[], tt.Task] | None = None
    peer: str | None = None

    @property
    def name(self) -> str:
        """Its folder's, and what `--only` takes."""
        words = f"{self.network}-{self.technique}" + (f"-{self.level}" if self.level else "")
        return words.replace(" ", "_").replace(":", "of").replace(".", "")


NORMED = "'lr': 0.02, 'features': 30.0"
PLAIN = "'lr': 0.02, 'alpha': 0.5"
CENTROIDS = "'optimiser': 'adamw', 'lr': 0.0005, 'alpha': 0.5"
FEW_BITS = "'lr': 0.02, 'weight_decay': 0.0001, 'features': 50.0"


def recover(how: str, share: float = 1.0) -> Part:
    """Training after a change of form: distillation from the original."""
    return Part(f"distil(STEPS, {how.replace(': ', '=').replace(chr(39), '')})", share)


def inside(text: str, how: str, share: float = 1.0) -> Part:
    """A technique that trains by itself: its recipe with a `train` at its end."""
    return Part(f"{text[:-1]}, train={{'steps': STEPS, {how}}})", share)


def common(network: str, how: str) -> list[Row]:
    """The rows that every network has, trained by `how`."""
    bits = FEW_BITS if how == NORMED else PLAIN
    return [
        Row(network, CONTROL, "", (recover(how),)),
        Row(network, "N:M sparsity", "2:4", (inside("sparsify(pattern='2:4')", how),)),
        Row(network, "sharing and coding", "4 bits", (inside("share(4)", CENTROIDS),)),
        Row(network, "int8", "", (Part("quantise(int8)"),)),
        Row(network, "int8", "onnxruntime", peer="onnxruntime int8"),
        Row(network, "int8", "nncf", peer="nncf int8"),
        Row(network, "4 bits", "", (inside("quantise(int4)", bits),)),
        Row(network, "binary", "", (inside("quantise(binary)", bits),)),
    ]


def levels(network: str, technique: str, how: str, text: str, at: tuple[float, ...], trains: bool) -> list[Row]:
    """A technique at several strengths: `AT` in the recipe.

    Args:
        trains: whether it trains by itself; else training follows it.
    """
    rows = []
    for each in at:
        recipe = text.replace("AT", f"{each:g}")
        parts = (inside(recipe, how),) if trains else (Part(recipe), recover(how))
        rows.append(Row(network, technique, f"{each:g}", parts))
    return rows


SPARSE = "sparsify(AT, schedule={'kind': 'cubic'})"
CUT = "prune(AT, allocate=macs)"


def hybrids(network: str, how: str, *cut: Part) -> list[Row]:
    """What is faster and smaller: a cut, recovered, then few bits; and the same with zeros, for size.

    Args:
        cut: what takes parts out.
    """
    bits = FEW_BITS if how == NORMED else PLAIN
    sparse = inside(SPARSE.replace("AT", "0.7"), how, 0.3)
    return [
        Row(network, HYBRID, "", (*cut, recover(how, 0.6), inside("quantise(int4)", bits, 0.4))),
        Row(network, HYBRID, "sparse", (*cut, recover(how, 0.4), sparse, inside("quantise(int4)", bits, 0.3))),
    ]


def resnet56() -> list[Row]:
    """Thin layers, deep: blocks can go."""
    name = "resnet56"
    return [
        *common(name, NORMED),
        *levels(name, "structured pruning", NORMED, CUT, (0.4, 0.6), False),
        Row(name, "structured pruning", "blocks", (Part("remove_blocks(count=12)"), recover(NORMED))),
        Row(name, "structured pruning", "torch-pruning 0.4", (recover(NORMED),), peer="torch-pruning 0.4"),
        *levels(name, "unstructured pruning", NORMED, SPARSE, (0.8, 0.9, 0.95), True),
        Row(name, "unstructured pruning", "torch 0.9", (recover(NORMED),), peer="torch unstructured 0.9"),
        *levels(name, "low rank", NORMED, "factorise(share=AT, aware=True)", (0.5, 0.7), False),
        Row(name, "distillation", "resnet20", (recover(NORMED),), student=lambda: networks.trained("resnet20")),
        Row(name, "early exits", "", (Part("exits(max_drop=0.005, train={'steps': STEPS})"),)),
        Row(name, "skipped blocks", "", (Part("gates(rate=0.6, train={'steps': STEPS, 'lr': 0.01})"),)),
        Row(name, "cheaper blocks", "", (Part("swap(error=0.1, train={'steps': STEPS})", 0.4), recover(NORMED, 0.6))),
        *hybrids(name, NORMED, Part("remove_blocks(count=9)"), Part(CUT.replace("AT", "0.35"))),
    ]


def vgg() -> list[Row]:
    """Wide layers with much to spare."""
    name = "vgg"
    return [
        *common(name, NORMED),
        *levels(name, "structured pruning", NORMED, CUT, (0.5, 0.7, 0.85), False),
        Row(name, "structured pruning", "torch-pruning 0.7", (recover(NORMED),), peer="torch-pruning 0.7"),
        *levels(name, "unstructured pruning", NORMED, SPARSE, (0.9, 0.95, 0.98), True),
        Row(name, "unstructured pruning", "torch 0.95", (recover(NORMED),), peer="torch unstructured 0.95"),
        *levels(name, "low rank", NORMED, "factorise(tucker, share=AT)", (0.3, 0.5), False),
        Row(name, "distillation", "quarter", (recover(NORMED),), student=lambda: small(name, lambda: Vgg(24))),
        Row(name, "early exits", "", (Part("exits(max_drop=0.005, train={'steps': STEPS})"),)),
        Row(name, "cheaper blocks", "", (Part("swap(error=0.1, train={'steps': STEPS})", 0.4), recover(NORMED, 0.6))),
        *hybrids(name, NORMED, Part(CUT.replace("AT", "0.7"))),
    ]


def speech() -> list[Row]:
    """The small convolutional network on spoken digits."""
    name = "speech"
    return [
        *common(name, NORMED),
        *levels(name, "structured pruning", NORMED, CUT, (0.5, 0.8), False),
        *levels(name, "unstructured pruning", NORMED, SPARSE, (0.9, 0.95), True),
        *levels(name, "low rank", NORMED, "factorise(tucker, share=AT)", (0.3, 0.5), False),
        Row(name, "distillation", "third", (recover(NORMED),), student=lambda: small(name, lambda: _speech(12))),
        Row(name, "early exits", "", (Part("exits(max_drop=0.005, train={'steps': STEPS})"),)),
        Row(name, "cheaper blocks", "", (Part("swap(error=0.1, train={'steps': STEPS})", 0.4), recover(NORMED, 0.6))),
        *hybrids(name, NORMED, Part(CUT.replace("AT", "0.7"))),
    ]


def lenets(name: str) -> list[Row]:
    """The two networks of Deep Compression, which printed 40 and 39 times smaller for them at no loss."""
    deep = (inside(SPARSE.replace("AT", "0.95"), PLAIN, 0.7), inside("share(3, biases=4)", CENTROIDS, 0.3))
    return [
        *common(name, PLAIN),
        *levels(name, "structured pruning", PLAIN, "prune(AT, allocate=params)", (0.5, 0.75), False),
        *levels(name, "unstructured pruning", PLAIN, SPARSE, (0.9, 0.95), True),
        *levels(name, "low rank", PLAIN, "factorise(share=AT)", (0.2, 0.4), False),
        Row(name, HYBRID, "deep compression", deep),
        *hybrids(name, PLAIN, Part("prune(0.6, allocate=params)")),
    ]


def small(network: str, model: Callable[[], nn.Module]) -> tt.Task:
    """The data of a network, for a student with random weights."""
    task = NETWORKS[network].task()
    return tt.Task(**{**vars(task), "model": networks.seeded(model).eval()})


def _speech(width: int) -> nn.Module:
    return networks.speech.Speech(width)


ROWS: Mapping[str, Row] = {
    row.name: row for row in [*resnet56(), *vgg(), *speech(), *lenets("lenet300"), *lenets("lenet5")]
}
"""By name."""
