"""TorchInductor on the CPU: torch's own compiler, over the graph beside the ONNX file."""

from __future__ import annotations

import importlib.metadata
import shutil
from dataclasses import dataclass
from pathlib import Path

from trimtab.core.errors import RuntimeMissing
from trimtab.run.runtime import Session


@dataclass(frozen=True)
class Inductor:
    """What torch.compile generates, without the guards that it puts around: fp32, and int8 through oneDNN.

    It compiles with freezing, for a fixed batch, each time a session is loaded: seconds to minutes. A session for
    any batch runs the network compiled for one sample, sample by sample.
    """

    name: str = "inductor"

    def available(self) -> str | None:
        """None: it can be used, or why not."""
        found = any(shutil.which(compiler) for compiler in ("g++", "clang++", "c++"))
        return None if found else "inductor needs a C++ compiler. Install one: apt install g++"

    def version(self) -> str:
        """Of torch."""
        return importlib.metadata.version("torch")

    def artifact(self, file: Path) -> tuple[Path, ...]:
        """The graph and its weights: what it compiles from."""
        return tuple(file.with_name(f"{file.stem}{end}") for end in (".trim.json", ".safetensors"))

    def load(self, path: Path, batch: int | None = None, threads: int = 1) -> Session:
        """Compile the graph beside an ONNX file (see `Runtime.load`); the generated code holds `threads`.

        Raises:
            NotRunnable: torch cannot lower or compile it.
        """
        missing = self.available()
        if missing:
            raise RuntimeMissing("inductor", got="no C++ compiler", do=missing.partition(". ")[2] + ".")
        from trimtab.run.compiled import InductorSession  # brings torch
        from trimtab.run.lowered import graph_beside

        return InductorSession(graph_beside(path), batch, threads)
