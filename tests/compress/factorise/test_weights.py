"""Decompositions against their definitions, NumPy and tensorly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from trimtab.compress.factorise.aware import Moments
from trimtab.compress.factorise.build import chained
from trimtab.compress.factorise.ranks import by_energy, by_share, choices, rounded, spectra
from trimtab.compress.factorise.shapes import consistent, divided, limits, macs, misfit, modes, parts
from trimtab.compress.factorise.weights import balanced, decomposed, unfolded
from trimtab.hardware.layer import Layer

CONV = Layer(6, 8, (3, 3), (9, 7), (2, 1), (1, 1), (1, 1))
LINEAR = Layer(24, 30, spatial=(5,))
CASES = [
    ("svd", CONV),
    ("svd", LINEAR),
    ("svd", Layer(6, 8, (3,), (9,), (2,), (1,), (1,))),
    ("svd", Layer(3, 8, (3, 2, 3), (5, 6, 7), (1, 2, 1), (1, 0, 1), (1, 1, 1))),
    ("spatial", CONV),
    ("spatial", Layer(6, 8, (5, 3), (9, 9), (1, 2), (4, 2), (2, 2))),
    ("tucker", CONV),
    ("tucker", Layer(6, 8, (3,), (9,), (2,), (1,), (1,))),
    ("tt", CONV),
    ("tt", LINEAR),
    ("tt", Layer(3, 8, (3, 2, 3), (5, 6, 7), (1, 2, 1), (1, 0, 1), (1, 1, 1))),
]


def whole(shape: Layer, weight: Tensor, x: Tensor) -> Tensor:
    if not shape.kernel:
        return torch.nn.functional.linear(x, weight)
    convolve = (torch.conv1d, torch.conv2d, torch.conv3d)[len(shape.kernel) - 1]
    return convolve(x, weight, None, shape.stride, shape.padding, shape.dilation)  # type: ignore[arg-type]


def example(shape: Layer) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(1)
    weight = torch.randn(shape.outputs, shape.inputs, *shape.kernel, generator=source, dtype=torch.float64)
    given = (shape.inputs, *shape.spatial) if shape.kernel else (*shape.spatial, shape.inputs)
    return weight, torch.randn(2, *given, generator=source, dtype=torch.float64)


@pytest.mark.parametrize(("method", "shape"), CASES)
def test_at_full_rank_a_chain_computes_what_the_layer_does(method: str, shape: Layer) -> None:
    if method in ("tucker", "tt"):
        pytest.importorskip("tensorly")
    weight, x = example(shape)
    ranks = limits(method, shape)
    chain = parts(method, shape, ranks)
    factors = decomposed(method, weight, ranks)
    assert [tuple(f.shape[:1]) for f in factors] == [(part.outputs,) for part in chain]
    assert [f.numel() for f in factors] == [part.weights for part in chain]
    bias = torch.arange(float(shape.outputs), dtype=torch.float64)
    found = chained(shape, chain, factors, bias, weight)(x)
    expected = whole(shape, weight, x)
    expected = expected + (bias.reshape(-1, *[1] * len(shape.kernel)) if shape.kernel else bias)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_svd_and_spatial_have_the_least_error_that_their_ranks_allow() -> None:
    weight, _ = example(CONV)
    for method, matrix in (
        ("svd", weight.reshape(8, 54)),
        ("spatial", torch.einsum("oiyx->iyxo", weight).reshape(18, 24)),
    ):
        first, last = decomposed(method, weight, (4,))
        if method == "svd":
            made = torch.einsum("or,riyx->oiyx", last[:, :, 0, 0], first)
        else:
            made = torch.einsum("orx,riy->oiyx", last[:, :, 0], first[..., 0])
        left = np.linalg.svd(matrix.numpy(), compute_uv=False)[4:]
        assert float((made - weight).norm()) == pytest.approx(float(np.sqrt((left**2).sum())))


def test_tucker_is_the_product_of_its_factors_and_as_good_as_tensorly() -> None:
    library = pytest.importorskip("tensorly")
    from tensorly.decomposition import partial_tucker

    weight, _ = example(CONV)
    first, core, last = decomposed("tucker", weight, (4, 5))
    made = torch.einsum("oq,qpyx,pi->oiyx", last[..., 0, 0], core, first[..., 0, 0])
    (theirs, factors), _ = partial_tucker(weight.numpy(), rank=[5, 4], modes=[0, 1], n_iter_max=100, tol=1e-9)
    reference = library.tenalg.multi_mode_dot(theirs, factors, modes=[0, 1])
    error = float(np.linalg.norm(reference - weight.numpy()))
    assert float((made - weight).norm()) == pytest.approx(error, rel=1e-3)


def test_cp_finds_a_tensor_of_low_rank() -> None:
    pytest.importorskip("tensorly")
    source = torch.Generator().manual_seed(2)
    a, b, c, d = (torch.randn(n, 2, generator=source, dtype=torch.float64) for n in (8, 6, 3, 3))
    weight = torch.einsum("or,ir,yr,xr->oiyx", a, b, c, d)
    first, high, wide, last = decomposed("cp", weight, (2,))
    assert [tuple(f.shape) for f in (first, high, wide, last)] == [
        (2, 6, 1, 1),
        (2, 1, 3, 1),
        (2, 1, 1, 3),
        (8, 2, 1, 1),
    ]
    made = torch.einsum("or,ry,rx,ri->oiyx", last[..., 0, 0], high[:, 0, :, 0], wide[:, 0, 0], first[..., 0, 0])
    torch.testing.assert_close(made, weight, rtol=0, atol=1e-3 * float(weight.abs().max()))
    x = torch.randn(2, 6, 9, 7, dtype=torch.float64)
    found = chained(CONV, parts("cp", CONV, (2,)), (first, high, wide, last), None, weight)(x)
    torch.testing.assert_close(found, whole(CONV, made, x))


def test_a_train_of_low_rank_is_that_of_tensorly() -> None:
    library = pytest.importorskip("tensorly")
    from tensorly.decomposition import tensor_train

    weight, _ = example(CONV)
    one, high, wide, last = decomposed("tt", weight, (3, 5, 4))
    made = torch.einsum("ai,bay,cbx,oc->oiyx", one[..., 0, 0], high[..., 0], wide[:, :, 0], last[..., 0, 0])
    cores = tensor_train(weight.permute(1, 2, 3, 0).contiguous().numpy(), rank=[1, 3, 5, 4, 1])
    reference = torch.from_numpy(library.tt_to_tensor(cores)).permute(3, 0, 1, 2)
    torch.testing.assert_close(made, reference)


def test_factors_of_one_norm_have_the_same_product() -> None:
    a, b = torch.ones(2, 2), 8 * torch.ones(2, 2)
    x, y = balanced([a, b])
    assert float(x.norm()) == pytest.approx(float(y.norm()))
    torch.testing.assert_close(x @ y, a @ b)


def test_multiply_adds_by_hand() -> None:
    plain = Layer(16, 32, (3, 3), (8, 8), (1, 1), (1, 1), (1, 1))
    assert macs("svd", plain, (10,)) == 64 * (16 * 9 * 10 + 10 * 32)
    assert macs("spatial", plain, (10,)) == 64 * (16 * 3 * 10 + 10 * 3 * 32)
    assert macs("tucker", plain, (5, 7)) == 64 * (16 * 5 + 5 * 9 * 7 + 7 * 32)
    assert macs("cp", plain, (10,)) == 64 * (16 * 10 + 3 * 10 + 3 * 10 + 10 * 32)
    assert macs("tt", plain, (4, 6, 8)) == 64 * (16 * 4 + 4 * 3 * 6 + 6 * 3 * 8 + 8 * 32)
    assert macs("svd", LINEAR, (4,)) == 5 * (24 * 4 + 4 * 30)
    # 24 = 2 3 4 inputs and 30 = 2 3 5 outputs at ranks 3, 2: n_3 r_3 to r_2 m_3 for each of n_1 n_2, and so on
    assert macs("tt", LINEAR, (3, 2)) == 5 * (2 * 3 * 4 * (2 * 5) + 2 * 5 * (3 * 2) * (3 * 3) + 5 * 3 * (2 * 3) * 2)


def test_sides_and_limits_by_hand() -> None:
    assert divided(24) == (2, 3, 4)
    assert divided(7) == (1, 1, 7)
    assert divided(512) == (8, 8, 8)
    assert divided(10**9) == (1000, 1000, 1000)  # looks no further than the root
    assert modes(LINEAR) == (4, 9, 20)
    assert limits("svd", CONV) == (8,)
    assert limits("spatial", CONV) == (18,)
    assert limits("tucker", CONV) == (6, 8)
    assert limits("tt", CONV) == (6, 18, 8)
    assert limits("cp", CONV) == (6 * 9,)
    assert consistent("tucker", CONV, (6, 1)) == (6, 1)
    assert consistent("tucker", Layer(40, 8, (3, 3), (9, 9), (1, 1), (0, 0), (1, 1)), (30, 1)) == (9, 1)
    assert consistent("tt", CONV, (1, 18, 8)) == (1, 3, 8)
    assert consistent("tt", CONV, (6, 18, 1)) == (6, 3, 1)


def test_which_layers_suit_a_method() -> None:
    point = Layer(6, 8, (1, 1), (9, 9), (1, 1), (0, 0), (1, 1))
    line = Layer(6, 8, (3,), (9,), (1,), (1,), (1,))
    for method, fine, wrong in (
        ("svd", (CONV, LINEAR, point, line), ()),
        ("spatial", (CONV,), (LINEAR, point, line)),
        ("tucker", (CONV, line), (LINEAR, point)),
        ("cp", (CONV, line), (LINEAR, point)),
        ("tt", (CONV, LINEAR, line), (point,)),
    ):
        assert all(misfit(method, shape) is None for shape in fine)
        assert all(misfit(method, shape) for shape in wrong)


def test_energy_by_hand() -> None:
    values = torch.tensor([2.0, 1.0, 1.0, 0.0])  # squares 4, 1, 1 of 6
    assert by_energy([values], 4 / 6) == (1,)
    assert by_energy([values], 0.67) == (2,)
    assert by_energy([values], 1.0) == (3,)
    assert by_energy([values, values], 4 / 6) == (2, 2)  # each may lose a sixth


@pytest.mark.parametrize("method", ["svd", "spatial", "tucker", "tt"])
def test_energy_is_kept(method: str) -> None:
    if method in ("tucker", "tt"):
        pytest.importorskip("tensorly")
    weight, _ = example(CONV)
    ranks = consistent(method, CONV, by_energy(spectra(method, weight), 0.8))
    factors = decomposed(method, weight, ranks)
    identity = torch.eye(54, dtype=torch.float64).reshape(54, 6, 3, 3)  # each weight of a kernel in turn
    bare = Layer(6, 8, (3, 3), (3, 3), (1, 1), (0, 0), (1, 1))
    made = chained(bare, parts(method, bare, ranks), factors, None, weight)(identity).reshape(54, 8).T.detach()
    kept = 1 - float((made.reshape(weight.shape) - weight).norm() / weight.norm()) ** 2
    assert 0.8 <= kept < 0.999


def test_unfoldings_have_the_sides_that_shapes_say() -> None:
    from trimtab.compress.factorise.shapes import matrices

    for method, shape in CASES:
        weight, _ = example(shape)
        assert tuple(tuple(m.shape) for m in unfolded(method, weight)) == matrices(method, shape)


@pytest.mark.parametrize(("method", "shape"), [*CASES, ("cp", CONV)])
def test_a_share_of_the_multiply_adds_is_kept_to(method: str, shape: Layer) -> None:
    ranks = by_share(method, shape, 0.5, 1)
    assert ranks is not None
    assert macs(method, shape, ranks) <= 0.5 * shape.macs
    assert macs(method, shape, tuple(min(r + 2, n) for r, n in zip(ranks, limits(method, shape), strict=True))) > (
        0.4 * shape.macs
    )


def test_ranks_are_multiples_and_fewer_and_fewer() -> None:
    wide = Layer(64, 64, (3, 3), (8, 8), (1, 1), (1, 1), (1, 1))
    found = choices("svd", wide, 8)
    assert found == ((40,), (24,), (16,), (8,)) or all(r[0] % 8 == 0 for r in found)
    assert sorted(found, reverse=True) == list(found)
    assert all(macs("svd", wide, r) < wide.macs for r in found)
    assert rounded((13, 60), (40, 62), 8) == (16, 62)
    assert by_share("svd", Layer(2, 2, spatial=(1,)), 0.5, 8) is None


def test_a_covariance_beside_a_large_mean() -> None:
    rows = 1000 + 0.1 * torch.randn(400, 5, generator=torch.Generator().manual_seed(0))
    seen = Moments()
    for part in rows.split(100):
        seen.add(part)
    expected = torch.cov(rows.double().T, correction=0)
    torch.testing.assert_close(seen.covariance, expected, rtol=0, atol=1e-6)
