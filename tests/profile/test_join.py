import pytest

from tests.profile.small_onnx import quantised, residual
from trimtab.profile.join import covered, join, peak_memory
from trimtab.profile.network import read
from trimtab.run.kernels import Kernel


@pytest.fixture
def network(tmp_path):
    def make(made, batch=1):
        path = tmp_path / "net.onnx"
        path.write_bytes(made.SerializeToString())
        return read(path, batch)

    return make


def kernel(kind, *covers, name="k", seconds=1e-6):
    return Kernel(name, kind, seconds, covers)


def members(groups):
    return [group.members for group in groups]


def test_fused_operators_follow_what_they_read(network):
    """ONNX Runtime with its blocked layout: the first name is of the activation, the second of the convolution."""
    kernels = [
        kernel("Conv", "@1@v0_nchwc", "reorder_token_0"),
        kernel("Conv", "@2@v0_nchwc", "reorder_token_2"),
        kernel("ReorderOutput", "ReorderOutput", "@4@v0"),
        kernel("ReduceMean", "@5@ReduceMean", "@5@v0"),
        kernel("MatMul", "@6@MatMul", "@6@v0"),
    ]
    assert members(join(network(residual()), kernels)) == [(0, 1), (2, 3, 4), (), (5,), (6,)]


def test_what_openvino_names_is_taken_as_it_says(network):
    kernels = [
        kernel("jit_uni_f32"),
        kernel("brgconv_f32", "@0@Conv", "@1@Relu"),
        kernel("brgconv_f32", "@2@Conv"),
        kernel("jit_f32", "@3@Add", "@4@Relu"),
        kernel("jit_f32", "@5@ReduceMean"),
        kernel("gemm_f32", "@6@v0"),
    ]
    assert members(join(network(residual()), kernels)) == [(), (0, 1), (2,), (3, 4), (5,), (6,)]


def test_bytes_across_borders_by_hand(network):
    kernels = [
        kernel("Conv", "@0@Conv", "@1@v0"),
        kernel("Conv", "@2@Conv", "@4@v0"),
        kernel("ReduceMean", "@5@ReduceMean"),
        kernel("MatMul", "@6@MatMul"),
    ]
    groups = join(network(residual(), batch=2), kernels)
    plane = 2 * 16 * 64 * 4
    first = 2 * 3 * 64 * 4 + (16 * 27 + 16) * 4 + plane
    second = plane + 16 * 144 * 4 + plane  # the residual is read once, though two operators read it
    mean = plane + 2 * 8 + 2 * 16 * 4
    last = 2 * 16 * 4 + 160 * 4 + 2 * 10 * 4
    assert [group.moved for group in groups] == [first, second, mean, last]


def test_quantised_values_cross_as_integers(network):
    kernels = [
        kernel("QuantizeLinear", "@0@QuantizeLinear", "@0@v0"),
        kernel("QLinearConv", "@3@Conv", "@4@v0"),
        kernel("DequantizeLinear", "@5@DequantizeLinear", "@5@v0"),
    ]
    groups = join(network(quantised()), kernels)
    assert members(groups) == [(0,), (1, 2, 3, 4), (5,)]
    scales = 4 + 1  # a float scale and a byte
    assert groups[0].moved == 144 * 4 + scales + 144
    assert groups[1].moved == 144 + scales + 288 + scales + 288
    assert groups[2].moved == 288 + scales + 288 * 4


def test_a_convolution_that_stayed_in_floats_is_charged_for_floats(network):
    kernels = [
        kernel("QuantizeLinear", "@0@QuantizeLinear", "@0@v0"),
        kernel("DequantizeLinear", "@1@DequantizeLinear", "@1@v0"),
        kernel("Conv", "@3@Conv", "@3@v0"),
        kernel("QuantizeLinear", "@4@QuantizeLinear", "@4@v0"),
        kernel("DequantizeLinear", "@5@DequantizeLinear", "@5@v0"),
    ]
    groups = join(network(quantised()), kernels)
    assert groups[1].moved == 144 + 5 + 144 * 4
    assert dict(groups[2].reads)["d"] == 144 * 4
    assert dict(groups[2].writes) == {"c": 288 * 4}


def test_a_pattern_is_taken_by_the_kernel_that_replaced_it(network):
    """A kernel of another kind, named after the last operator: mean over the sum of activations, say."""
    kernels = [
        kernel("Conv", "@0@Conv", "@1@v0"),
        kernel("Conv", "@2@Conv", "@2@v0"),
        kernel("SomethingFused", "Something", "@5@v0"),
        kernel("MatMul", "@6@MatMul"),
    ]
    assert members(join(network(residual()), kernels)) == [(0, 1), (2,), (3, 4, 5), (6,)]


def test_several_kernels_of_one_operator_are_one_group(network):
    kernels = [
        kernel("Conv", "@0@Conv", "@1@v0"),
        kernel("Conv", "@2@Conv", "@4@v0"),
        kernel("A", "@5@ReduceMean/a", seconds=1e-6),
        kernel("B", "@5@ReduceMean/b", seconds=2e-6),
        kernel("MatMul", "@6@MatMul"),
    ]
    groups = join(network(residual()), kernels)
    assert members(groups) == [(0, 1), (2, 3, 4), (5,), (6,)]
    assert sum(k.seconds for k in groups[2].kernels) == pytest.approx(3e-6)


def test_a_transpose_of_the_runtime_is_no_operator_of_the_file(network):
    some = network(residual())
    assert covered(some, kernel("Transpose", "Transpose_token_6", "@4@v0")) == ()
    assert covered(some, kernel("Conv", "@2@Conv", "@4@v0")) == (2, 4)
    assert covered(some, kernel("Conv", "@99@Conv")) == ()


def test_peak_memory_by_hand(network):
    some = network(residual())
    kernels = [
        kernel("Conv", "@0@Conv", "@1@v0"),
        kernel("Conv", "@2@Conv", "@4@v0"),
        kernel("ReduceMean", "@5@ReduceMean"),
        kernel("MatMul", "@6@MatMul"),
    ]
    plane, x, mean = 16 * 64 * 4, 3 * 64 * 4, 16 * 4
    assert peak_memory(some, join(some, kernels)) == max(x + plane, plane + plane, plane + mean)
    unfused = [
        kernel(k, f"@{i}@{k}") for i, k in enumerate(("Conv", "Relu", "Conv", "Add", "Relu", "ReduceMean", "MatMul"))
    ]
    assert peak_memory(some, join(some, unfused)) == 3 * plane  # at the addition: both sides and the sum
