"""GPTQ against a column-by-column form in float64, and against torchao's."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trimtab.compress.quantise import gptq
from trimtab.compress.quantise.gptq import hessian_of, patches, solved
from trimtab.graph.capture import capture


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def correlated(n: int, rank: int) -> Tensor:
    """2 X X^T of 400 inputs of n values that depend on `rank` ones: [n, n]."""
    x = torch.randn(n, rank, dtype=torch.float64) @ torch.randn(rank, 400, dtype=torch.float64)
    x += 0.3 * torch.randn(n, 400, dtype=torch.float64)
    return 2 * x @ x.T


def by_columns(weight: Tensor, hessian: Tensor, step: Tensor, top: int) -> Tensor:
    """Optimal brain quantisation in a fixed order: the inverse Hessian shrinks by each column that is done."""
    n = weight.shape[1]
    inverse = torch.linalg.inv(hessian + 0.01 * hessian.diagonal().mean() * torch.eye(n, dtype=torch.float64))
    rest, levels = weight.clone(), torch.empty_like(weight)
    for j in range(n):
        levels[:, j] = torch.round(rest[:, j] / step[:, 0]).clamp(-top, top)
        error = (rest[:, j] - levels[:, j] * step[:, 0]) / inverse[j, j]
        rest -= error[:, None] * inverse[j]
        inverse -= inverse[:, j, None] * inverse[j] / inverse[j, j]
    return levels


def losses(levels: Tensor, weight: Tensor, hessian: Tensor, step: Tensor) -> Tensor:
    change = levels * step - weight
    return ((change @ hessian) * change).sum(1)


@pytest.mark.parametrize(("n", "block"), [(12, 4), (12, 5), (150, 128)])
def test_columns_in_blocks_give_what_single_columns_give(n: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gptq, "BLOCK", block)
    weight, hessian = torch.randn(20, n, dtype=torch.float64), correlated(n, n // 4)
    step = weight.abs().amax(1, keepdim=True) / 7
    wanted, near = by_columns(weight, hessian, step, 7), torch.round(weight / step)
    found = solved(weight[None], hessian[None], step.expand_as(weight)[None], -7, 7)[0]
    better = losses(wanted, weight, hessian, step) <= losses(near, weight, hessian, step)
    assert better.sum() >= 15
    assert torch.equal(found, torch.where(better[:, None], wanted, near))
    assert losses(found, weight, hessian, step).sum() < 0.5 * losses(near, weight, hessian, step).sum()


def test_no_row_is_worse_than_rounded_to_nearest() -> None:
    weight, hessian = torch.randn(200, 5, dtype=torch.float64), correlated(5, 5)
    step = weight.abs().amax(1, keepdim=True)
    found = solved(weight[None], hessian[None], step.expand_as(weight)[None], -1, 1)[0]
    near = torch.round(weight / step)
    assert bool((losses(found, weight, hessian, step) <= losses(near, weight, hessian, step)).all())


def test_uncorrelated_inputs_and_inputs_that_are_never_seen_leave_the_nearest() -> None:
    weight = torch.randn(2, 4, 6, dtype=torch.float64)
    hessian = torch.stack([torch.diag(torch.tensor([1.0, 2, 0, 3, 0, 1])), torch.zeros(6, 6)]).double()
    step = torch.full_like(weight, 0.3)
    found = solved(weight, hessian, step, -7, 7)
    assert torch.equal(found, torch.round(weight / 0.3).clamp(-7, 7))


def test_torchao_gives_the_same_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    api: Any = pytest.importorskip("torchao.prototype.gptq.api")
    from torchao.quantization import Int8WeightOnlyConfig
    from torchao.quantization.granularity import PerRow

    # theirs refuses any device but a GPU, though its algorithm runs on all: without that one line
    source = inspect.getsource(api.gptq_quantize)
    guard = 'assert device.type == "cuda", "GPTQ only supports CUDA currently"'
    assert guard in source
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    scope = dict(vars(api))
    exec(source.replace(guard, "pass"), scope)
    weight, hessian = torch.randn(16, 150), correlated(150, 30).float()
    config = api.GPTQConfig(
        step="convert", base_config=Int8WeightOnlyConfig(granularity=PerRow()), gptq_quantize_block_size=128
    )
    theirs = scope["gptq_quantize"](hessian.clone(), weight.clone(), config)
    step = theirs.scale.reshape(-1, 1).float()
    ours = solved(weight[None], hessian[None], step.expand_as(weight)[None], -128, 127)[0]
    # theirs is in float32: a value that lies between two levels may fall to either
    same = (ours == theirs.qdata.double()).double().mean()
    assert same > 0.99
    wanted = losses(theirs.qdata.double(), weight.double(), hessian.double(), step.double()).sum()
    assert losses(ours, weight.double(), hessian.double(), step.double()).sum() == pytest.approx(
        float(wanted), rel=0.02
    )


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False), (3, 4, 9, 8)),
        (nn.Conv2d(4, 6, (3, 2), padding=(2, 0), dilation=2, groups=2, bias=False), (3, 4, 9, 8)),
        (nn.Conv2d(4, 4, 3, padding="same", groups=4, bias=False), (3, 4, 9, 8)),
        (nn.Conv2d(4, 4, 2, padding="same", dilation=3, bias=False), (3, 4, 9, 8)),
        (nn.Conv2d(4, 4, 2, padding="valid", bias=False), (3, 4, 9, 8)),
        (nn.Conv1d(4, 6, 3, stride=2, padding=2, bias=False), (3, 4, 9)),
        (nn.Conv3d(2, 4, (1, 2, 3), padding=(0, 1, 2), bias=False), (2, 2, 4, 5, 6)),
    ],
)
@torch.no_grad()
def test_a_convolution_is_the_product_with_its_patches(layer: nn.Module, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    graph = capture(layer.eval(), (x,))
    (node,) = [n for n in graph.nodes() if "conv" in str(n.target)]
    weight: Any = layer.weight
    columns = patches(node, x, weight)
    found = weight.reshape(len(columns), -1, columns.shape[1]) @ columns  # [G, C_out / G, N L]
    wanted = layer(x)
    assert torch.allclose(found.reshape(len(weight), -1), wanted.transpose(0, 1).flatten(1), atol=1e-5)
    assert torch.allclose(hessian_of(node, [x[:1], x[1:]], weight).float(), 2 * columns @ columns.mT, atol=1e-3)
