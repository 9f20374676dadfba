# SPDX-License-Identifier: Apache-2.0
"""Strategy ``native`` of ``mixed_conv``: kernels of the native library that mix weights in cache, just before use."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from convary.errors import ConvaryError
from convary.ops import autograd, native, reference
from convary.ops.coefficients import Coefficients
from convary.ops.geometry import Geometry
from convary.ops.strategy import Problem


def why_not(problem: Problem) -> str | None:
    """Why the strategy can't run a problem, or None."""
    if len(problem.kernel_size) == 3:
        return "it takes one or two spatial axes"
    if problem.obstacle is not None or problem.traced:  # the sizes of a recorded graph are known when it runs
        return problem.obstacle
    if min(problem.C, problem.O, problem.K, problem.P) == 0:
        return "a tensor is empty"
    if max(problem.B, problem.C, problem.O, problem.K, *problem.size, *problem.reach) >= 2**31:
        return "a size is beyond 32 bits"
    return None


SIZES = (
    "B", "C", "H", "W", "O", "K", "G", "kernel_h", "kernel_w", "stride_h", "stride_w", "pad_h", "pad_w", "dilation_h",
    "dilation_w", "filter_rows", "channel_rows", "tap_rows", "bias_rows", "channels_last", "threads",
)  # fmt: skip


class _Sizes(ctypes.Structure):
    """``convary_conv_sizes`` of csrc/convary.h."""

    _fields_ = tuple((name, ctypes.c_int64) for name in SIZES)


@lru_cache(maxsize=1024)
def _sizes(
    x: torch.Size, bank: torch.Size, geometry: Geometry, rows: tuple[int, int, int, int], last: bool, threads: int
) -> tuple[_Sizes, int, tuple[int, ...]]:
    """The C structure, its address and the shape of y, for shapes of one call."""
    line = (1,) * (4 - len(x))  # one spatial axis is a map one row high
    B, C, *size = x
    K, O, _, *kernel_size = bank
    axes = [
        (*line, *size), (*line, *kernel_size), (*line, *geometry.stride), (*(0,) * len(line), *geometry.padding),
        (*line, *geometry.dilation),
    ]  # fmt: skip
    sizes = _Sizes(B, C, *axes[0], O, K, geometry.groups, *(n for axis in axes[1:] for n in axis), *rows, last, threads)
    return sizes, ctypes.addressof(sizes), (B, O, *geometry.out_size(size, kernel_size))


def _rows(factor: Tensor | None) -> int:
    return 1 if factor is None else factor.shape[1]


def structure(
    size: torch.Size,
    bank: Tensor,
    coeffs: Coefficients,
    row: Tensor | None,
    geometry: Geometry,
    *,
    last: bool = False,
) -> tuple[_Sizes, int, tuple[int, ...]]:
    """The C structure of a call, its address and the shape of y; for x of that size, channels last or not."""
    bias_rows = row.shape[0] if row is not None and row.ndim == 2 else 1
    rows = (_rows(coeffs.filter), _rows(coeffs.channel), _rows(coeffs.tap), bias_rows)
    return _sizes(size, bank.shape, geometry, rows, last, torch.get_num_threads())


def _is_last(x: Tensor) -> bool:
    """Whether features are dense with channels innermost, and not row-major as well."""
    return x.ndim == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def _features(x: Tensor, *, last: bool) -> Tensor:
    """The numbers as the kernels read them, in one of the two layouts."""
    return x.resolve_neg().contiguous(memory_format=torch.channels_last) if last else _dense(x)


def _empty(like: Tensor, shape: Sequence[int], *, last: bool) -> Tensor:
    if not last:
        return like.new_empty(shape)
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def _dense(tensor: Tensor) -> Tensor:
    """The numbers as the kernels read them: row-major, no lazy sign."""
    if tensor.is_contiguous() and not tensor.is_neg():
        return tensor
    return tensor.resolve_neg().contiguous()


def _weights(bank: Tensor, coeffs: Coefficients, *row: Tensor | None) -> list[Tensor | None]:
    tensors = (bank, coeffs.kernel, coeffs.filter, coeffs.channel, coeffs.tap, *row)
    return [None if t is None else _dense(t) for t in tensors]


def _call(function: Callable[..., int], sizes: _Sizes, address: int, *tensors: Tensor | None) -> None:
    check(function(address, *[None if t is None else t.data_ptr() for t in tensors]), sizes)


def check(code: int, sizes: _Sizes) -> None:
    """Raise ConvaryError for a code of the library other than 0, naming the sizes."""
    if code:
        listed = ", ".join(f"{name}={getattr(sizes, name)}" for name in SIZES)
        text = native.loaded().error_text(code).decode()
        raise ConvaryError(f"the native mixed convolution failed: {text}; got {listed}")


def forward(x: Tensor, bank: Tensor, coeffs: Coefficients, row: Tensor | None, geometry: Geometry) -> Tensor:
    """The convolution by the native kernel, without a gradient.

    Args:
        x: (B, C, *S), one or two spatial axes.
        bank: (K, O, C/G, *k).
        coeffs: factors for B samples.
        row: the bias of all samples (O,) or of each (B, O).
        geometry: stride, padding, dilation, groups.

    Returns:
        (B, O, *S_out), in the memory format of x.

    Raises:
        ConvaryError: the library refuses; the sizes are named.
    """
    last = _is_last(x)
    sizes, address, shape = structure(x.shape, bank, coeffs, row, geometry, last=last)
    # Named, because a copy made here must live until the call is over.
    tensors = _weights(bank, coeffs, row)
    tensors = [_features(x, last=last), *tensors]
    y = _empty(x, shape, last=last)
    _call(native.loaded().mixed_conv, sizes, address, *tensors, y)
    return y


def gradient_of_x(grad: Tensor, size: torch.Size, bank: Tensor, coeffs: Coefficients, geometry: Geometry) -> Tensor:
    """The gradient of x, whose size is (B, C, *S), from that of y and in its memory format."""
    last = _is_last(grad)
    sizes, address, _ = structure(size, bank, coeffs, None, geometry, last=last)
    tensors = _weights(bank, coeffs)
    tensors = [_features(grad, last=last), *tensors]
    grad_x = _empty(grad, size, last=last)
    _call(native.loaded().mixed_conv_grad_x, sizes, address, *tensors, grad_x)
    return grad_x


def gradient_of_bank(
    grad: Tensor, x: Tensor, bank: Tensor, coeffs: Coefficients, geometry: Geometry
) -> tuple[Tensor, Coefficients]:
    """The gradients of the bank and of every coefficient that is there.

    The library sums E = (gradient of the mixed weights) * bank over all axes but one; see csrc/convary.h.
    """
    last = _is_last(x)
    sizes, address, _ = structure(x.shape, bank, coeffs, None, geometry, last=last)
    tensors = _weights(bank, coeffs)
    tensors = [_features(x, last=last), _features(grad, last=last), *tensors]
    blocks = (ctypes.c_int64 * 3)()
    _call_blocks(sizes, address, blocks)
    B, C = x.shape[:2]
    K, O = bank.shape[:2]
    depthwise = geometry.groups == C == O
    by_tap = x.new_empty(blocks[0], B, K, bank[0, 0, 0].numel())
    both = coeffs.channel is not None and depthwise
    rows = max(_rows(coeffs.filter), _rows(coeffs.channel))
    by_filter = x.new_empty(blocks[1], B, rows, O) if coeffs.filter is not None or both else None
    by_channel = x.new_empty(blocks[2], B, rows, C) if coeffs.channel is not None and not depthwise else None
    grad_bank = bank.new_empty(bank.shape)
    _call(native.loaded().mixed_conv_grad_bank, sizes, address, *tensors, grad_bank, by_tap, by_filter, by_channel)
    sums = [None if part is None else part.sum(0) for part in (by_tap, by_filter, by_channel)]
    return grad_bank, _gradients(coeffs, sums[0], sums[1], sums[2], depthwise=depthwise)


def _call_blocks(sizes: _Sizes, address: int, blocks: ctypes.Array) -> None:
    code = native.loaded().mixed_conv_grad_blocks(address, ctypes.addressof(blocks))
    if code:
        raise ConvaryError(f"the native gradient failed: {native.loaded().error_text(code).decode()}; got B={sizes.B}")


def _gradients(
    coeffs: Coefficients, by_tap: Tensor | None, by_filter: Tensor | None, by_channel: Tensor | None, *, depthwise: bool
) -> Coefficients:
    """Put the factors into the sums that they were left out of.

    by_tap is (B, K, T), by_filter (B, 1 or K, O), by_channel (B, 1 or K, C): 1 where the sums are over the kernels.
    """
    kernel, filter, channel, tap = coeffs.kernel, coeffs.filter, coeffs.channel, coeffs.tap

    def finish(sums: Tensor, factor: Tensor, *, summed: bool = False) -> Tensor:
        if summed:
            return sums
        if kernel is not None:
            sums = sums * kernel[:, :, None]
        return sums.sum(1, keepdim=True) if factor.shape[1] == 1 else sums

    summed = max(_rows(filter), _rows(channel)) == 1

    gradients = {}
    if kernel is not None and by_tap is not None:
        gradients["kernel"] = (by_tap if tap is None else by_tap * tap).sum(2)
    if tap is not None and by_tap is not None:
        gradients["tap"] = finish(by_tap, tap)
    if filter is not None and by_filter is not None:
        sums = by_filter * channel if depthwise and channel is not None else by_filter
        gradients["filter"] = finish(sums, filter, summed=summed)
    if channel is not None:
        if depthwise:
            by_channel = by_filter if filter is None or by_filter is None else by_filter * filter
        assert by_channel is not None
        gradients["channel"] = finish(by_channel, channel, summed=summed)
    return Coefficients(**gradients)


def remember(ctx, x: Tensor, bank: Tensor, factors: Sequence[Tensor | None], row: Tensor | None, geometry: Geometry):
    """Keep in an autograd context what :func:`gradients` needs."""
    ctx.geometry = geometry
    ctx.row_ndim = None if row is None else row.ndim
    ctx.save_for_backward(x, bank, *factors)


def gradients(
    ctx, grad: Tensor, of_x: Callable[..., Tensor], of_bank: Callable[..., tuple[Tensor, Coefficients]]
) -> tuple[Tensor | None, ...]:
    """The gradients of x, the bank, the four factors and the row that are asked for.

    Args:
        ctx: After :func:`remember`; its first seven inputs are in that order.
        grad: (B, O, *S_out).
        of_x: :func:`gradient_of_x` or its like.
        of_bank: :func:`gradient_of_bank` or its like.
    """
    x, bank, *factors = ctx.saved_tensors
    coeffs = coefficients(factors)
    needs_x, *needs_weight, needs_row = ctx.needs_input_grad[:7]
    if torch.is_grad_enabled():

        def again(x: Tensor, bank: Tensor, *factors: Tensor | None) -> Tensor:
            return reference.mixed_conv(x, bank, coefficients(factors), None, **ctx.geometry._asdict())

        found = autograd.differentiable(again, (x, bank, *factors), ctx.needs_input_grad[:6], grad)
        return *found, _gradient_of_row(grad, ctx.row_ndim) if needs_row else None
    grad_x = of_x(grad, x.shape, bank, coeffs, ctx.geometry) if needs_x else None
    grad_bank, grads = of_bank(grad, x, bank, coeffs, ctx.geometry) if any(needs_weight) else (None, Coefficients())
    grad_row = _gradient_of_row(grad, ctx.row_ndim) if needs_row else None
    return grad_x, grad_bank, grads.kernel, grads.filter, grads.channel, grads.tap, grad_row


def _gradient_of_row(grad: Tensor, ndim: int) -> Tensor:
    by_sample = grad.flatten(2).sum(2)
    return by_sample if ndim == 2 else by_sample.sum(0)


def coefficients(factors: Sequence[Tensor | None]) -> Coefficients:
    """The four factors by name."""
    kernel, filter, channel, tap = factors
    return Coefficients(kernel=kernel, filter=filter, channel=channel, tap=tap)
