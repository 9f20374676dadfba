# SPDX-License-Identifier: Apache-2.0
"""Strategy ``native`` of ``mixed_conv``: kernels of the native library that mix weights in cache, just before use."""

from __future__ import annotations

import ctypes
from functools import lru_cache

import torch
from torch import Tensor

from convary.errors import ConvaryError
from convary.ops import native
from convary.ops.coefficients import Coefficients
from convary.ops.geometry import Geometry
from convary.ops.mix import mix_bias
from convary.ops.strategy import Problem, inside_functorch


def obstacle(x: Tensor, bank: Tensor, coeffs: Coefficients) -> str | None:
    """Why the native kernels can't take these tensors, or None. Asked on every call, so the order is by price."""
    if (absent := native.available()) is not None:
        return absent
    for tensor in (x, bank, coeffs.kernel, coeffs.filter, coeffs.channel, coeffs.tap):
        if tensor is not None and (reason := _refusal(tensor)) is not None:
            return reason
    if torch.is_autocast_enabled("cpu"):
        return "autocast wants torch's own operations, whose dtype it chooses"
    if inside_functorch():
        return "torch.func transforms see through torch's own operations only"
    if torch.autograd.forward_ad._current_level >= 0:
        return "forward-mode differentiation sees through torch's own operations only"
    return None


def _refusal(tensor: Tensor) -> str | None:
    if not tensor.is_cpu:
        return f"a tensor is on {tensor.device}, the native kernels run on the CPU"
    if tensor.dtype is not torch.float32:
        return f"a tensor is {tensor.dtype}, the native kernels take torch.float32"
    if tensor.layout is not torch.strided:
        return f"a tensor has the layout {tensor.layout}, the native kernels take strided ones"
    if type(tensor) not in (Tensor, torch.nn.Parameter):
        return f"a tensor is a {type(tensor).__name__}, whose memory may not be its own"
    return None


def why_not(problem: Problem) -> str | None:
    """Why the strategy can't run a problem, or None."""
    if problem.traced:
        return "a recorded graph keeps to torch's own operations"
    if len(problem.kernel_size) == 3:
        return "it takes one or two spatial axes"
    if problem.obstacle is not None:
        return problem.obstacle
    if min(problem.C, problem.O, problem.K, problem.P) == 0:
        return "a tensor is empty"
    if max(problem.B, problem.C, problem.O, problem.K, *problem.size, *problem.reach) >= 2**31:
        return "a size is beyond 32 bits"
    return "it has no gradient" if problem.training else None


SIZES = (
    "B", "C", "H", "W", "O", "K", "G", "kernel_h", "kernel_w", "stride_h", "stride_w", "pad_h", "pad_w", "dilation_h",
    "dilation_w", "filter_rows", "channel_rows", "tap_rows", "bias_rows", "threads",
)  # fmt: skip


class _Sizes(ctypes.Structure):
    """``convary_conv_sizes`` of csrc/convary.h."""

    _fields_ = tuple((name, ctypes.c_int64) for name in SIZES)


@lru_cache(maxsize=1024)
def _sizes(
    x: torch.Size, bank: torch.Size, geometry: Geometry, rows: tuple[int, int, int, int], threads: int
) -> tuple[_Sizes, int, tuple[int, ...]]:
    """The C structure, its address and the shape of y, for shapes of one call."""
    line = (1,) * (4 - len(x))  # one spatial axis is a map one row high
    B, C, *size = x
    K, O, _, *kernel_size = bank
    axes = [
        (*line, *size), (*line, *kernel_size), (*line, *geometry.stride), (*(0,) * len(line), *geometry.padding),
        (*line, *geometry.dilation),
    ]  # fmt: skip
    sizes = _Sizes(B, C, *axes[0], O, K, geometry.groups, *(n for axis in axes[1:] for n in axis), *rows, threads)
    return sizes, ctypes.addressof(sizes), (B, O, *geometry.out_size(size, kernel_size))


def _rows(factor: Tensor | None) -> int:
    return 1 if factor is None else factor.shape[1]


def _dense(tensor: Tensor | None) -> Tensor | None:
    """The numbers as the kernels read them: row-major, no lazy sign."""
    if tensor is None or (tensor.is_contiguous() and not tensor.is_neg()):
        return tensor
    return tensor.resolve_neg().contiguous()


def forward(x: Tensor, bank: Tensor, coeffs: Coefficients, row: Tensor | None, geometry: Geometry) -> Tensor:
    """The convolution by the native kernel, without a gradient.

    Args:
        x: (B, C, *S), one or two spatial axes.
        bank: (K, O, C/G, *k).
        coeffs: factors for B samples.
        row: the bias of all samples (O,) or of each (B, O).
        geometry: stride, padding, dilation, groups.

    Returns:
        (B, O, *S_out), contiguous, or channels_last where x is.

    Raises:
        ConvaryError: the library refuses; the sizes are named.
    """
    library = native.loaded()
    rows = (_rows(coeffs.filter), _rows(coeffs.channel), _rows(coeffs.tap), 1)
    if row is not None and row.ndim == 2:
        rows = (*rows[:3], row.shape[0])
    sizes, address, shape = _sizes(x.shape, bank.shape, geometry, rows, torch.get_num_threads())
    tensors = [_dense(t) for t in (x, bank, coeffs.kernel, coeffs.filter, coeffs.channel, coeffs.tap, row)]
    y = torch.empty(shape, dtype=torch.float32, device="cpu")  # whatever the defaults are
    code = library.mixed_conv(address, *(None if t is None else t.data_ptr() for t in tensors), y.data_ptr())
    if code:
        listed = ", ".join(f"{name}={getattr(sizes, name)}" for name in SIZES)
        raise ConvaryError(f"the native mixed convolution failed: {library.error_text(code).decode()}; got {listed}")
    return y


def run(x: Tensor, bank: Tensor, coeffs: Coefficients, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """The strategy: ``mixed_conv`` after its checks."""
    row = mix_bias(bias, coeffs) if bias is not None and bias.ndim == 2 else bias
    if row is not None:
        row = row.to(torch.float32)
    y = forward(x, bank, coeffs, row, geometry)
    if x.ndim == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last):
        return y.contiguous(memory_format=torch.channels_last)  # as torch's convolutions answer
    return y
