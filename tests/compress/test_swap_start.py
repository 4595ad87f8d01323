"""What alternatives begin with, against kernels worked out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from trimtab.compress.swap import kinds, start
from trimtab.compress.swap.modules import LinearAttention, Pooling, chain
from trimtab.hardware.layer import Layer

ONES = (1, 1)


def layer(kernel: int, inputs: int = 8, outputs: int = 8, stride: int = 1, padding: int | None = None) -> Layer:
    pad = kernel // 2 if padding is None else padding
    return Layer(inputs, outputs, (kernel, kernel), (12, 12), (stride, stride), (pad, pad), ONES)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def made(kind: str, weight: Tensor, shape: Layer, bias: Tensor | None = None) -> torch.nn.Module:
    form = kinds.OF_CONVOLUTION[kind](shape)
    assert form is not None
    return chain(form, start.OF_CONVOLUTION[kind](weight, form.layers), bias).double()


def close(found: Tensor, expected: Tensor, within: float = 1e-5) -> None:
    """Weights of modules are in single precision."""
    assert float((found - expected).detach().norm() / expected.norm()) < within


def conv(x: Tensor, weight: Tensor, shape: Layer) -> Tensor:
    return functional.conv2d(x, weight, None, shape.stride, shape.padding, shape.dilation, shape.groups)


def test_forms_have_the_multiply_adds_of_their_formulas():
    shape = layer(3, 32, 64)
    pixels = 12 * 12
    assert shape.macs == 9 * 32 * 64 * pixels
    assert kinds.separable(shape).macs == (9 * 32 + 32 * 64) * pixels
    assert kinds.grouped(shape).macs == 9 * 32 * 64 // 4 * pixels
    assert kinds.bottleneck(shape).macs == (32 * 16 + 9 * 16 * 16 + 16 * 64) * pixels
    assert kinds.strips(shape).macs == (3 * 32 * 16 + 3 * 16 * 64) * pixels
    assert kinds.stacked(layer(5, 32, 64)).macs == (9 * 32 * 64 + 9 * 64 * 64) * pixels
    assert len(kinds.stacked(layer(7)).layers) == 3


def test_strides_are_kept():
    for kind, form in kinds.OF_CONVOLUTION.items():
        found = form(layer(5, 32, 32, stride=2))
        if kind == "identity":
            assert found is None
        else:
            assert found.layers[-1].result == (6, 6), kind


def test_what_does_not_fit_is_not_offered():
    assert kinds.stacked(layer(3)) is None
    assert kinds.stacked(layer(5, padding=1)) is None
    assert kinds.grouped(layer(3, 3, 16)) is None
    assert kinds.bottleneck(layer(3, 8, 8)) is None
    assert kinds.strips(layer(1)) is None
    assert kinds.nothing(layer(3, 8, 16)) is None
    wide = layer(5, 4, 64)
    assert kinds.cheaper({"stacked": kinds.stacked(wide), "identity": None}, (wide,)) == {}


def test_a_separable_kernel_becomes_itself():
    depthwise, pointwise = random(8, 1, 3, 3), random(16, 8, 1, 1, seed=1)
    weight = pointwise * depthwise.transpose(0, 1)  # [16, 8, 3, 3]
    x, shape = random(2, 8, 12, 12, seed=2), layer(3, 8, 16, stride=2)
    close(made("separable", weight, shape)(x), conv(x, weight, shape))


def test_the_nearest_separable_kernel_leaves_the_other_singular_values():
    weight = random(6, 1, 3, 3)
    form = kinds.separable(layer(3, 1, 6))
    depthwise, pointwise = start.separable(weight, form.layers)
    left = (weight - pointwise * depthwise).square().sum()
    s = torch.linalg.svdvals(weight.flatten(1))
    assert float(left) == pytest.approx(float(s[1:].square().sum()))


def test_a_block_diagonal_kernel_becomes_itself():
    weight = torch.zeros(8, 8, 3, 3, dtype=torch.float64)
    for g in range(4):
        weight[2 * g : 2 * g + 2, 2 * g : 2 * g + 2] = random(2, 2, 3, 3, seed=g)
    x = random(2, 8, 12, 12, seed=9)
    close(made("grouped", weight, layer(3))(x), conv(x, weight, layer(3)))


def test_a_kernel_of_few_channels_becomes_its_bottleneck():
    shape = layer(3, 32, 32)
    weight = torch.einsum("oa,abyx,bi->oiyx", random(32, 8), random(8, 8, 3, 3, seed=1), random(8, 32, seed=2))
    x = random(2, 32, 12, 12, seed=3)
    close(made("bottleneck", weight, shape)(x), conv(x, weight, shape))


def test_a_kernel_of_rank_one_becomes_its_strips_at_the_borders_too():
    weight = random(8, 8, 1, 1) * random(1, 1, 7, 1, seed=1) * random(1, 1, 1, 7, seed=2)
    x, shape = random(2, 8, 12, 12, seed=3), layer(7, stride=2)
    close(made("strips", weight, shape)(x), conv(x, weight, shape))


def test_two_3x3_give_the_5x5_that_they_compose():
    first, second = random(8, 8, 3, 3), random(8, 8, 3, 3, seed=1)
    x = random(2, 8, 12, 12, seed=2)
    whole = torch.zeros(8, 8, 5, 5, dtype=torch.float64)
    for y in range(3):
        for z in range(3):
            whole[:, :, y : y + 3, z : z + 3] += torch.einsum("om,miab->oiab", second[:, :, y, z], first)
    valid = layer(5, padding=0)
    expected = functional.conv2d(functional.conv2d(x, first), second)
    torch.testing.assert_close(conv(x, whole, valid), expected)
    found = made("stacked", whole, valid)(x)
    close(found, expected, 1e-3)


def test_three_3x3_come_near_a_separable_7x7():
    bell = torch.tensor([1.0, 6.0, 15.0, 20.0, 15.0, 6.0, 1.0], dtype=torch.float64)  # (1, 2, 1) thrice
    weight = random(8, 8, 1, 1) * torch.outer(bell, bell)
    x, valid = random(2, 8, 12, 12, seed=3), layer(7, padding=0)
    found, expected = made("stacked", weight, valid)(x), conv(x, weight, valid)
    close(found, expected, 2e-2)


def test_a_convolution_is_fitted_to_the_map_that_one_makes():
    weight, bias = random(4, 4, 3, 3), random(4, seed=1)
    x = random(8, 4, 6, 6, seed=2)
    y = functional.conv2d(x, weight, bias, padding=1)
    found, shift = start.fitted(x, y, (3, 3))
    torch.testing.assert_close(found, weight, rtol=0, atol=2e-3)
    torch.testing.assert_close(shift, bias, rtol=0, atol=2e-3)


def test_a_convolution_in_one_dimension_is_fitted_too():
    weight, bias = random(4, 4, 3), random(4, seed=1)
    x = random(8, 4, 20, seed=2)
    found, _ = start.fitted(x, functional.conv1d(x, weight, bias, padding=1), (3,))
    torch.testing.assert_close(found, weight, rtol=0, atol=2e-3)


def test_a_fit_of_some_positions_is_that_of_all_of_them():
    # every 16th of the positions would be the left edge of each image, where the map is another
    x = random(1024, 2, 16, 16, seed=2).float()
    y = functional.conv2d(x, random(2, 2, 3, 3).float(), random(2, seed=1).float(), padding=1).relu()
    y[..., 0] = 5
    rows = functional.unfold(x, (3, 3), padding=1).transpose(1, 2).flatten(0, 1)
    rows = torch.cat([rows, torch.ones_like(rows[:, :1])], 1).double()
    expected = torch.linalg.solve(rows.T @ rows, rows.T @ y.flatten(2).transpose(1, 2).flatten(0, 1).double())
    weight, bias = start.fitted(x, y, (3, 3))
    close(torch.cat([weight.flatten(1).T, bias[None]]), expected, 0.05)


def test_a_fit_of_few_positions_takes_all_of_them():
    x = random(4, 2, 8, 8, seed=2).float()
    y = functional.conv2d(x, random(2, 2, 3, 5).float(), padding=(1, 2)).relu()
    rows = functional.unfold(x, (3, 5), padding=(1, 2)).transpose(1, 2).flatten(0, 1)
    rows = torch.cat([rows, torch.ones_like(rows[:, :1])], 1).double()
    gram = rows.T @ rows
    gram += 1e-4 * gram.diagonal().mean() * torch.eye(len(gram))
    expected = torch.linalg.solve(gram, rows.T @ y.flatten(2).transpose(1, 2).flatten(0, 1).double())
    weight, bias = start.fitted(x, y, (3, 5))
    close(torch.cat([weight.flatten(1).T, bias[None]]), expected, 1e-9)


def test_dirac_gives_its_input():
    x = random(2, 4, 5, 5)
    assert torch.equal(functional.conv2d(x, start.dirac(4, (3, 3)), padding=1), x)


def test_units_of_the_largest_norms_are_kept():
    first = torch.tensor([[1.0], [3.0], [2.0], [0.1]])
    second = torch.tensor([[1.0, 1.0, 0.1, 20.0]])
    assert start.units(first, second, 2).tolist() == [1, 3]  # 1, 3, 0.2, 2


def test_pooling_is_the_mean_of_neighbours_and_of_all():
    v = torch.tensor([1.0, 4.0, 7.0, 0.0]).reshape(1, 4, 1)
    near, far = torch.tensor([2.5, 4.0, 11 / 3, 3.5]), torch.full((4,), 3.0)
    pool = Pooling(1, causal=False)
    torch.testing.assert_close(pool(v).flatten(), 0.5 * near + 0.5 * far)
    back = Pooling(1, causal=True)
    near, far = torch.tensor([1.0, 2.5, 4.0, 11 / 3]), torch.tensor([1.0, 2.5, 4.0, 3.0])
    torch.testing.assert_close(back(v).flatten(), 0.5 * near + 0.5 * far)


def test_linear_attention_is_the_sum_over_pairs():
    q, k, v = (random(2, 3, 5, 4, seed=i).float() for i in range(3))
    mix = LinearAttention(3, 4, transposed=False)
    phi_q, phi_k = (functional.elu(x * 4**-0.25) + 1 for x in (q, k))
    pairs = phi_q @ phi_k.transpose(-1, -2)  # [2, 3, 5, 5]
    expected = pairs / pairs.sum(-1, keepdim=True) @ v
    torch.testing.assert_close(mix(v, q, k), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(LinearAttention(3, 4, transposed=True)(v, q, k.transpose(-1, -2)), mix(v, q, k))
