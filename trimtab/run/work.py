"""Work: an ONNX model under change, its nodes and constants at hand."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass
class Work:
    """A model being packed: its nodes in order and its constants as TensorProto by name."""

    nodes: list[Any]
    constants: dict[str, Any]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    pinned: set[str] = field(default_factory=set)
    """Names that inner graphs (If, Loop) read: kept and never renamed."""

    def readers(self, name: str) -> list[Any]:
        """The nodes that read a value."""
        return [node for node in self.nodes if name in node.input]

    def producers(self) -> dict[str, Any]:
        """The node that makes each value."""
        return {name: node for node in self.nodes for name in node.output if name}

    def array(self, name: str) -> np.ndarray[Any, Any] | None:
        """A constant's value, or None if the name is no constant."""
        from onnx import numpy_helper

        found = self.constants.get(name)
        return None if found is None else numpy_helper.to_array(found)

    def replace(self, mapping: dict[str, str]) -> None:
        """Read other values: every input named by a key becomes its value, chains followed."""
        for node in self.nodes:
            for i, name in enumerate(node.input):
                while name in mapping:
                    name = mapping[name]
                node.input[i] = name
