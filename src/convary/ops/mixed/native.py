# SPDX-License-Identifier: Apache-2.0
"""Strategy ``native`` of ``mixed_conv``: kernels of the native library that mix weights in cache, just before use.

This is the call. The kernels are in ``csrc/kernels/mixed_conv*.cpp`` and ``conv_*.cpp``, their choice and threads in
``csrc/abi/conv_run.cpp``.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from convary.errors import ShapeError
from convary.ops import reference
from convary.ops.coefficients import Coefficients
from convary.ops.geometry import Geometry, check_bias, check_conv, resolve
from convary.ops.mixed.mix import mix_bias
from convary.ops.native import call, eligible, half, library
from convary.ops.native.bridge import GEOMETRY, NativeOp
from convary.ops.shapes import is_channels_last

Factor = Tensor | None  # kernel, filter, channel and tap, in this order


def run(x: Tensor, bank: Tensor, coeffs: Coefficients, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """``mixed_conv`` after its checks."""
    if bias is not None and bias.ndim == 2:
        bias = _mixed_bias(bias, coeffs)
    return NATIVE.run(x, bank, coeffs.kernel, coeffs.filter, coeffs.channel, coeffs.tap, bias, geometry)


def _mixed_bias(bias: Tensor, coeffs: Coefficients) -> Tensor:
    """A bank's bias mixed, in float32 as the kernels are: rounded to 16 bits it would be rounded twice."""
    if eligible.all_exact((bias,)):
        return mix_bias(bias, coeffs)
    with torch.autocast("cpu", enabled=False):
        return mix_bias(half.wide(bias), coeffs.to(torch.float32))


def _rows(factor: Factor) -> int:
    return 1 if factor is None else factor.shape[1]


def structure(
    x: torch.Size,
    bank: Tensor,
    factors: Sequence[Factor],
    bias: Tensor | None,
    geometry: Geometry,
    *,
    channels_last: bool = False,
    half: bool = False,
) -> tuple[ctypes.Structure, tuple[int, ...]]:
    """The C structure of a call and the shape of y, for x of that shape and memory format, in bfloat16 if ``half``."""
    _, filter, channel, tap = factors
    bias_rows = bias.shape[0] if bias is not None and bias.ndim == 2 else 1
    rows = (_rows(filter), _rows(channel), _rows(tap), bias_rows)
    halves = (half, bank.dtype is torch.bfloat16)
    return call.conv_sizes(x, bank.shape, geometry, rows, channels_last, library.threads(), halves)


def _kind(features: Tensor) -> dict[str, bool]:
    """What :func:`structure` asks about features besides their shape."""
    return {"channels_last": is_channels_last(features), "half": features.dtype is torch.bfloat16}


def _forward(
    x: Tensor,
    bank: Tensor,
    kernel: Factor,
    filter: Factor,
    channel: Factor,
    tap: Factor,
    bias: Tensor | None,
    geometry: Geometry,
) -> Tensor:
    """The convolution (B, O, *S_out)."""
    channels_last = is_channels_last(x)
    factors = (kernel, filter, channel, tap)
    sizes, shape = structure(x.shape, bank, factors, bias, geometry, **_kind(x))
    tensors = call.all_dense(bank, kernel, filter, channel, tap, bias)
    x = call.features(x, channels_last=channels_last)
    y = call.empty(x, shape, channels_last=channels_last)
    call.call("mixed_conv", sizes, x, *tensors, y)
    return y


def _gradient_of_x(grad: Tensor, size: torch.Size, bank: Tensor, *rest) -> Tensor:
    """The gradient of x, whose size is (B, C, *S), from that of y and in its memory format."""
    *factors, geometry = rest
    channels_last = is_channels_last(grad)
    sizes, _ = structure(size, bank, factors, None, geometry, **_kind(grad))
    tensors = call.all_dense(bank, *factors)
    grad = call.features(grad, channels_last=channels_last)
    grad_x = call.empty(grad, size, channels_last=channels_last)
    call.call("mixed_conv_grad_x", sizes, grad, *tensors, grad_x)
    return grad_x


def _gradient_of_bank(grad: Tensor, x: Tensor, bank: Tensor, *rest) -> list[Tensor]:
    """The gradients of the bank and of every factor that is there.

    The library sums E = (gradient of the mixed weights) * bank over all axes but one; see csrc/convary.h.
    """
    *factors, geometry = rest
    _, filter, channel, _ = factors
    channels_last = is_channels_last(x)
    sizes, _ = structure(x.shape, bank, factors, None, geometry, **_kind(x))
    tensors = call.all_dense(bank, *factors)
    x, grad = (call.features(t, channels_last=channels_last) for t in (x, grad))
    blocks = (ctypes.c_int64 * 3)()
    code = library.loaded().entries["mixed_conv_grad_blocks"](ctypes.addressof(sizes), ctypes.addressof(blocks))
    call.check(code, "mixed_conv_grad_blocks", sizes)
    (B, C), (K, O) = x.shape[:2], bank.shape[:2]
    depthwise = geometry.groups == C == O
    new = functools.partial(torch.empty, dtype=torch.float32, device="cpu")  # whatever the features are
    by_tap = new(blocks[0], B, K, bank[0, 0, 0].numel())
    both = channel is not None and depthwise
    rows = max(_rows(filter), _rows(channel))
    by_filter = new(blocks[1], B, rows, O) if filter is not None or both else None
    by_channel = new(blocks[2], B, rows, C) if channel is not None and not depthwise else None
    grad_bank = new(bank.shape)
    call.call("mixed_conv_grad_bank", sizes, x, grad, *tensors, grad_bank, by_tap, by_filter, by_channel)
    sums = [None if part is None else part.sum(0) for part in (by_filter, by_channel)]
    return [grad_bank, *_of_factors(factors, by_tap.sum(0), *sums, depthwise=depthwise)]


def _of_factors(
    factors: Sequence[Factor], by_tap: Tensor, by_filter: Tensor | None, by_channel: Tensor | None, *, depthwise: bool
) -> list[Tensor]:
    """Turn the library's partial sums into gradients: multiply each by the factors that the sum omits.

    by_tap is (B, K, T), by_filter (B, 1 or K, O), by_channel (B, 1 or K, C): 1 where the sums are over the kernels.
    """
    kernel, filter, channel, tap = factors

    def finish(sums: Tensor, factor: Tensor, *, summed: bool = False) -> Tensor:
        if summed:
            return sums
        if kernel is not None:
            sums = sums * kernel[:, :, None]
        return sums.sum(1, keepdim=True) if factor.shape[1] == 1 else sums

    summed, gradients = max(_rows(filter), _rows(channel)) == 1, []
    if kernel is not None:
        gradients.append((by_tap if tap is None else by_tap * tap).sum(2))
    if filter is not None and by_filter is not None:
        sums = by_filter * channel if depthwise and channel is not None else by_filter
        gradients.append(finish(sums, filter, summed=summed))
    if channel is not None:
        if depthwise:
            by_channel = by_filter if filter is None or by_filter is None else by_filter * filter
        assert by_channel is not None
        gradients.append(finish(by_channel, channel, summed=summed))
    if tap is not None:
        gradients.append(finish(by_tap, tap))
    return gradients


def _check(x: Tensor, bank: Tensor, *rest) -> Geometry:
    """The geometry of an operator's arguments, checked as in ``mixed_conv`` but for the bias, which is mixed here."""
    *factors, bias = rest[:5]
    x, geometry = resolve(x, bank.shape[3:], *rest[5:])
    check_conv(x, bank, geometry, mixed_dtypes=False)
    _coefficients(factors).check(bank, batch=x.shape[0], channels=x.shape[1])
    NATIVE.check_dtypes(x)  # all others have its dtype
    if bias is not None:
        B, O = x.shape[0], bank.shape[1]
        if tuple(bias.shape) not in ((O,), (B, O)):
            raise ShapeError(
                f"bias is {tuple(bias.shape)}; {B} samples of {O} output channels want ({O},) or ({B}, {O})"
            )
        check_bias(bias, bank, mixed_dtypes=False)
    return geometry


def _coefficients(factors: Sequence[Factor]) -> Coefficients:
    kernel, filter, channel, tap = factors
    return Coefficients(kernel=kernel, filter=filter, channel=channel, tap=tap)


def _again(x: Tensor, bank: Tensor, *rest) -> Tensor:
    *factors, geometry = rest
    return reference.mixed_conv(x, bank, _coefficients(factors), **geometry._asdict())


def _y_shape(x: Sequence[int], bank: Sequence[int], geometry: Geometry) -> tuple[int, ...]:
    return (x[0], bank[1], *geometry.out_size(x[2:], bank[3:]))


def _flops(y: Sequence[int], bank: Sequence[int], passes: int) -> int:
    """Of y (B, O, *S_out), and of the passes over the bank (K, O, C/G, *k) for every sample.

    The gradients of the weights take a second one: its product with the bank, summed for the factors.
    """
    B, O, *positions = y
    K, _, *one_filter = bank
    return 2 * B * O * torch.Size(one_filter).numel() * (torch.Size(positions).numel() + passes * K)


NATIVE = NativeOp(
    name="mixed_conv",
    portable="bmm",
    weights=("Tensor bank", "Tensor? kernel", "Tensor? filter", "Tensor? channel", "Tensor? tap"),
    bias=True,
    settings=GEOMETRY,
    kind=Geometry,
    check=_check,
    y_shape=_y_shape,
    forward=_forward,
    gradient_of_x=_gradient_of_x,
    gradient_of_weights=_gradient_of_bank,
    again=_again,
    flops=_flops,
    result=half.of_convolution,
    halves=True,
    innermost=True,
)
