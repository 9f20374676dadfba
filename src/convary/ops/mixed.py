# SPDX-License-Identifier: Apache-2.0
"""Convolution with kernels mixed from a bank, per sample."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import torch
from torch import Tensor

from convary.errors import ShapeError
from convary.ops import eligible, native_conv, registered, sample
from convary.ops.coefficients import Coefficients
from convary.ops.geometry import Geometry, Size, autocasting, check_bias, check_conv, resolve
from convary.ops.mix import mix_bias, mix_kernels
from convary.ops.shapes import plain_shape, unflatten
from convary.ops.strategy import (
    Problem,
    Strategy,
    choose,
    choose_traced,
    describe,
    is_traced,
    needs_gradient,
    remembered,
)


def mixed_conv(
    x: Tensor,
    bank: Tensor,
    coeffs: Coefficients,
    bias: Tensor | None = None,
    *,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
) -> Tensor:
    """Convolve each sample with its own mixture of the bank: ``sample_conv(x, mix_kernels(bank, coeffs))``.

    ``torch.compile`` keeps the native kernels where they can run. ``torch.export`` and ``torch.jit.trace`` record
    torch's own operations, which run anywhere; under ``ops.strategy("native")`` they record
    ``torch.ops.convary.mixed_conv``, and the program needs ``import convary`` where it is loaded.

    Contiguous and channels_last x are taken, and y is in x's memory format. The native kernels read and write both as
    they lie; inside a compiled or exported graph they copy channels_last features to the contiguous format and back.

    Args:
        x: (B, C, *S), one to three spatial axes.
        bank: (K, O, C/G, *k).
        coeffs: factors for B samples.
        bias: (O,) is added as it is; a bank (K, O) is mixed like the kernels, by the kernel and filter factors.
        stride: As in ``torch.nn.functional.conv2d``.
        padding: As in ``torch.nn.functional.conv2d``, ``"same"`` and ``"valid"`` included. ``"same"`` takes any
            stride: the output has ceil(size / stride) positions, as TensorFlow has it.
        dilation: As in ``torch.nn.functional.conv2d``.
        groups: G.

    Returns:
        (B, O, *S_out).

    Raises:
        ShapeError, DtypeError, DeviceError: the tensors do not fit together.
        ConfigError: a stride, padding or dilation that no convolution takes.
        StrategyError: the forced strategy can't run.
    """
    x, geometry = resolve(x, plain_shape(bank)[3:], stride, padding, dilation, groups)
    training = needs_gradient(x, bank, coeffs.kernel, coeffs.filter, coeffs.channel, coeffs.tap)
    obstacle = eligible.obstacle(x, bank, coeffs.kernel, coeffs.filter, coeffs.channel, coeffs.tap, bias)

    if is_traced(x):
        coeffs = _check(x, bank, coeffs, bias, geometry)
        problem = _describe(x, bank, coeffs, geometry, training, obstacle)
        return STRATEGIES[choose_traced(STRATEGIES, problem)].run(x, bank, coeffs, bias, geometry)
    shapes = _shapes(x, bank, coeffs.kernel, coeffs.filter, coeffs.channel, coeffs.tap, bias)
    key = ("mixed_conv", shapes, geometry, training, x.device, x.dtype, obstacle)
    name = remembered(key)
    if name is None or obstacle is not None:  # else all tensors are float32 on the CPU, of shapes that fit
        coeffs = _check(x, bank, coeffs, bias, geometry)
        if x.shape[0] == 0:
            return sample.empty_batch(x, bank, geometry, bank.shape[1])
        name = choose(STRATEGIES, key, lambda: _describe(x, bank, coeffs, geometry, training, obstacle))
    return STRATEGIES[name].run(x, bank, coeffs, bias, geometry)


def _describe(
    x: Tensor, bank: Tensor, coeffs: Coefficients, geometry: Geometry, training: bool, obstacle: str | None
) -> Problem:
    B = plain_shape(x)[0]
    return describe("mixed_conv", x, bank, geometry, batch=B, training=training, coeffs=coeffs, obstacle=obstacle)


def _shapes(*tensors: Tensor | None) -> tuple[torch.Size | None, ...]:
    return tuple([None if t is None else t.shape for t in tensors])


def _check(x: Tensor, bank: Tensor, coeffs: Coefficients, bias: Tensor | None, geometry: Geometry) -> Coefficients:
    """Raise unless the tensors fit together; the coefficients, in the bank's dtype where autocast is on."""
    mixed_dtypes = autocasting(x)
    check_conv(x, bank, geometry, mixed_dtypes=mixed_dtypes)
    if mixed_dtypes:
        coeffs = coeffs.to(bank.dtype)
    coeffs.check(bank, batch=plain_shape(x)[0], channels=plain_shape(x)[1])
    if bias is not None:
        K, O = plain_shape(bank)[:2]
        if tuple(plain_shape(bias)) not in ((O,), (K, O)):
            raise ShapeError(f"bias is {tuple(plain_shape(bias))}; a bank of {K} kernels wants ({O},) or ({K}, {O})")
        check_bias(bias, bank, mixed_dtypes=mixed_dtypes)
    return coeffs


def _row(bias: Tensor | None, coeffs: Coefficients) -> Tensor | None:
    """The bias each sample gets: (O,) or (B, O)."""
    return mix_bias(bias, coeffs) if bias is not None and bias.ndim == 2 else bias


def _on_maps(factor: Tensor, x: Tensor) -> Tensor:
    """A shared factor (B, 1, C) shaped to scale feature maps like x (B, C, *S)."""
    return factor.reshape(-1, plain_shape(factor)[2], *[1] * (x.ndim - 2)).to(x.dtype)


def _gates(
    x: Tensor, coeffs: Coefficients, geometry: Geometry, kernel: Tensor
) -> tuple[Tensor | None, Tensor | None, Coefficients]:
    """Shared channel and filter factors that are cheaper on features than on kernels, and the factors that are left."""
    channel, filter = coeffs.shared("channel"), coeffs.shared("filter")
    if not is_traced(x):  # a recorded graph decides nothing by size
        if channel is not None and prod(x.shape[1:]) >= kernel.numel():
            channel = None
        positions = prod(geometry.out_size(x.shape[2:], kernel.shape[2:]))
        if filter is not None and kernel.shape[0] * positions >= kernel.numel():
            filter = None
    if channel is not None:
        coeffs = coeffs.replace(channel=None)
    if filter is not None:
        coeffs = coeffs.replace(filter=None)
    return channel, filter, coeffs


def _per_sample(run_sample: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Mix the kernels, then convolve by a strategy of ``sample_conv``."""

    def run(x: Tensor, bank: Tensor, coeffs: Coefficients, bias: Tensor | None, geometry: Geometry) -> Tensor:
        row = _row(bias, coeffs)
        on_x, on_y, left = _gates(x, coeffs, geometry, bank[0])
        if on_x is not None:
            x = x * _on_maps(on_x, x)
        weight = mix_kernels(bank, left) if left.factors() else _summed(bank, x.shape[0])
        if on_y is None:
            return run_sample(x, weight, row, geometry, None)
        y = run_sample(x, weight, None, geometry, None)
        return sample.add_bias(y * _on_maps(on_y, y), row)

    return run


def _summed(bank: Tensor, B: int) -> Tensor:
    """The kernels of B samples that no factor tells apart."""
    return bank.sum(0, keepdim=True).expand(B, *[-1] * (bank.ndim - 1))


def outputs(x: Tensor, bank: Tensor, coeffs: Coefficients, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """Convolve with every kernel and mix the feature maps: K convolutions' arithmetic, no per-sample kernels.

    Shared tap coefficients scale the columns of the unfolded x, which one pointwise convolution then takes.
    """
    K, O, _, *kernel_size = plain_shape(bank)
    rank, G = x.ndim - 2, geometry.groups
    if coeffs.channel is not None:
        x = x * _on_maps(coeffs.channel, x)
    kernels = bank.flatten(0, 1)
    if G > 1:  # groups must stay together: (K, G, O/G) -> (G, K, O/G) on the way in
        kernels = bank.reshape(K, G, O // G, -1).transpose(0, 1).reshape(plain_shape(kernels))
    if coeffs.tap is None:
        y = sample.CONV[rank](x, kernels, None, geometry.stride, geometry.padding, geometry.dilation, G)
        out_size = y.shape[2:]
        y = y.flatten(2)
    else:
        out_size = geometry.out_size(x.shape[2:], kernel_size)
        columns = unflatten(sample.unfold(x, kernel_size, geometry, out_size), 1, (-1, prod(kernel_size)))
        columns = (columns * coeffs.tap.reshape(-1, 1, prod(kernel_size), 1).to(x.dtype)).flatten(1, 2)
        y = sample.CONV[1](columns, kernels.flatten(1).unsqueeze(2), groups=G)
    y = unflatten(y, 1, (G, K, O // G) if G > 1 else (K, O))  # (B, [G,] K, O/G, P): no converter has more axes
    factor = _output_factor(coeffs, G, O)
    if factor is not None:
        y = y * factor.to(y.dtype)
    return sample.add_bias(y.sum(-3).reshape(-1, O, *out_size), _row(bias, coeffs))


def _output_factor(coeffs: Coefficients, G: int, O: int) -> Tensor | None:
    """The kernel and filter factors as (B, [G,] K or 1, O/G or 1, 1)."""
    if coeffs.filter is None:
        if coeffs.kernel is None:
            return None
        return coeffs.kernel.reshape(-1, *[1] * (G > 1), plain_shape(coeffs.kernel)[1], 1, 1)
    factor = coeffs.filter if coeffs.kernel is None else coeffs.filter * coeffs.kernel.unsqueeze(2)
    if G > 1:
        return unflatten(factor, 2, (G, O // G, 1)).transpose(1, 2)
    return unflatten(factor, 2, (O, 1))


def _outputs_why_not(problem: Problem) -> str | None:
    for axis in ("tap", "channel"):
        if axis in problem.axes and axis not in problem.shared:
            return f"{axis} coefficients that differ between kernels act inside the kernel, not on its output"
    return None


STRATEGIES = {
    "grouped": Strategy(sample.needs_fixed_batch, _per_sample(sample.grouped)),
    "loop": Strategy(sample.needs_fixed_batch, _per_sample(sample.loop)),
    "outputs": Strategy(_outputs_why_not, outputs),
    "bmm": Strategy(lambda problem: None, _per_sample(sample.bmm)),
    "native": Strategy(native_conv.why_not, registered.run),
}
