import pytest

from trimtab.profile.macs import UnknownShape, macs


@pytest.mark.parametrize(
    ("kind", "inputs", "output", "settings", "expected"),
    [
        # every output element is a sum over 3 channels and 3 x 3 taps
        ("Conv", [(1, 3, 8, 8), (16, 3, 3, 3), (16,)], (1, 16, 8, 8), {}, 16 * 64 * 27),
        # depthwise: one channel each
        ("Conv", [(2, 8, 4, 4), (8, 1, 3, 3)], (2, 8, 4, 4), {}, 2 * 8 * 16 * 9),
        ("Conv", [(1, 4, 10), (6, 4, 5)], (1, 6, 6), {}, 6 * 6 * 20),
        ("ConvTranspose", [(1, 4, 5, 5), (4, 6, 2, 2)], (1, 6, 10, 10), {}, 4 * 25 * 6 * 4),
        ("QLinearConv", [(1, 3, 8, 8), (), (), (16, 3, 3, 3), (), (), (), ()], (1, 16, 8, 8), {}, 16 * 64 * 27),
        ("Gemm", [(2, 5), (5, 7)], (2, 7), {}, 2 * 5 * 7),
        ("Gemm", [(5, 2), (5, 7)], (2, 7), {"transA": 1}, 2 * 5 * 7),
        ("MatMul", [(2, 3, 4, 5), (2, 3, 5, 6)], (2, 3, 4, 6), {}, 2 * 3 * 4 * 5 * 6),
        ("Attention", [(1, 2, 4, 8), (1, 2, 6, 8), (1, 2, 6, 3)], (1, 2, 4, 3), {}, 2 * 4 * 6 * (8 + 3)),
        # 7 steps of 2 samples, four gates of 5 units on 3 features
        ("LSTM", [(7, 2, 3), (1, 20, 3), (1, 20, 5)], (7, 1, 2, 5), {}, 7 * 2 * 20 * (3 + 5)),
        ("Relu", [(1, 16, 8, 8)], (1, 16, 8, 8), {}, 0),
        ("Relu", [None], None, {}, 0),
    ],
)
def test_counts_by_hand(kind, inputs, output, settings, expected):
    assert macs(kind, inputs, output, settings) == expected


@pytest.mark.parametrize(
    ("inputs", "output"),
    [([(1, 3, 8, 8), None], (1, 4, 8, 8)), ([(1, 3, 8, 8), (4, 3, 1, 1)], None), ([], (1, 2))],
)
def test_a_shape_that_is_not_known_is_said(inputs, output):
    with pytest.raises(UnknownShape):
        macs("Conv", inputs, output, {})


def test_too_few_dimensions_are_no_crash():
    with pytest.raises(UnknownShape):
        macs("MatMul", [(), (3,)], (3,), {})
