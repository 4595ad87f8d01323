"""Coupling: which units there are, what goes with each, and why the rest is left whole."""

import pytest
import torch
from torch import nn

from tests.graph.small_networks import NETWORKS, Call, Decoder, captured
from trimtab.graph.capture import capture
from trimtab.graph.coupling import groups


def found(name, **settings):
    return {group.name: group for group in groups(captured(name)[0], **settings)}


def sizes(name):
    return {name: group.size for name, group in found(name).items() if group.reason is None}


def members(group):
    return {(m.parameter, m.dim): m.indices for m in group.members}


def test_a_chain_of_convolutions_with_flattened_pixels():
    all_groups = found("chain")
    first, second = all_groups["0.weight:0"], all_groups["3.weight:0"]
    each = tuple((i,) for i in range(6))
    assert first.size == 6
    assert set(members(first)) == {
        ("0.weight", 0), ("0.bias", 0), ("1.weight", 0), ("1.bias", 0), ("1.running_mean", 0), ("1.running_var", 0),
        ("3.weight", 1),
    }  # fmt: skip
    assert all(indices == each for indices in members(first).values())
    assert members(second)[("5.weight", 1)][2] == tuple(range(32, 48))  # 4 x 4 pixels of channel 2


def test_inputs_and_outputs_stay_with_a_reason():
    all_groups = found("chain")
    assert "output" in all_groups["5.weight:0"].reason
    assert "left whole" in all_groups["0.weight:1"].reason
    assert {name for name, group in all_groups.items() if group.reason is None} == {"0.weight:0", "3.weight:0"}


def test_option_a_channels_that_only_later_stages_have_are_units_of_their_own():
    all_groups = found("option_a")
    assert {n: g.size for n, g in all_groups.items() if g.reason is None} == {"conv1.weight:0": 4, "conv3.weight:0": 4}
    old, new = members(all_groups["conv1.weight:0"]), members(all_groups["conv3.weight:0"])
    assert old[("conv2.weight", 0)] == old[("conv1.weight", 0)] == ((0,), (1,), (2,), (3,))
    assert old[("conv3.weight", 0)] == old[("linear.weight", 1)] == ((2,), (3,), (4,), (5,))  # input i is output i + 2
    assert new[("conv3.weight", 0)] == ((0,), (1,), (6,), (7,))
    assert ("conv3.weight", 1) not in new


def test_concatenated_layers_are_groups_of_their_own():
    all_groups = found("dense")
    assert sizes("dense") == {"a.weight:0": 6, "b.weight:0": 4}
    assert members(all_groups["a.weight:0"])[("norm.weight", 0)] == tuple((i,) for i in range(4, 10))  # b comes first


def test_depthwise_and_group_norm():
    all_groups = found("mobile")
    depthwise = members(all_groups["0.weight:0"])
    assert depthwise[("2.weight", 0)] == depthwise[("3.weight", 0)] == tuple((2 * i, 2 * i + 1) for i in range(8))
    assert members(all_groups["4.weight:0"])[("4.weight", 0)] == ((0, 1), (2, 3), (4, 5))


def test_a_grouped_convolution_keeps_whole_groups():
    all_groups = members(found("grouped")["0.weight:0"])
    assert all_groups[("0.weight", 0)] == ((0, 1, 2), (3, 4, 5), (6, 7, 8), (9, 10, 11))
    assert all_groups[("1.weight", 0)] == ((0, 1), (2, 3), (4, 5), (6, 7))


def test_a_channel_shuffle_cuts_places_not_groups():
    # the shuffle interleaves the kept half (0 to 5) with what the branch gives: place i of both is one unit
    kept = members(found("shuffle")["stem.weight:0"])
    assert kept[("stem.weight", 0)] == kept[("branch.weight", 0)] == tuple((i,) for i in range(6))
    assert kept[("head.weight", 1)][:2] == ((0, 1), (2, 3))
    assert sizes("shuffle") == {"stem.weight:0": 6, "stem.weight:0/2": 6}  # the second half feeds the branch


def test_parts_of_unequal_width_are_groups_of_their_own():
    assert sizes("scan") == {"a.weight:0": 10, "both.weight:0": 3, "both.weight:0/2": 8}


def test_pixel_shuffle_units_are_runs_of_four():
    assert members(found("super_resolver")["1.weight:0"])[("1.weight", 0)][1] == (4, 5, 6, 7)


@pytest.mark.parametrize("name", ["merged_attention", "three_linears", "hand_written_attention"])
def test_heads_are_units(name):
    heads = [g for g in found(name).values() if any("attention.out.weight" in m.parameter for m in g.members)]
    cut = next(g for g in heads if g.size == 4)
    assert cut.reason is None
    assert members(cut)[("blocks.0.attention.out.weight", 1)][1] == (4, 5, 6, 7)
    if name == "merged_attention":
        expected = (4, 5, 6, 7, 20, 21, 22, 23, 36, 37, 38, 39)
        assert members(cut)[("blocks.0.attention.qkv.weight", 0)][1] == expected


def test_grouped_queries_go_with_their_keys_and_values():
    heads = members(found("decoder")["q.weight:0"])
    assert heads[("q.weight", 0)][1] == tuple(range(8, 16))
    assert heads[("k.weight", 0)][1] == heads[("v.weight", 0)][1] == (4, 5, 6, 7)


def test_a_tied_head_shares_its_width_and_keeps_its_words():
    all_groups = found("decoder")
    assert all_groups["embed.weight:1"].reason is None
    assert all_groups["embed.weight:0"].reason is not None
    assert isinstance(NETWORKS["decoder"][0](), Decoder)


def test_recurrent_layers_share_their_hidden_units():
    hidden = members(found("lstm")["rnn.weight_ih_l0:0"])
    assert hidden[("rnn.weight_ih_l0", 0)][3] == hidden[("rnn.weight_hh_l1", 0)][3] == (3, 11, 19, 27)
    assert hidden[("rnn.weight_hh_l0", 1)][3] == hidden[("head.weight", 1)][3] == (3,)


def test_layers_to_keep_whole():
    for pattern in ("conv1", "conv1.weight", "conv?.bias"):
        reasons = {name: group.reason for name, group in found("option_a", fixed=[pattern]).items()}
        assert pattern in reasons["conv1.weight:0"]
    assert found("option_a", fixed=["conv"])["conv1.weight:0"].reason is None  # no layer is called that


def test_what_an_unknown_operator_touches_is_left_whole():
    model = Call(lambda m, x: m.b(m.a(x).sort(-1)[0]), a=nn.Linear(6, 8), b=nn.Linear(8, 5))
    reasons = {g.name: g.reason for g in groups(capture(model, torch.randn(2, 6)))}
    assert "aten.sort" in reasons["a.weight:0"]


def test_names_are_unique_and_units_are_counted_once():
    for name in NETWORKS:
        graph = captured(name)[0]
        tensors = graph.tensors()
        all_groups = groups(graph)
        assert len({g.name for g in all_groups}) == len(all_groups)
        seen = set()
        for group in all_groups:
            for member in group.members:
                assert len(member.indices) == group.size
                places = {(member.parameter, member.dim, i) for unit in member.indices for i in unit}
                assert not places & seen
                seen |= places
                assert max(i for *_, i in places) < tensors[member.parameter].shape[member.dim]
