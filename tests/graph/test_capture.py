"""Capture: every kind of module, the caller's module untouched, and errors that name the line."""

import copy
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from trimtab.core.errors import CaptureError
from trimtab.graph.capture import capture
from trimtab.graph.model import Graph, Outputs, shaped
from trimtab.graph.modes import set_mode
from trimtab.graph.module import module


class Block(nn.Module):
    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False), nn.BatchNorm2d(outside)
        self.conv2, self.bn2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False), nn.BatchNorm2d(outside)
        self.pad = outside // 4 if stride > 1 else 0

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad)) if self.pad else x
        return F.relu(x + y)


class ResNet(nn.Module):
    """A CIFAR ResNet with option-A shortcuts (He et al. 2015, section 4.2), one block a stage."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8)
        self.layers = nn.Sequential(Block(8, 8, 1), Block(8, 16, 2))
        self.linear = nn.Linear(16, 10)

    def forward(self, x):
        return self.linear(self.layers(F.relu(self.bn1(self.conv1(x)))).mean((2, 3)))


def snapshot(model: nn.Module) -> tuple:
    tensors = {name: value.clone() for name, value in model.state_dict().items()}
    return tensors, [m.training for m in model.modules()], [len(m._forward_hooks) for m in model.modules()]


def same(a: tuple, b: tuple) -> bool:
    return a[1:] == b[1:] and a[0].keys() == b[0].keys() and all(torch.equal(a[0][k], b[0][k]) for k in a[0])


def test_names_shapes_and_values_of_a_residual_network():
    torch.manual_seed(0)
    model = ResNet().eval()
    graph = capture(model, torch.randn(4, 3, 16, 16))
    assert [(s.name, s.shape, s.dtype) for s in graph.inputs] == [("x", (None, 3, 16, 16), torch.float32)]
    assert graph.outputs == ("output",)
    assert graph.bare
    assert graph.notes == ()
    assert list(graph.net.state_dict()) == list(model.state_dict())
    for batch in (1, 2, 7):
        x = torch.randn(batch, 3, 16, 16)
        torch.testing.assert_close(graph(x), model(x))


def test_shapes_are_those_of_a_real_run():
    graph = shaped(capture(ResNet(), torch.randn(4, 3, 16, 16)), batch=5)
    seen: dict[str, tuple[int, ...]] = {}

    class Watch(torch.fx.Interpreter):
        def run_node(self, n):
            value = super().run_node(n)
            if isinstance(value, torch.Tensor):
                seen[n.name] = tuple(value.shape)
            return value

    Watch(graph.net).run(*graph.example(5))
    assert seen == {
        n.name: tuple(n.meta["val"].shape) for n in graph.net.graph.nodes if isinstance(n.meta["val"], torch.Tensor)
    }


def test_every_node_carries_its_shape_at_the_example_batch():
    graph = capture(ResNet(), torch.randn(4, 3, 16, 16))
    shapes = {n.name: tuple(n.meta["val"].shape) for n in graph.nodes(torch.ops.aten.conv2d.default)}
    assert shapes["conv2d"] == (2, 8, 16, 16)
    assert all("val" in node.meta for node in graph.net.graph.nodes)


def test_the_callers_module_is_untouched():
    model = ResNet().train()
    model.bn1.eval()  # a mixed mode must come back as it was
    model.register_forward_hook(lambda *_: None)
    before = snapshot(model)
    graph = capture(model, torch.randn(2, 3, 16, 16))
    set_mode(graph, True)(torch.randn(2, 3, 16, 16))
    with torch.no_grad():
        for tensor in graph.tensors().values():
            tensor.zero_()
    assert same(before, snapshot(model))


def test_the_callers_module_is_untouched_when_capture_fails():
    class Branch(ResNet):
        def forward(self, x):
            return super().forward(x) if x.sum() > 0 else -x

    model = Branch().train()
    model.bn1.eval()
    before, example, state = snapshot(model), torch.randn(2, 3, 16, 16), torch.get_rng_state()
    with pytest.raises(CaptureError):
        capture(model, example)
    assert same(before, snapshot(model))
    assert torch.equal(state, torch.get_rng_state())


def test_capture_leaves_the_callers_random_state():
    model, state = nn.Sequential(nn.Linear(3, 3), nn.Dropout()), torch.get_rng_state()
    capture(model, torch.zeros(2, 3))
    assert torch.equal(state, torch.get_rng_state())


def test_several_inputs_nested_inputs_and_constants():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(7, 4)

        def forward(self, ids, extra, scale=1.0, mode="add", mask=None):
            y = self.embed(ids) * scale + extra["bias"].unsqueeze(1)
            return y if mask is None else y * mask

    ids, bias = torch.randint(0, 7, (3, 5)), torch.randn(3, 4)
    model = Net()
    graph = capture(model, {"ids": ids, "extra": {"bias": bias}, "scale": 2.0, "mode": "add", "mask": None})
    assert [(s.name, s.shape) for s in graph.inputs] == [("ids", (None, 5)), ("extra_bias", (None, 4))]
    torch.testing.assert_close(graph(ids[:2], bias[:2]), model(ids[:2], {"bias": bias[:2]}, 2.0))
    positional = capture(model, (ids, {"bias": bias}, 2.0))
    assert [s.name for s in positional.inputs] == ["ids", "extra_bias"]
    torch.testing.assert_close(positional(ids, bias), graph(ids, bias))


def test_inputs_without_the_batch_keep_their_shape():
    class Net(nn.Module):
        def forward(self, x, weight):
            return x @ weight

    graph = capture(Net(), (torch.randn(3, 4), torch.randn(4, 2)))
    assert [s.shape for s in graph.inputs] == [(None, 4), (4, 2)]


def test_nested_outputs_are_named_and_none_is_left_out():
    @dataclass
    class Answer:
        logits: torch.Tensor
        hidden: tuple

    class Net(nn.Module):
        def forward(self, x):
            return {"a": Answer(x * 2, (x + 1, None)), "rows": x.shape[0], "b": [x - 1]}

    graph = capture(Net(), torch.randn(3, 4))
    assert graph.outputs == ("a.logits", "a.hidden.0", "b.0")
    assert not graph.bare
    out = graph(torch.ones(2, 4))
    assert isinstance(out, Outputs)
    assert out["a.hidden.0"].tolist() == [[2.0] * 4] * 2
    assert "rows (int)" in graph.notes[0]


def test_tied_weights_are_one_parameter_under_the_first_name():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(9, 4), nn.Linear(4, 9, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, ids):
            return self.head(self.embed(ids))

    graph = capture(Net(), torch.zeros(2, 3, dtype=torch.long))
    assert list(graph.tensors()) == ["embed.weight"]
    assert graph.tied == (("head.weight", "embed.weight"),)
    assert len({n.target for n in graph.net.graph.find_nodes(op="get_attr")}) == 1


def test_no_grad_regions_are_plain_nodes_that_pass_no_gradient():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.frozen, self.head = nn.Linear(3, 3), nn.Linear(3, 2)

        def forward(self, x):
            with torch.no_grad():
                y = self.frozen(x)
            return self.head(y)

    graph = capture(Net(), torch.randn(2, 3))
    assert all(isinstance(n.target, torch._ops.OpOverload) for n in graph.nodes())
    graph(torch.randn(2, 3)).sum().backward()
    assert graph.net.get_parameter("frozen.weight").grad is None
    assert graph.net.get_parameter("head.weight").grad is not None


def test_frozen_parameters_stay_frozen_and_unused_ones_are_named():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(3, 3).requires_grad_(False), nn.Linear(3, 3)

        def forward(self, x):
            return self.used(x)

    graph = capture(Net(), torch.randn(2, 3))
    assert not graph.net.get_parameter("used.weight").requires_grad
    assert graph.notes == ("Left out, because the forward pass does not use them: idle.weight, idle.bias.",)


def test_buffers_that_are_not_saved_stay_unsaved():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("kept", torch.ones(3))
            self.register_buffer("scratch", torch.ones(3), persistent=False)

        def forward(self, x):
            return x + self.kept + self.scratch + torch.tensor([1.0, 2.0, 3.0])

    graph = capture(Net(), torch.randn(2, 3))
    assert set(graph.unsaved) == {"scratch", "lifted_tensor_0"}
    assert list(module(graph).state_dict()) == ["kept"]
    assert graph(torch.zeros(2, 3)).tolist() == [[3.0, 4.0, 5.0]] * 2


def test_views_become_reshapes_so_channels_last_runs():
    class Net(nn.Module):
        def forward(self, x):
            return x.view(x.shape[0], -1)

    graph = capture(Net(), torch.randn(2, 3, 4, 4))
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(graph(x.to(memory_format=torch.channels_last)), x.reshape(2, -1))


def test_recurrent_layers_follow_the_device():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(3, 4, batch_first=True)

        def forward(self, x):
            return self.lstm(x)[0]

    graph = capture(Net(), torch.randn(2, 5, 3))
    moved = graph.to("meta")
    assert moved(torch.empty(3, 5, 3, device="meta")).device.type == "meta"
    assert graph(torch.randn(3, 5, 3)).device.type == "cpu"


def test_a_large_example_is_captured_with_few_rows_and_keeps_what_is_no_batch():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rows = []

        def forward(self, x, weight):
            self.rows.append(x.shape[0])
            return x @ weight

    model = Net()
    graph = capture(model, (torch.randn(64, 4), torch.randn(4, 2)))
    assert [s.shape for s in graph.inputs] == [(None, 4), (4, 2)]
    assert model.rows == []


def test_only_modules_are_captured():
    with pytest.raises(CaptureError, match="function"):
        capture(lambda x: x, torch.randn(2, 3))


@pytest.mark.parametrize("name", ["graph", "code", "meta"])
def test_names_that_fx_keeps_are_refused(name):
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            setattr(self, name, nn.Linear(3, 3))

        def forward(self, x):
            return getattr(self, name)(x)

    with pytest.raises(CaptureError, match=name):
        capture(Net(), torch.randn(2, 3))


def test_not_a_number_in_the_example_is_fine():
    capture(nn.Linear(3, 2), torch.full((2, 3), float("nan")))


def test_old_weight_norm_and_cached_results_are_copied():
    with pytest.warns(FutureWarning):
        model = nn.utils.weight_norm(nn.Linear(3, 3))
    model(torch.randn(2, 3))  # leaves a weight that is no leaf, which deepcopy alone refuses
    x = torch.randn(2, 3)
    torch.testing.assert_close(capture(model, x)(x), model(x))


def test_half_precision_networks():
    model = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8)).to(torch.bfloat16)
    graph = capture(model, torch.randn(2, 8, dtype=torch.bfloat16))
    assert graph(*graph.example(3)).dtype == torch.bfloat16


# What cannot be captured in training mode


def test_layer_drop_is_captured_evaluating_and_says_so():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x):
            if self.training and torch.rand(()) < 0.5:
                return x
            return self.layer(x)

    graph = capture(Net(), torch.randn(2, 3))
    assert graph.notes[0].startswith("Captured for evaluation only")
    assert "test_capture.py:" in graph.notes[0]


def test_a_forward_pass_that_differs_in_training_is_captured_evaluating():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.main, self.side = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            return (self.main(x), self.side(x)) if self.training else self.main(x)

    graph = capture(Net(), torch.randn(2, 3))
    assert graph.bare
    assert "training and evaluation return different things" in graph.notes[0]


# Errors


def line_of(text: str) -> str:
    lines = Path(__file__).read_text().splitlines()
    return f"test_capture.py:{next(i for i, line in enumerate(lines, 1) if line.strip() == text)}"


class Branching(nn.Module):
    def forward(self, x):
        if x.sum() > 0:
            return x
        return -x


class Itemising(nn.Module):
    def forward(self, x):
        return x * float(x.max())


class Masking(nn.Module):
    def forward(self, x):
        return x[x > 0.25]


class Fixed(nn.Module):
    def forward(self, x):
        return x.reshape(4, -1).exp()


class Counting(nn.Module):
    def forward(self, x):
        return x.view(len(x), -1).exp()


class Wrong(nn.Module):
    def forward(self, x):
        return x @ torch.ones(17, 2)


@pytest.mark.parametrize(
    ("model", "line", "words"),
    [
        (Branching(), "if x.sum() > 0:", "torch.where"),
        (Itemising(), "return x * float(x.max())", "values of a tensor"),
        (Masking(), "return x[x > 0.25]", "shapes"),
        (Fixed(), "return x.reshape(4, -1).exp()", "fixes the batch size"),
        (Counting(), "return x.view(len(x), -1).exp()", "len(x)"),
        (Wrong(), "return x @ torch.ones(17, 2)", "the network itself fails"),
    ],
)
def test_errors_name_the_users_line_on_one_line(model, line, words, capsys):
    with pytest.raises(CaptureError) as caught:
        capture(model, torch.randn(4, 3))
    message = str(caught.value)
    assert line_of(line) in message
    assert words in message
    assert "\n" not in message
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("example", "words"),
    [
        (torch.randn(1, 3), "a batch of 1"),
        (torch.tensor(1.0), "no tensor with a dimension"),
        ((), "no tensor"),
        ((torch.randn(2, 3), object()), "object"),
    ],
)
def test_bad_examples_are_refused(example, words):
    with pytest.raises(CaptureError, match=words):
        capture(nn.Linear(3, 2), example)


def test_a_network_that_no_batch_of_one_fits_says_so():
    class Net(nn.Module):
        def forward(self, x):
            return x * 2 if x.shape[0] > 1 else x

    with_note = capture(Net(), torch.randn(3, 4))
    assert any("batch of one" in note for note in with_note.notes)


def test_something_that_cannot_be_copied_is_refused():
    model = nn.Linear(3, 2)
    model.handle = (i for i in range(3))
    with pytest.raises(CaptureError, match="cannot be copied"):
        capture(model, torch.randn(2, 3))


def test_copies_are_apart():
    graph = capture(nn.Linear(3, 2), torch.randn(2, 3))
    other = copy.deepcopy(graph.copy())
    with torch.no_grad():
        other.net.get_parameter("weight").zero_()
    assert isinstance(other, Graph)
    assert graph.net.get_parameter("weight").abs().sum() > 0


def test_a_tuple_of_outputs_unpacks_as_the_user_wrote_it():
    class Two(torch.nn.Module):
        def forward(self, x):
            return x + 1, x * 2

    graph = capture(Two(), torch.ones(2, 3))
    a, b = graph(torch.ones(4, 3))
    assert torch.equal(a, torch.full((4, 3), 2.0))
    assert torch.equal(b, torch.full((4, 3), 2.0))
    found = graph(torch.ones(4, 3))
    assert torch.equal(found[1], b)
    assert set(found.keys()) == set(dict(found)) == {"0", "1"}
