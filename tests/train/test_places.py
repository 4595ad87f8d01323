"""Places: stage ends of different networks, the same nodes of one cut from another, layers by name."""

import pytest
import torch

from trimtab.core.errors import InputError
from trimtab.graph.blocks import remove
from trimtab.graph.capture import capture
from trimtab.graph.coupling import groups
from trimtab.graph.surgery import cut
from trimtab.train.places import channels, embedding, given, pairs, shape

from .stages import Plain, Residual, Sequence

IMAGE = torch.randn(2, 3, 8, 8)


def captured(net, example=IMAGE):
    torch.manual_seed(0)
    return capture(net.eval(), example)


def layer(graph, node):
    """The layer whose parameters come nearest before a node."""
    given_by = node
    while not any(a.op == "get_attr" for a in given_by.all_input_nodes):
        given_by = given_by.all_input_nodes[0]
    return str(next(a for a in given_by.all_input_nodes if a.op == "get_attr").target).rpartition(".")[0]


@pytest.fixture(scope="module")
def deep():
    return captured(Residual(3, 6))


@pytest.fixture(scope="module")
def shallow():
    return captured(Residual(1, 4))


def test_different_depths_meet_at_the_ends_of_their_stages(shallow, deep):
    found = pairs(shallow, deep)
    assert [layer(shallow, a) for a, _ in found] == [f"layer{k}.0.bn2" for k in (1, 2, 3)]
    assert [layer(deep, b) for _, b in found] == [f"layer{k}.2.bn2" for k in (1, 2, 3)]
    assert [shape(a)[1:] for a, _ in found] == [(4, 8, 8), (8, 4, 4), (16, 2, 2)]
    assert [shape(b)[1:] for _, b in found] == [(6, 8, 8), (12, 4, 4), (24, 2, 2)]
    assert all("relu" in n.name for pair in found for n in pair)


def test_other_sizes_are_matched_in_order(shallow):
    larger = captured(Residual(2, 4), torch.randn(2, 3, 16, 16))
    assert [shape(b)[2] for _, b in pairs(shallow, larger)] == [16, 8, 4]


def test_a_network_without_shortcuts_and_with_fewer_stages(deep):
    found = pairs(captured(Plain(2)), deep)
    assert [shape(a)[2] for a, _ in found] == [8, 4]
    assert [layer(deep, b) for _, b in found] == ["layer1.2.bn2", "layer2.2.bn2"]


def test_what_was_made_from_the_other_is_compared_at_the_same_nodes(deep):
    for made in (deep, remove(deep, ["layer2.1"])):
        found = pairs(made, deep)
        assert [a.name for a, _ in found] == [b.name for _, b in found]
    assert len(pairs(deep, deep)) == 8  # of nine additions
    assert "layer2.1.bn2" not in [layer(deep, b) for _, b in pairs(remove(deep, ["layer2.1"]), deep)]


def test_a_cut_network_keeps_its_nodes_though_their_widths_differ(deep):
    first = next(g for g in groups(deep) if g.name.startswith("conv1"))
    found = pairs(cut(deep, {first.name: [0, 1, 3]}), deep)
    assert [a.name for a, _ in found] == [b.name for _, b in found]
    assert any(shape(a)[1] < shape(b)[1] for a, b in found)


def test_transformers_are_spread_over_their_depth():
    x = torch.randn(2, 5, 3)
    small, large = captured(Sequence(2, 6), x), captured(Sequence(6, 10), x)
    found = pairs(small, large)
    assert [(shape(a)[2], shape(b)[2]) for a, b in found] == [(6, 10), (6, 10)]
    assert found[-1][1].name == [n for n in large.nodes() if "add" in n.name][-1].name
    assert found[0][1].name == [n for n in large.nodes() if "add" in n.name][2].name  # half of six
    assert channels(found[0][0]) == 2


def test_channels_lie_behind_the_batch_for_images(deep):
    assert {channels(n) for n in deep.nodes(torch.ops.aten.relu.default)} == {1}


def test_an_image_has_nothing_in_common_with_a_sequence(deep):
    with pytest.raises(InputError, match=r"no places were found .* got 2 in the student, 9 in the teacher\. Name them"):
        pairs(captured(Sequence(2, 6), torch.randn(2, 5, 3)), deep)


def test_layers_and_nodes_by_name(shallow, deep):
    (a, b), (c, _) = given(shallow, deep, {"layer2": "layer2", "layer3.0.conv1": "layer3.0"})
    assert layer(shallow, a) == "layer2.0.bn2"
    assert "relu" in a.name
    assert layer(deep, b) == "layer2.2.bn2"
    assert layer(shallow, c) == "layer3.0.bn1"
    ((node, _),) = given(shallow, deep, {a.name: b.name})
    assert node.name == a.name


@pytest.mark.parametrize(
    ("names", "told"),
    [
        ({"layer9": "layer1"}, r"the student has no layer or node 'layer9': expected one such as .*Did you mean layer"),
        ({"layer1": "stage"}, r"the teacher has no layer or node 'stage'"),
        ({}, r"places: got none"),
    ],
)
def test_a_place_that_is_not_there(shallow, deep, names, told):
    with pytest.raises(InputError, match=told):
        given(shallow, deep, names)


def test_the_embedding_is_what_the_last_linear_layer_reads(deep):
    assert shape(embedding(deep)) == (2, 24)
    assert embedding(deep).target is torch.ops.aten.mean.dim
