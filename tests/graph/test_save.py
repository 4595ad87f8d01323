"""Saving: everything comes back, in a clean process too, and no damaged or hostile file does anything but fail."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from trimtab.core.errors import FileError
from trimtab.graph.capture import capture
from trimtab.graph.modes import set_mode
from trimtab.graph.module import module
from trimtab.graph.operators import operator_named
from trimtab.graph.save import load, save
from trimtab.graph.values import decode, encode


class Net(nn.Module):
    """Convolution, norm, dropout, attention, tied embedding, constants, two inputs and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.drop = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, eps=1e-3), nn.Dropout2d(0.2)
        self.embed, self.head = nn.Embedding(9, 8), nn.Linear(8, 9, bias=False)
        self.head.weight = self.embed.weight
        self.frozen = nn.Linear(8, 8).requires_grad_(False)
        self.register_buffer("scratch", torch.ones(8), persistent=False)

    def forward(self, image, ids):
        y = self.drop(F.relu(self.norm(self.conv(image)))).mean((2, 3)) * self.scratch
        e = self.frozen(self.embed(ids)) + y.unsqueeze(1)
        q = e.view(e.shape[0], -1, 2, 4).transpose(1, 2)
        a = F.scaled_dot_product_attention(q, q, q, dropout_p=0.3 if self.training else 0.0)
        masked = a.masked_fill(a > 3, float("-inf")).clamp(min=-5.0)
        return {"logits": self.head(masked.transpose(1, 2).flatten(2)), "pooled": y.to(torch.float64)}


def inputs():
    return torch.randn(3, 3, 8, 8), torch.randint(0, 9, (3, 5))


@pytest.fixture(scope="module")
def graph():
    torch.manual_seed(0)
    return capture(Net(), inputs())


@pytest.fixture(scope="module")
def saved(graph, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    save(graph, folder)
    return folder


def test_everything_comes_back(graph, saved):
    again = load(saved)
    assert (again.inputs, again.outputs, again.bare) == (graph.inputs, graph.outputs, graph.bare)
    assert (again.notes, again.tied, again.unsaved) == (graph.notes, graph.tied, graph.unsaved)
    assert list(again.tensors()) == list(graph.tensors())
    assert [p.requires_grad for p in again.net.parameters()] == [p.requires_grad for p in graph.net.parameters()]
    x = inputs()
    for name, value in graph(*x).items():
        assert torch.equal(again(*x)[name], value)
    shapes = [n.meta["val"].shape for n in again.nodes() if isinstance(n.meta["val"], torch.Tensor)]
    assert shapes == [n.meta["val"].shape for n in graph.nodes() if isinstance(n.meta["val"], torch.Tensor)]


@pytest.mark.parametrize("training", [False, True])
def test_both_modes_come_back_with_attention_dropout(graph, tmp_path, training):
    x = inputs()
    first = set_mode(graph.copy(), training)
    save(first, tmp_path)
    second = load(tmp_path)
    assert second.net.training == training
    for mode in (training, True, False):
        set_mode(first, mode)
        set_mode(second, mode)
        torch.manual_seed(5)
        expected = first(*x)["logits"]
        torch.manual_seed(5)
        assert torch.equal(second(*x)["logits"], expected)


def test_tied_parameters_stay_tied(saved):
    again = module(load(saved))
    state = again.state_dict()
    assert state["head.weight"].data_ptr() == state["embed.weight"].data_ptr()
    assert "scratch" not in state


def test_saving_twice_gives_the_same_bytes(graph, saved, tmp_path):
    save(load(saved), tmp_path)
    for name in ("model.trim.json", "model.safetensors"):
        assert (tmp_path / name).read_bytes() == (saved / name).read_bytes()


def test_a_clean_process_loads_it_without_the_class_or_a_pickle(graph, saved):
    image, ids = torch.ones(2, 3, 8, 8), torch.zeros(2, 5, dtype=torch.long)
    code = (
        "import sys, pickle, torch\n"
        "def refuse(*a, **k): raise SystemExit('unpickled')\n"
        "pickle.load = pickle.loads = torch.load = refuse\n"
        "from trimtab.graph.save import load\n"
        f"g = load({str(saved)!r})\n"
        "out = g(torch.ones(2, 3, 8, 8), torch.zeros(2, 5, dtype=torch.long))\n"
        "print(float(out.logits.detach().double().sum()), 'test_save' in sys.modules)"
    )
    root = Path(__file__).parents[2]
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=False)
    assert ran.returncode == 0, ran.stderr
    total, imported = ran.stdout.split()
    assert imported == "False"
    expected = graph(image, ids).logits.detach().double().sum()
    assert float(total) == pytest.approx(float(expected), rel=1e-5)


def test_an_operator_of_the_users_own_is_refused(tmp_path):
    graph = capture(nn.Linear(3, 3), torch.randn(2, 3))
    node = next(graph.nodes())
    node.target = print
    with pytest.raises(FileError, match="print"):
        save(graph, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written(graph, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises((FileError, OSError)):
        save(graph, tmp_path / "file")


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, 3, -2, 2.0, 1e-30, float("inf"), "x", [1, [2.5, None]], (1, (2,)), 1 + 2j, slice(0, None, 2)),
        *(torch.float16, torch.int8, torch.device("cpu"), torch.device("cuda:1"), torch.channels_last, torch.strided),
    ],
)
def test_arguments_come_back_with_their_type(value):
    again = decode(json.loads(json.dumps(encode(value))), {})
    assert again == value
    assert type(again) is type(value)


# Damaged files


def write(folder: Path, saved: Path, data: bytes | None = None, weights: bytes | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "model.trim.json").write_bytes((saved / "model.trim.json").read_bytes() if data is None else data)
    (folder / "model.safetensors").write_bytes(
        (saved / "model.safetensors").read_bytes() if weights is None else weights
    )
    return folder


def refused(folder: Path) -> str:
    with pytest.raises(FileError) as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 2000
    return str(caught.value)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255), cut=st.booleans(), described=st.booleans())
def test_every_flipped_or_missing_byte_is_noticed(saved, tmp_path, at, flip, cut, described):
    source = (saved / ("model.trim.json" if described else "model.safetensors")).read_bytes()
    place = int(at * len(source))
    damaged = source[:place] if cut else source[:place] + bytes([source[place] ^ flip]) + source[place + 1 :]
    if described and not cut and place == len(source) - 1:
        return  # the line end after the JSON carries nothing
    try:
        if described and json.loads(damaged) == json.loads(source):
            return  # a blank became another blank
    except ValueError:
        pass
    refused(write(tmp_path / "damaged", saved, **{"data" if described else "weights": damaged}))


@pytest.mark.parametrize("name", ["model.trim.json", "model.safetensors"])
def test_missing_files(saved, tmp_path, name):
    folder = write(tmp_path / "part", saved)
    (folder / name).unlink()
    assert name in refused(folder)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"null",
        b'{"schema": 2}',
        b'{"schema": 1}',
        b"[" * 200_000,
        b'{"schema": 1, "graph": {}}',
        b"\xff\xfe",
    ],
)
def test_other_content(saved, tmp_path, text):
    refused(write(tmp_path / "other", saved, data=text))


# Hostile files: well formed, with the right checksum, meaning harm


def forged(folder: Path, saved: Path, change) -> Path:
    data = json.loads((saved / "model.trim.json").read_text())
    change(data["graph"])
    data["sha256"] = hashlib.sha256(json.dumps(data["graph"], sort_keys=True).encode()).hexdigest()
    return write(folder, saved, data=json.dumps(data).encode())


def first_call(body):
    return next(node for node in body["nodes"] if node["op"] == "call_function")


def set_target(name):
    return lambda body: first_call(body).update(target=name)


def add_nodes(*entries):
    def change(body):
        body["nodes"][-1:-1] = [{"op": "call_function", "kwargs": {}, **entry} for entry in entries]

    return change


SQUARES = [
    {"name": f"s{i}", "target": "operator.mul", "args": [{"node": f"s{i - 1}"} if i else 2**60] * 2} for i in range(60)
]
HOSTILE = {
    "system": set_target("os.system"),
    "builtin": set_target("eval"),
    "from_file": set_target("aten.from_file.default"),
    "dunder": set_target("aten.__class__.default"),
    "attribute": set_target("aten.conv2d.__init__"),
    "namespace": set_target("prim.Print.default"),
    "long": set_target("a" * 10_000),
    "not a string": set_target({"x": 1}),
    "code in a node's name": lambda body: first_call(body).update(name="x=1\nimport os"),
    "code in an input's name": lambda body: (
        next(node for node in body["nodes"] if node["op"] == "placeholder").update(target="x, y=print(1)"),
        body["inputs"][0].update(name="x, y=print(1)"),
    ),
    "code in a keyword": lambda body: first_call(body).update(kwargs={"x=print(1), y": 1}),
    "module": lambda body: first_call(body).update(op="call_module"),
    "self reference": lambda body: first_call(body).update(args=[{"node": first_call(body)["name"]}]),
    "unknown node": lambda body: first_call(body).update(args=[{"node": "nobody"}]),
    "wrong arguments": lambda body: first_call(body).update(args=[]),
    "deep": lambda body: first_call(body).update(args=[[[[[[[[[[[[1]]]]]]]]]]]]),
    "huge integer": lambda body: first_call(body).update(args=[10**400]),
    "no nodes": lambda body: body.update(nodes=[]),
    "no key": lambda body: body.pop("outputs"),
    "shape": lambda body: body["inputs"][0].update(shape=[None, -3]),
    "huge shape": lambda body: body["inputs"][0].update(shape=[None, 2**40]),
    "dtype": lambda body: body["inputs"][0].update(dtype="object"),
    "tied": lambda body: body.update(tied=[["x'\n", "embed.weight"]]),
    "train": lambda body: first_call(body).update(train={"op": "x", "arity": 1, "args": {"7": True}}),
    "squares": add_nodes(*SQUARES),
    "power": add_nodes({"name": "p", "target": "operator.pow", "args": [10, 10**9]}),
    "long list": add_nodes({"name": "l", "target": "operator.mul", "args": [[0], 10**12]}),
    "long loop": add_nodes(
        {"name": "z", "target": "aten.zeros.default", "args": [[10**12]]},
        {"name": "u", "target": "aten.unbind.int", "args": [{"node": "z"}]},
    ),
    "two of a name": lambda body: body["nodes"].insert(1, dict(body["nodes"][0])),
    "size of weights": lambda body: body["weights"].update(bytes=10**15),
}


@pytest.mark.parametrize("harm", HOSTILE)
def test_hostile_files_are_refused(saved, tmp_path, harm, capsys):
    refused(forged(tmp_path / "hostile", saved, HOSTILE[harm]))
    assert capsys.readouterr().out == ""


def test_a_forgery_that_changes_nothing_loads(saved, tmp_path):
    load(forged(tmp_path / "same", saved, lambda body: None))


def test_a_file_that_is_too_large_is_not_read(saved, tmp_path):
    folder = write(tmp_path / "large", saved)
    with (folder / "model.trim.json").open("r+b") as file:
        file.truncate(1 << 40)  # a hole: takes no disk
    assert "at most" in refused(folder)


@pytest.mark.parametrize("name", ["aten.add", "aten.add.out", "aten..", "", "aten.add.Nothing", "operator.setitem"])
def test_only_listed_operators_have_a_name(name):
    with pytest.raises(FileError):
        operator_named(name)


def test_converted_quantisation_comes_back(tmp_path):
    graph = capture(nn.Linear(4, 4), torch.randn(2, 4))
    quantise = operator_named("quantized_decomposed.quantize_per_tensor.default")
    dequantise = operator_named("quantized_decomposed.dequantize_per_tensor.default")
    linear = next(graph.nodes())
    with graph.net.graph.inserting_before(linear):
        scale = (0.1, 3, 0, 255, torch.uint8)
        q = graph.net.graph.call_function(quantise, (linear.args[0], *scale))
        d = graph.net.graph.call_function(dequantise, (q, *scale))
    linear.args = (d, *linear.args[1:])
    graph.net.recompile()
    save(graph, tmp_path)
    x = torch.randn(2, 4)
    assert torch.equal(load(tmp_path)(x), graph(x))
    assert not torch.allclose(graph(x), F.linear(x, *graph.net.parameters()))


# Levels in few bits


class Levels(nn.Module):
    """Integer levels of several widths, dequantised and multiplied."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        for bits in range(1, 9):
            half = 1 << (bits - 1)
            draw = torch.randint(0, 2 * half, (97, 11), generator=generator)
            levels = 2 * draw - 1 if bits == 1 else draw - half
            self.register_buffer(f"w{bits}", levels.to(torch.int8))
        self.register_buffer("few", torch.ones(9, dtype=torch.int8))

    def forward(self, x):
        for bits in range(1, 9):
            x = x + getattr(self, f"w{bits}").to(torch.float32).sum(0)
        return x * self.few.to(torch.float32).sum()


@pytest.fixture(scope="module")
def levels(tmp_path_factory):
    folder = tmp_path_factory.mktemp("levels")
    graph = capture(Levels(), torch.randn(2, 11))
    save(graph, folder)
    return graph, folder


def test_levels_are_stored_in_their_bits_and_come_back(levels):
    from safetensors.torch import load_file

    graph, folder = levels
    held = load_file(folder / "model.safetensors")
    for bits in range(1, 8):
        assert held[f"w{bits}"].dtype == torch.uint8
        assert held[f"w{bits}"].nbytes == -(-97 * 11 * bits // 8)
    assert held["w8"].dtype == held["few"].dtype == torch.int8
    again = load(folder)
    assert list(again.tensors()) == list(graph.tensors())
    for name, tensor in graph.tensors().items():
        assert again.tensors()[name].dtype == tensor.dtype
        assert torch.equal(again.tensors()[name], tensor)
    x = torch.randn(3, 11)
    assert torch.equal(again(x), graph(x))


@pytest.mark.parametrize(
    "harm",
    [
        lambda said: said["w3"].update(bits=4),
        lambda said: said["w3"].update(bits=0),
        lambda said: said["w3"].update(bits=8),
        lambda said: said["w3"].update(bits=True),
        lambda said: said["w3"].update(bits="3"),
        lambda said: said["w3"].update(shape=[97, 12]),
        lambda said: said["w3"].update(shape=[2**20, 2**20]),
        lambda said: said["w3"].update(shape=[-37, -11]),
        lambda said: said["w3"].update(shape=37),
        lambda said: said["w3"].pop("shape"),
        lambda said: said.update(w3=3),
        lambda said: said.update(nobody={"bits": 3, "shape": [3]}),
        lambda said: said.update(w8={"bits": 7, "shape": [97, 11]}),
    ],
)
def test_packed_tensors_that_are_not_what_they_are_said_to_be(levels, tmp_path, harm):
    assert "packed tensor" in refused(forged(tmp_path / "harm", levels[1], lambda body: harm(body["packed"])))


def test_narrow_values_are_stored_narrow_and_come_back_wide(tmp_path):
    from safetensors.torch import load_file

    model = nn.Sequential(*(nn.Linear(24, 24) for _ in range(5)))
    kinds = (torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e4m3fn, torch.float32)
    torch.manual_seed(0)
    with torch.no_grad():
        for layer, kind in zip(model, kinds, strict=True):
            layer.weight.copy_(torch.randn(24, 24).to(kind))
        model[0].weight[0, 0] = -0.0
        model[1].bias.fill_(float("inf"))
    graph = capture(model, torch.randn(2, 24))
    save(graph, tmp_path)
    held = load_file(tmp_path / "model.safetensors")
    assert [held[f"{i}.weight"].dtype for i in range(5)] == list(kinds)
    again = load(tmp_path)
    for name, tensor in graph.tensors().items():
        assert again.tensors()[name].dtype == torch.float32
        assert torch.equal(again.tensors()[name].view(torch.int32), tensor.view(torch.int32))
    assert [p.requires_grad for p in again.net.parameters()] == [True] * 10
    harm = forged(tmp_path / "harm", tmp_path, lambda body: body["packed"].update({"4.weight": {"dtype": "float32"}}))
    assert "packed tensor" in refused(harm)


def test_a_list_of_packed_tensors_is_refused(levels, tmp_path):
    refused(forged(tmp_path / "list", levels[1], lambda body: body.update(packed=[])))


def test_a_damaged_packed_file_is_one_clear_error(levels, tmp_path):
    data = bytearray((levels[1] / "model.safetensors").read_bytes())
    data[-3] ^= 1
    assert "checksum" in refused(write(tmp_path / "damaged", levels[1], weights=bytes(data)))
