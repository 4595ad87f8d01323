"""The operators that a graph may hold, by name. A file can name these and nothing else."""

from __future__ import annotations

import importlib
import math
import operator
from collections.abc import Callable
from typing import Any

import torch

from trimtab.core.errors import FileError

_ATEN_NAMES = """
abs acos acosh adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d
adaptive_max_pool3d add addbmm addcdiv addcmul addmm addmv addr affine_grid_generator alias all alpha_dropout amax
amin aminmax angle any arange arctan arctan2 argmax argmin argsort as_strided asin asinh atan atan2 atanh atleast_1d
atleast_2d atleast_3d avg_pool1d avg_pool2d avg_pool3d baddbmm batch_norm bernoulli bilinear binary_cross_entropy
binary_cross_entropy_with_logits bitwise_and bitwise_left_shift bitwise_not bitwise_or bitwise_right_shift
bitwise_xor bmm broadcast_tensors broadcast_to bucketize cat cdist ceil celu channel_shuffle chunk clamp clamp_max
clamp_min clone col2im column_stack complex concat concatenate conj constant_pad_nd contiguous conv1d conv2d conv3d
conv_depthwise3d conv_tbc conv_transpose1d conv_transpose2d conv_transpose3d convolution copy copysign cos cosh
cosine_similarity cross cross_entropy_loss cummax cummin cumprod cumsum deg2rad detach diag diag_embed diagonal diff
div dot dropout dstack einsum elu embedding embedding_bag empty empty_like empty_permuted eq erf erfc erfinv exp
exp2 expand expand_as expm1 exponential eye _fake_quantize_learnable_per_channel_affine
_fake_quantize_learnable_per_tensor_affine
feature_alpha_dropout feature_dropout fft_fft fft_fft2 fft_ifft fft_ifft2 fft_irfft fft_irfft2 fft_irfftn fft_rfft
fft_rfft2 fft_rfftn fft_fftn fft_ifftn fft_fftshift fft_ifftshift fill flatten flip fliplr flipud float_power floor
floor_divide fmax fmin fmod frac frobenius_norm full full_like gather ge gelu glu grid_sampler grid_sampler_2d
grid_sampler_3d group_norm gru gru_cell gt hamming_window hann_window hardshrink hardsigmoid hardswish hardtanh
heaviside hstack huber_loss im2col imag index index_add index_copy index_fill index_put index_select inner
instance_norm isclose isfinite isin isinf isnan isneginf isposinf kl_div kron l1_loss layer_norm le leaky_relu lerp
lgamma lift lift_fresh lift_fresh_copy linalg_cross linalg_det linalg_inv linalg_matmul linalg_matrix_norm
linalg_norm linalg_pinv linalg_solve linalg_svd linalg_qr linalg_eigh linalg_cholesky linalg_vector_norm
linalg_vecdot linear linspace log log10 log1p log2 log_sigmoid log_softmax logaddexp logaddexp2 logcumsumexp
logical_and logical_not logical_or logical_xor logit logspace logsumexp lstm lstm_cell lt mH mT masked_fill
masked_scatter masked_select matmul matrix_exp matrix_power max max_pool1d max_pool1d_with_indices max_pool2d
max_pool2d_with_indices max_pool3d max_pool3d_with_indices max_unpool2d max_unpool3d maximum mean median meshgrid
min minimum mish mm moveaxis movedim mse_loss msort mul multiply mv nan_to_num nanmean nansum narrow
native_batch_norm native_channel_shuffle native_dropout native_group_norm native_layer_norm ne neg negative
new_empty new_full new_ones new_zeros nll_loss nll_loss2d nll_loss_nd nonzero norm norm_except_dim normal not_equal
numpy_T one_hot ones ones_like outer pad pairwise_distance pdist permute pixel_shuffle pixel_unshuffle polar
positive pow prelu prod put quantile rad2deg rand rand_like randint randint_like randn randn_like randperm ravel
real reciprocal reflection_pad1d reflection_pad2d reflection_pad3d relu relu6 remainder renorm repeat
repeat_interleave replication_pad1d replication_pad2d replication_pad3d reshape reshape_as resolve_conj resolve_neg
rms_norm rnn_relu rnn_relu_cell rnn_tanh rnn_tanh_cell roll rot90 round row_stack rrelu rrelu_with_noise rsqrt rsub
scalar_tensor scaled_dot_product_attention scatter scatter_add scatter_reduce searchsorted select select_scatter
selu sgn sigmoid sign signbit silu sin sinc sinh slice slice_scatter smooth_l1_loss softmax softplus softshrink sort
special_expit special_entr special_erf special_gammaln special_i0 special_log1p special_log_softmax special_logit
special_softmax special_xlog1py split split_with_sizes sqrt square squeeze stack std std_mean sub subtract sum
sum_to_size swapaxes swapdims t take take_along_dim tan tanh tensor_split tensordot threshold tile to topk trace
transpose tril tril_indices triu triu_indices true_divide trunc type_as unbind unflatten unfold uniform unsafe_chunk
unsafe_split unsafe_split_with_sizes unsqueeze upsample_bicubic2d upsample_bilinear2d upsample_linear1d
upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_trilinear3d vander var var_mean vdot view view_as
view_as_complex view_as_real vstack where xlogy zero zeros zeros_like sym_size sym_numel sym_stride
sym_storage_offset __and__ __or__ __xor__ _adaptive_avg_pool2d _adaptive_avg_pool3d _cdist_forward _conj
_convolution _embedding_bag _euclidean_dist _log_softmax _native_batch_norm_legit
_native_batch_norm_legit_no_training _prelu_kernel _safe_softmax _scaled_dot_product_flash_attention_for_cpu
_softmax _to_copy _trilinear _unsafe_index _unsafe_view _upsample_bicubic2d_aa _upsample_bilinear2d_aa
_upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d _weight_norm
"""

_QUANTISED_NAMES = """
quantize_per_tensor dequantize_per_tensor quantize_per_channel dequantize_per_channel quantize_per_token
dequantize_per_token quantize_per_channel_group dequantize_per_channel_group choose_qparams choose_qparams_per_token
choose_qparams_per_token_asymmetric choose_qparams_symmetric convert_element_type fake_quant_per_channel
"""

_ATEN, _QUANTISED = frozenset(_ATEN_NAMES.split()), frozenset(_QUANTISED_NAMES.split())

_PYTHON: dict[str, Callable[..., Any]] = {
    **{
        f"operator.{f.__name__}": f
        for f in (
            *(operator.getitem, operator.add, operator.sub, operator.mul, operator.floordiv, operator.truediv),
            *(operator.mod, operator.neg, operator.pow, operator.eq, operator.ne, operator.lt, operator.le),
            *(operator.gt, operator.ge, operator.and_, operator.or_, operator.not_),
        )
    },
    **{f"math.{f.__name__}": f for f in (math.floor, math.ceil, math.trunc, math.sqrt)},
    **{f"torch.{f.__name__}": f for f in (torch.sym_max, torch.sym_min, torch.sym_float, torch.sym_int, torch.sym_not)},
    "round": round,
}
_PYTHON_NAMES = {function: name for name, function in _PYTHON.items()}


def operator_name(target: Any) -> str:
    """The name under which a file holds an operator; FileError if graphs do not hold it."""
    name = str(target) if isinstance(target, torch._ops.OpOverload) else _PYTHON_NAMES.get(target, "")
    if not name or not _allowed(name):
        raise FileError(
            "save: a graph file does not hold this operator",
            got=name or getattr(target, "__name__", str(target)),
            do="Write that step of the network with PyTorch's own tensor operators.",
        )
    return name


def operator_named(name: str) -> Callable[..., Any]:
    """The operator of a name that a file holds; FileError unless it is on the list."""
    if name in _PYTHON:
        return _PYTHON[name]
    if not _allowed(name):
        raise FileError("load: no such operator", got=repr(name[:80]), expected="an operator that graphs may hold")
    namespace, base, overload = name.split(".")
    if namespace == "quantized_decomposed":
        importlib.import_module("torchao.quantization.pt2e.quantize_pt2e")  # registers these operators
    packet = getattr(getattr(torch.ops, namespace), base, None)
    if packet is None or overload not in packet.overloads():
        raise FileError("load: this version of torch has no such operator", got=repr(name[:80]))
    return getattr(packet, overload)  # type: ignore[no-any-return]


def _allowed(name: str) -> bool:
    if name in _PYTHON:
        return True
    parts = name.split(".")
    if len(parts) != 3 or "out" in parts[2].split("_"):
        return False
    namespace, base, _ = parts
    if namespace == "aten":
        return base in _ATEN or (base.endswith("_") and base[:-1] in _ATEN)  # `add_` writes in place
    return namespace == "quantized_decomposed" and base in _QUANTISED
