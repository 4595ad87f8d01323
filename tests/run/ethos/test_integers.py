"""Integers: every operator between integers, and the numbers as they were."""

import pytest
import torch

from tests.run.ethos.networks import Mixed, quantised
from tests.run.networks import images, residual
from trimtab.core.errors import InputError
from trimtab.run.ethos.integers import between_integers, whole
from trimtab.run.export import export_onnx

_ATEN = torch.ops.aten


def network():
    return quantised(residual()[0], images(16))


def mixed():
    torch.manual_seed(1)
    return quantised(Mixed().eval(), images(16))


def outside(graph):
    """Operators that do not stand between integers."""
    named = ("quantize_per", "getitem")
    return [
        str(n.target) for n in graph.nodes() if not any(w in str(n.target) for w in named) and not between_integers(n)
    ]


@pytest.mark.parametrize("make", [network, mixed])
def test_everything_stands_between_integers(make):
    graph = make()
    assert not [note for note in graph.notes if "floating point" in note]
    assert outside(whole(graph)) == []


@pytest.mark.parametrize("make", [network, mixed])
@torch.no_grad()
def test_numbers_stay_as_they_were(make):
    graph = make()
    last = next(iter(graph.net.graph.output_node().all_input_nodes))
    quanta = ((whole(graph)(images(32)) - graph(images(32))) / last.args[1]).abs()
    # an average that lies in the middle of two levels may go either way, as its sum is taken in another order
    assert quanta.max() < 2.01
    assert (quanta < 0.01).float().mean() > 0.75


def test_averages_share_the_scale_of_what_they_read():
    graph = network()
    mean = next(graph.nodes(_ATEN.mean.dim))
    behind = next(iter(mean.users))
    assert behind.args[1:3] == mean.args[0].args[1:3]


def test_clips_that_the_levels_hold_are_gone():
    # zero point at the lowest level: nothing below zero is left
    assert not list(whole(network()).nodes(_ATEN.relu.default))


def test_a_clip_on_a_wider_range_gets_levels_of_its_own():
    graph = whole(mixed())
    clip = next(graph.nodes(_ATEN.relu6.default))  # its range is widened by the branch beside it
    assert between_integers(clip)
    assert clip.args[0].args[1:] == next(iter(clip.users)).args[1:]


def test_every_second_pixel_is_a_convolution_with_ones():
    graph = whole(network())
    assert not list(graph.nodes(_ATEN.slice.Tensor, _ATEN.pad.default, _ATEN.constant_pad_nd.default))
    weight = next(t for name, t in graph.tensors().items() if name.startswith("select_"))
    assert weight.shape == (16, 8, 1, 1)
    assert weight.sum() == 8
    assert all(weight[4 + i, i, 0, 0] == 1 for i in range(8))


def test_biases_are_at_the_scale_of_the_sums():
    graph = whole(network())
    for node in graph.nodes(_ATEN.conv2d.default):
        if node.args[2] is None:
            continue
        tensors = graph.tensors()
        levels, scale = (tensors[str(node.args[2].args[i].target)] for i in (0, 1))
        weight_scale = tensors[str(node.args[1].args[1].target)]
        assert levels.dtype == torch.int32
        torch.testing.assert_close(scale, weight_scale * node.args[0].args[1])


def test_a_graph_in_floating_point_is_refused():
    with pytest.raises(InputError, match="Quantise it first"):
        whole(residual()[1])


def test_such_a_graph_exports_and_runs(tmp_path):
    export_onnx(mixed(), tmp_path / "model.onnx")  # compares with the graph
    export_onnx(network(), tmp_path / "other.onnx")
