"""Signed: int8 activations give the numbers that uint8 ones gave, bit for bit."""

import torch

from tests.run.networks import images, quantised, residual
from trimtab.graph.signed import float_biases, is_quantised, signed


def network():
    return quantised(residual()[0], images(16))


def types(graph):
    return {a for node in graph.nodes() for a in node.args if isinstance(a, torch.dtype)}


def test_shifted_activations_compute_the_same():
    graph = network()
    assert torch.uint8 in types(graph)
    shifted = signed(graph)
    assert torch.uint8 not in types(shifted)
    assert torch.uint8 in types(graph)  # the caller's own is as it was
    x = images(5)
    assert torch.equal(shifted(x), graph(x))


def test_zero_points_and_limits_move_by_128():
    def settings(graph):
        quantise = torch.ops.quantized_decomposed.quantize_per_tensor.default
        return [(n.args[1], *n.args[2:5]) for n in graph.nodes(quantise)]

    before, after = settings(network()), settings(signed(network()))
    assert len(before) == 7
    assert after == [(scale, z - 128, low - 128, high - 128) for scale, z, low, high in before]
    assert (after[1][1], *after[1][2:]) == (-128, -128, 127)  # behind relu


def test_biases_in_floats_round_to_the_same_integers():
    graph = network()
    assert torch.int32 in types(graph)
    plain = float_biases(graph)
    assert torch.int32 not in types(plain)
    assert torch.equal(plain(images(5)), graph(images(5)))
    tensors = graph.tensors()
    scale = tensors["head.bias_scale"].double()
    levels = torch.round(plain.tensors()["head.bias_float"].double() / scale)
    assert torch.equal(levels.to(torch.int32), tensors["head.bias"])


def test_a_float_graph_stays_as_it_is():
    graph = residual()[1]
    assert not is_quantised(graph)
    assert is_quantised(network())
    assert [n.target for n in signed(graph).nodes()] == [n.target for n in graph.nodes()]
