"""Save and load a Graph: `model.trim.json` and `model.safetensors`. No pickle, no code, no user class."""

from __future__ import annotations

import hashlib
import json
import keyword
import re
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph as Nodes
from torch.fx import GraphModule, Node
from torch.fx.passes.fake_tensor_prop import FakeTensorProp

from trimtab.core.errors import FileError
from trimtab.core.store import read_json, write_atomic
from trimtab.graph.model import EXAMPLE_BATCH, Graph, TensorSpec, place
from trimtab.graph.operators import operator_name, operator_named
from trimtab.graph.packed import packed_tensors, unpacked_tensors
from trimtab.graph.values import DTYPES, decode, encode

SCHEMA = 1
_NAME = re.compile(r"[\w.+:/ -]{1,1000}")
_JSON_BYTES = 256 << 20
_LONGEST_LOOP = 100_000
_LOOPS = ("split", "unbind", "chunk", "lstm", "gru", "rnn", "unfold", "meshgrid")


def save(graph: Graph, folder: Path | str, stem: str = "model") -> tuple[Path, Path]:
    """Write `<stem>.trim.json` and `<stem>.safetensors`, each atomically, and return their paths.

    Integer tensors whose levels fit into fewer than 8 bits are stored in these, packed; loading gives int8 again.

    Raises:
        FileError: the graph holds an operator or argument that such a file does not hold
            (a fake-quantised layer that was not converted, say), or the folder cannot be written.
    """
    from safetensors.torch import save as to_bytes

    described, weights = Path(folder) / f"{stem}.trim.json", Path(folder) / f"{stem}.safetensors"
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in graph.tensors().items()}
    body = _describe(graph)
    tensors, packed = packed_tensors(plain)
    data = to_bytes(tensors)
    body["weights"] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    if packed:
        body["packed"] = packed
    text = json.dumps({"schema": SCHEMA, "sha256": _sha(body), "graph": body}, allow_nan=False) + "\n"
    write_atomic(weights, lambda path: path.write_bytes(data))
    write_atomic(described, lambda path: path.write_text(text, encoding="utf-8"))
    return described, weights


def load(folder: Path | str, stem: str = "model") -> Graph:
    """Read the graph that `save` wrote, in the mode it was saved in.

    Raises:
        FileError: a file is missing, of another schema, damaged, or holds what no graph holds.
    """
    path = Path(folder) / f"{stem}.trim.json"
    data = read_json(path, _JSON_BYTES)
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        found = data.get("schema", "none") if isinstance(data, dict) else type(data).__name__
        raise FileError("load", where=path, got=f"schema {str(found)[:40]}", expected=f"schema {SCHEMA}")
    body = data.get("graph")
    if not isinstance(body, dict) or data.get("sha256") != _sha(body):
        raise FileError("load", where=path, got="content that does not match its checksum", do="Save it again.")
    try:
        weights = path.with_name(f"{stem}.safetensors")
        tensors = unpacked_tensors(_weights(body, weights), body.get("packed", {}), weights)
        return _shaped(_graph(body, tensors))
    except FileError as error:
        raise FileError(error.what, where=error.where or path, got=error.got, expected=error.expected) from error
    except Exception as error:  # whatever a hostile file makes torch raise
        line = next(iter(str(error).splitlines()), "")
        raise FileError("load", where=path, got=f"{type(error).__name__}: {line[:200]}") from error


def _sha(body: Any) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _describe(graph: Graph) -> dict[str, Any]:
    parameters = dict(graph.net.named_parameters())
    return {
        "inputs": [
            {"name": s.name, "shape": list(s.shape), "dtype": encode(s.dtype)["dtype"], "fill": s.fill}
            for s in graph.inputs
        ],
        "outputs": list(graph.outputs),
        "bare": graph.bare,
        "training": graph.net.training,
        "notes": list(graph.notes),
        "tied": [list(pair) for pair in graph.tied],
        "unsaved": list(graph.unsaved),
        "trainable": [name for name, p in parameters.items() if p.requires_grad],
        "parameters": list(parameters),
        "nodes": [_node(node) for node in graph.net.graph.nodes],
    }


def _node(node: Node) -> dict[str, Any]:
    if node.op == "call_function":
        target = operator_name(node.target)
    elif node.op in ("placeholder", "get_attr", "output"):
        target = str(node.target)
    else:
        raise FileError("save: the graph holds a module", where=node.name, do="Convert the fake quantisation first.")
    entry = {
        "name": node.name,
        "op": node.op,
        "target": target,
        "args": [encode(value) for value in node.args],
        "kwargs": {name: encode(value) for name, value in node.kwargs.items()},
    }
    if "train" in node.meta:
        entry["train"] = node.meta["train"]
    return entry


def _weights(body: dict[str, Any], path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    said = body["weights"]
    if not path.is_file() or path.stat().st_size != said["bytes"]:
        found = f"{path.stat().st_size} bytes" if path.is_file() else "no file"
        raise FileError("load", where=path, got=found, expected=f"{said['bytes']} bytes")
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != said["sha256"]:
            raise FileError("load", where=path, got="content that does not match its checksum")
    tensors: dict[str, torch.Tensor] = load_file(path)
    return tensors


def _graph(body: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Graph:
    root, parameters, trainable = nn.Module(), set(body["parameters"]), set(body["trainable"])
    for name, tensor in tensors.items():
        _check_name(name)
        place(root, name, nn.Parameter(tensor, name in trainable) if name in parameters else tensor)
    nodes = Nodes()
    found: dict[str, Node] = {}
    for entry in body["nodes"]:
        node = _read_node(nodes, entry, found, tensors)
        if found.setdefault(entry["name"], node) is not node:
            raise FileError("load: two nodes of one name", got=str(entry["name"])[:80])
    inputs = tuple(_spec(entry) for entry in body["inputs"])
    if [node.target for node in nodes.find_nodes(op="placeholder")] != [spec.name for spec in inputs]:
        raise FileError("load: the inputs are not those of the nodes")
    outputs = nodes.output_node().args[0]
    if not isinstance(outputs, tuple) or len(outputs) != len(body["outputs"]) or (body["bare"] and len(outputs) != 1):
        raise FileError("load: the outputs are not those of the nodes")
    nodes.lint()
    net = GraphModule(root, nodes)
    net.training = bool(body["training"])
    tied = tuple((str(alias), str(name)) for alias, name in body["tied"])
    for alias, name in tied:
        _check_name(alias)
        if name not in parameters:
            raise FileError("load: tied to no parameter", got=name[:80])
    texts = [tuple(str(text) for text in body[key]) for key in ("outputs", "notes", "unsaved")]
    return Graph(net, inputs, texts[0], bool(body["bare"]), texts[1], tied, texts[2])


def _read_node(nodes: Nodes, entry: Any, found: dict[str, Node], tensors: dict[str, torch.Tensor]) -> Node:
    op, target = entry["op"], entry["target"]
    args = tuple(decode(value, found) for value in entry["args"])
    kwargs = {_identifier(name): decode(value, found) for name, value in entry["kwargs"].items()}
    # names and targets become Python source in the compiled graph: only plain ones may pass
    if op == "call_function":
        target = operator_named(str(target))
    elif op == "placeholder":
        _identifier(target)
    elif op == "get_attr":
        if target not in tensors:
            raise FileError("load: a node reads a tensor that is not in the file", got=str(target)[:80])
    elif op != "output":
        raise FileError("load: no such kind of node", got=str(op)[:80])
    node = nodes.create_node(op, target, args, kwargs, name=_identifier(entry["name"]))
    if "train" in entry:
        node.meta["train"] = _train_entry(entry["train"])
    return node


def _train_entry(entry: Any) -> dict[str, Any]:
    args = {str(int(index)): decode(value, {}) for index, value in entry["args"].items()}
    if any(int(index) >= entry["arity"] or not isinstance(value, (int, float)) for index, value in args.items()):
        raise FileError("load: not a training flag", got=str(entry)[:80])
    return {"op": str(entry["op"]), "arity": int(entry["arity"]), "args": args}


def _spec(entry: Any) -> TensorSpec:
    shape = tuple(entry["shape"])
    if not all(n is None or (type(n) is int and 0 <= n < 2**31) for n in shape):
        raise FileError("load: not a shape", where=str(entry["name"])[:80], got=str(shape)[:80])
    fill, dtype = entry.get("fill", 0), DTYPES[entry["dtype"]]
    integer = not (dtype.is_floating_point or dtype.is_complex or dtype is torch.bool)
    low, high = (torch.iinfo(dtype).min, torch.iinfo(dtype).max) if integer else (0, 1)
    if type(fill) is not int or not low <= fill <= high:
        raise FileError("load: not a value of an input", where=str(entry["name"])[:80], got=str(fill)[:80])
    return TensorSpec(_identifier(entry["name"]), shape, dtype, fill)


def _identifier(name: Any) -> str:
    if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name) or name.startswith("__"):
        raise FileError("load: not a name", got=repr(name)[:80])
    return name


def _check_name(name: Any) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name) or not all(name.split(".")):
        raise FileError("load: not a tensor's name", got=repr(name)[:80])


class _Careful(FakeTensorProp):
    """Works out shapes without computing, and refuses what would take for ever or fill the memory."""

    def run_node(self, n: Node) -> Any:
        if n.op == "call_function":
            args, _ = self.fetch_args_kwargs_from_env(n)
            name = operator_name(n.target)
            if name.startswith(("operator.", "math.", "round", "torch.")) and name != "operator.getitem":
                _check_numbers(name, args)
            elif any(word in name for word in _LOOPS):
                tensors = [a for a in args if isinstance(a, torch.Tensor)]
                if any(size > _LONGEST_LOOP for t in tensors for size in t.shape):
                    raise FileError("load: a loop is too long", where=n.name, expected=f"at most {_LONGEST_LOOP} steps")
        return super().run_node(n)


def _check_numbers(name: str, args: tuple[Any, ...]) -> None:
    for value in args:
        if not isinstance(value, (bool, int, float)) or abs(value) >= 2**63:
            raise FileError("load: size arithmetic on something else than sizes", where=name, got=repr(value)[:80])
    if name == "operator.pow" and abs(args[1]) > 16:
        raise FileError("load: a power is too high", got=str(args[1]))


def _shaped(graph: Graph) -> Graph:
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        inputs = [torch.empty(s.at(EXAMPLE_BATCH), dtype=s.dtype, device=graph.device) for s in graph.inputs]
    _Careful(graph.net, mode).propagate_dont_convert_inputs(*inputs)
    return graph
