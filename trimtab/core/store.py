"""Store: finished steps under the hash of what made them. Atomic writes, no pickle."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trimtab.core.errors import FileError


def digest(*parts: Any) -> str:
    """A hash of JSON-able values, dataclasses, tensors and bytes: 16 hex digits."""
    h = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            h.update(repr((tuple(part.shape), part.dtype)).encode())
            h.update(part.detach().cpu().contiguous().reshape(-1).view(dtype=torch.uint8).numpy().tobytes())
        elif isinstance(part, bytes):
            h.update(part)
        elif isinstance(part, Mapping) and any(isinstance(v, Tensor) for v in part.values()):
            for key in sorted(part):
                h.update(digest(key, part[key]).encode())
        else:
            h.update(json.dumps(part, sort_keys=True, default=_plain).encode())
        h.update(b"\0")
    return h.hexdigest()[:16]


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {type(value).__name__: asdict(value)}
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    return str(value)


def cache_folder() -> Path:
    """Where measurements are kept across runs: TRIMTAB_CACHE, else trimtab in the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trimtab"
    return Path(os.environ.get("TRIMTAB_CACHE") or default)


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` on a temporary file beside `path`, then put it in the place of `path`.

    A kill at any instant leaves the old file or the new one, never a half.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with temporary.open("rb") as f:
            os.fsync(f.fileno())
        temporary.chmod(0o644)
        os.replace(temporary, path)
    except OSError as error:
        raise FileError(
            "write", where=path, got=error.strerror or error, do="Free space or choose another --out."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, data: Any) -> None:
    """Write JSON atomically; NaN is refused."""
    text = json.dumps(data, indent=1, allow_nan=False, default=_plain) + "\n"
    write_atomic(path, lambda p: p.write_text(text, encoding="utf-8"))


def read_json(path: Path, limit: int = 64 << 20) -> Any:
    """Read a JSON file of at most `limit` bytes that may come from a stranger; FileError if it is none."""
    try:
        if path.stat().st_size > limit:
            raise FileError("read", where=path, got=f"{path.stat().st_size} bytes", expected=f"at most {limit}")
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FileError("read", where=path, got=error.strerror or error) from error
    except (ValueError, RecursionError) as error:
        raise FileError("read", where=path, got=f"not JSON: {error}") from error


@dataclass(frozen=True)
class Store:
    """Finished steps in a folder: `<key>.json`, and `<key>.safetensors` where there are tensors."""

    folder: Path

    def get(self, key: str) -> Any | None:
        """The stored value, or None if this step has not been finished."""
        path = self.folder / f"{key}.json"
        return read_json(path) if path.exists() else None

    def put(self, key: str, value: Any, tensors: Mapping[str, Tensor] | None = None) -> Any:
        """Store a JSON-able value, tensors first, so that what `get` finds is whole. Returns the value."""
        if tensors is not None:
            from safetensors.torch import save_file

            flat = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
            write_atomic(self.folder / f"{key}.safetensors", lambda p: save_file(flat, p))
        write_json(self.folder / f"{key}.json", value)
        return value

    def tensors(self, key: str) -> dict[str, Tensor]:
        """The tensors stored under a key."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = self.folder / f"{key}.safetensors"
        try:
            found: dict[str, Tensor] = load_file(path)
        except (OSError, SafetensorError) as error:
            raise FileError("read", where=path, got=error) from error
        return found

    def drop(self, key: str) -> None:
        """Forget a step (a checkpoint that its finished step has replaced)."""
        for suffix in (".json", ".safetensors"):
            (self.folder / f"{key}{suffix}").unlink(missing_ok=True)

    def once(self, key: str, make: Callable[[], Any]) -> Any:
        """The stored value, made and stored first where there is none."""
        found = self.get(key)
        return self.put(key, make()) if found is None else found
