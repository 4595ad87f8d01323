"""Counting: every figure worked out by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from trimtab.graph.capture import capture
from trimtab.graph.count import count, peak_memory, total


def only(graph, kind, batch=1):
    (cost,) = [cost for cost in count(graph, batch) if cost.kind == kind]
    return cost


@pytest.mark.parametrize(
    ("layer", "shape", "kind", "macs"),
    [
        (nn.Conv2d(3, 8, 3, padding=1), (2, 3, 10, 10), "conv2d", 3 * 3 * 3 * 8 * 10 * 10),
        (nn.Conv2d(3, 8, 3, stride=2), (2, 3, 11, 11), "conv2d", 3 * 3 * 3 * 8 * 5 * 5),
        (nn.Conv2d(8, 8, 3, padding=1, groups=8), (2, 8, 10, 10), "conv2d", 3 * 3 * 8 * 10 * 10),
        (nn.Conv2d(8, 12, 1, groups=4), (2, 8, 5, 5), "conv2d", 2 * 12 * 5 * 5),
        (nn.Conv1d(3, 4, 5), (2, 3, 20), "conv1d", 3 * 5 * 4 * 16),
        (nn.Conv3d(2, 4, 2), (2, 2, 4, 4, 4), "conv3d", 2 * 8 * 4 * 27),
        (nn.ConvTranspose2d(3, 5, 2, stride=2), (2, 3, 6, 6), "conv_transpose2d", 3 * 5 * 4 * 36),
        (nn.Linear(7, 9), (2, 7), "linear", 63),
        (nn.Linear(7, 9), (2, 4, 7), "linear", 4 * 63),
        (nn.LSTM(3, 4, num_layers=2, batch_first=True), (2, 5, 3), "lstm", 5 * (16 * 3 + 16 * 4 + 16 * 4 + 16 * 4)),
        (nn.GRU(3, 4, bidirectional=True, batch_first=True), (2, 5, 3), "gru", 5 * 2 * (12 * 3 + 12 * 4)),
    ],
)
def test_macs_and_parameters_of_layers(layer, shape, kind, macs):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = layer

        def forward(self, x):
            out = self.inner(x)
            return out[0] if isinstance(out, tuple) else out

    graph = capture(Net(), torch.randn(shape))
    cost = only(graph, kind)
    assert cost.macs == macs
    assert cost.layer == "inner"
    assert cost.parameters == sum(p.numel() for p in layer.parameters())
    assert only(graph, kind, batch=3).macs == 3 * macs
    assert total(graph).parameters == cost.parameters


def test_bytes_and_intensity_of_a_linear_layer():
    cost = only(capture(nn.Linear(8, 4), torch.randn(2, 8)), "linear")
    assert (cost.input_bytes, cost.weight_bytes, cost.output_bytes) == (8 * 4, (32 + 4) * 4, 4 * 4)
    assert cost.intensity == 32 / (32 + 144 + 16)


def test_half_precision_is_half_the_bytes():
    cost = only(capture(nn.Linear(8, 4).bfloat16(), torch.randn(2, 8).bfloat16()), "linear")
    assert (cost.input_bytes, cost.weight_bytes, cost.output_bytes) == (16, 72, 8)


def test_attention_by_hand_and_fused_cost_the_same():
    class Fused(nn.Module):
        def forward(self, q, k, v):
            return F.scaled_dot_product_attention(q, k, v)

    class Manual(nn.Module):
        def forward(self, q, k, v):
            return torch.softmax(q @ k.transpose(-1, -2) / 4, -1) @ v

    class Einsum(nn.Module):
        def forward(self, q, k, v):
            a = torch.einsum("bhqd,bhkd->bhqk", q, k).softmax(-1)
            return torch.einsum("...qk,...kd->...qd", a, v)

    shapes = (2, 3, 7, 16), (2, 3, 11, 16), (2, 3, 11, 16)
    example = tuple(torch.randn(s) for s in shapes)
    for model in (Fused(), Manual(), Einsum()):
        assert sum(c.macs for c in count(capture(model, example))) == 3 * 7 * 11 * (
            16 + 16
        )  # EQUATIONS eq. 2, n^2 d twice


def test_other_products():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.randn(6, 5)), nn.Parameter(torch.randn(5))

        def forward(self, x):
            y = torch.addmm(self.bias, x, self.weight)  # rows 6 5
            z = torch.tensordot(y, self.weight, dims=([1], [1]))  # rows 5 6
            w = z @ self.weight  # rows 6 5
            return torch.baddbmm(w.unsqueeze(1), z.unsqueeze(1), self.weight.expand(x.shape[0], 6, 5))  # rows 6 5

    costs = count(capture(Net(), torch.randn(3, 6)), batch=4)
    assert [c.macs for c in costs if c.macs] == [4 * 30] * 4


def test_views_move_nothing_and_expanded_tensors_are_read_once():
    class Net(nn.Module):
        def forward(self, x, y):
            x = x.reshape(x.shape[0], 4, 2).transpose(1, 2)[:, :1]
            return x.contiguous() + y.unsqueeze(1).expand(-1, 100, 4)

    costs = {c.kind: c for c in count(capture(Net(), (torch.randn(3, 8), torch.randn(3, 4))))}
    for kind in ("reshape", "transpose", "slice", "unsqueeze", "expand"):
        assert costs[kind].bytes == 0
    assert costs["add"].input_bytes == 16 + 16
    assert costs["add"].output_bytes == 1600


def test_evaluating_dropout_costs_nothing_and_in_place_writes():
    class Net(nn.Module):
        def forward(self, x):
            y = F.dropout(x * 2, 0.5, self.training)
            return y.add_(1)

    costs = {c.kind: c for c in count(capture(Net(), torch.randn(2, 5)))}
    assert costs["dropout"].bytes == 0
    assert (costs["add_"].input_bytes, costs["add_"].output_bytes) == (20, 20)


def test_an_embedding_reads_only_its_rows():
    cost = only(capture(nn.Embedding(1000, 4), torch.zeros(2, 3, dtype=torch.long)), "embedding")
    assert (cost.input_bytes, cost.weight_bytes, cost.output_bytes) == (24, 48, 48)
    assert cost.parameters == 4000


def test_tied_weights_count_once():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(10, 4), nn.Linear(4, 10, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, ids):
            return self.head(self.embed(ids))

    whole = total(capture(Net(), torch.zeros(2, 3, dtype=torch.long)))
    assert (whole.parameters, whole.weight_bytes) == (40, 160)
    assert [c.parameters for c in whole.nodes] == [40, 40]


# Peak memory. One image of 4 x 8 x 8 floats is 1024 bytes.


class Chain(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, x):
        return self.b(torch.sigmoid(self.a(x)))


def test_peak_memory_of_a_chain():
    # at sigmoid: its input 2048 and output 2048; x (1024) was last read by a
    assert peak_memory(capture(Chain(), torch.randn(2, 4, 8, 8))) == 4096


def test_peak_memory_of_a_residual_block():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = Chain()

        def forward(self, x):
            return self.body(x) + x

    graph = capture(Net(), torch.randn(2, 4, 8, 8))
    # x lives on to the addition: 4096 + 1024 at sigmoid
    assert peak_memory(graph) == 5120
    assert peak_memory(graph, batch=3) == 3 * 5120
    assert total(graph).peak_memory == 5120


def test_views_keep_their_base_alive():
    class Net(nn.Module):
        def forward(self, x):
            y = x * 2  # 1024 bytes
            z = y.flatten(1)[:, :1]  # a view of y
            w = x.exp() + x  # exp and w, both 1024
            return w.flatten(1) * z

    # at the addition: x, y (held by z), exp, w
    assert peak_memory(capture(Net(), torch.randn(2, 4, 8, 8))) == 4 * 1024


def test_in_place_operators_take_no_memory():
    class Net(nn.Module):
        def forward(self, x):
            return (x * 2).relu_().sigmoid_()

    assert peak_memory(capture(Net(), torch.randn(2, 4, 8, 8))) == 2048


def test_outputs_live_to_the_end():
    class Net(nn.Module):
        def forward(self, x):
            first = x + 1
            return first, (x * 2).exp().sum((1, 2, 3))

    # at exp: first, x * 2, exp; x was last read by the product
    assert peak_memory(capture(Net(), torch.randn(2, 4, 8, 8))) == 3 * 1024


def test_counting_leaves_the_graph_as_it_was():
    graph = capture(Chain(), torch.randn(2, 4, 8, 8))
    total(graph, batch=7)
    assert {n.meta["val"].shape[0] for n in graph.nodes()} == {2}


def test_macs_of_the_residual_network_of_he_et_al():
    from tests.graph.test_capture import ResNet

    graph = capture(ResNet(), torch.randn(2, 3, 32, 32))
    first, same, down = 27 * 8, 72 * 8 + 72 * 8, 72 * 16 + 144 * 16
    assert total(graph).macs == 1024 * first + 1024 * same + 256 * down + 160
    assert [c.layer for c in count(graph) if c.macs][:3] == ["conv1", "layers.0.conv1", "layers.0.conv2"]
