# SPDX-License-Identifier: Apache-2.0
"""The strategies of ``mixed_conv`` in torch's operations: mix kernels and convolve per sample, or mix feature maps."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

from torch import Tensor

from convary.ops.coefficients import Coefficients
from convary.ops.geometry import CONV, Geometry
from convary.ops.mixed.mix import mix_bias, mix_kernels
from convary.ops.problem import Problem
from convary.ops.sample import deferred
from convary.ops.sample.aten import add_bias, kept_format, unfold
from convary.ops.shapes import plain_shape, unflatten
from convary.ops.tracing import holds_sizes, is_traced

FEW = 4  # kernels


def _bias(bias: Tensor | None, coeffs: Coefficients) -> Tensor | None:
    """The bias that each sample gets: (O,) or (B, O)."""
    return mix_bias(bias, coeffs) if bias is not None and bias.ndim == 2 else bias


def _on_maps(factor: Tensor, x: Tensor) -> Tensor:
    """A shared factor (B, 1, C) shaped to scale feature maps like x (B, C, *S)."""
    return factor.reshape(-1, plain_shape(factor)[2], *[1] * (x.ndim - 2)).to(x.dtype)


def _feature_factors(
    x: Tensor, coeffs: Coefficients, geometry: Geometry, kernel: Tensor
) -> tuple[Tensor | None, Tensor | None, Coefficients]:
    """Shared channel and filter factors that are cheaper on features than on kernels, and the factors that are left."""
    channel, filter = coeffs.shared("channel"), coeffs.shared("filter")
    if coeffs.shared("tap") is not None:  # which scales the kernels anyway, and takes the channel factor along
        channel = None
    if not is_traced(x) or holds_sizes(*x.shape):  # a graph that serves any size decides nothing by it
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


def per_sample(run_sample: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Mix the kernels, then convolve by a strategy of ``sample_conv``."""

    def run(x: Tensor, bank: Tensor, coeffs: Coefficients, bias: Tensor | None, geometry: Geometry) -> Tensor:
        mixed_bias = _bias(bias, coeffs)
        on_x, on_y, left = _feature_factors(x, coeffs, geometry, bank[0])
        if on_x is not None:
            x = x * _on_maps(on_x, x)
        weight = mix_kernels(bank, left) if left.factors() else _summed(bank, x.shape[0])
        if on_y is None:
            return run_sample(x, weight, mixed_bias, None, geometry)
        y = run_sample(x, weight, None, None, geometry)
        return add_bias(y * _on_maps(on_y, y), mixed_bias)

    return run


def _summed(bank: Tensor, B: int) -> Tensor:
    """The kernels of B samples that no factor tells apart."""
    return bank.sum(0, keepdim=True).expand(B, *[-1] * (bank.ndim - 1))


def outputs(x: Tensor, bank: Tensor, coeffs: Coefficients, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """Convolve with every kernel and mix the feature maps: K convolutions' arithmetic, no per-sample kernels.

    Shared tap coefficients scale the columns of the unfolded x, which one pointwise convolution then takes.
    """
    K, O, _, *kernel_size = plain_shape(bank)
    rank, G, given = x.ndim - 2, geometry.groups, x
    if coeffs.channel is not None:
        x = x * _on_maps(coeffs.channel, x)
    kernels = bank.flatten(0, 1)
    if G > 1:  # groups must stay together: (K, G, O/G) -> (G, K, O/G) on the way in
        kernels = bank.reshape(K, G, O // G, -1).transpose(0, 1).reshape(plain_shape(kernels))
    if coeffs.tap is None:
        y = CONV[rank](x, kernels, None, geometry.stride, geometry.padding, geometry.dilation, G)
        out_size = y.shape[2:]
        y = y.flatten(2)
    else:
        out_size = geometry.out_size(x.shape[2:], kernel_size)
        columns = unflatten(unfold(x, kernel_size, geometry, out_size), 1, (-1, prod(kernel_size)))
        columns = (columns * coeffs.tap.reshape(-1, 1, prod(kernel_size), 1).to(x.dtype)).flatten(1, 2)
        y = CONV[1](columns, kernels.flatten(1).unsqueeze(2), groups=G)
    y = unflatten(y, 1, (G, K, O // G) if G > 1 else (K, O))  # (B, [G,] K, O/G, P): no converter has more axes
    factor = _output_factor(coeffs, G, O)
    if factor is not None:
        y = y * factor.to(y.dtype)
    return add_bias(kept_format(given, y.sum(-3).reshape(-1, O, *out_size)), _bias(bias, coeffs))


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


def for_gpu(problem: Problem) -> str:
    """What a graph compiled for a GPU holds: it knows no batch, so it can't weigh one by it.

    Dense convolutions by K kernels have tensor cores and channels_last, which pays up to K = 4. A tap
    factor would unfold x for them, and a depthwise layer has memory to go through and no products.
    """
    outputs_pay = problem.K <= FEW and "tap" not in problem.axes and problem.G < problem.C
    if problem.T > 1 and outputs_pay and outputs_why_not(problem) is None:
        return "outputs"
    return deferred.for_gpu(problem)


def outputs_why_not(problem: Problem) -> str | None:
    """Why :func:`outputs` can't run."""
    for axis in ("tap", "channel"):
        if axis in problem.axes and axis not in problem.shared:
            return f"{axis} coefficients that differ between kernels act inside the kernel, not on its output"
    return None


def outputs_costly(problem: Problem) -> str | None:
    """Why :func:`outputs` is no gain over unfolded features, which are T times as many.

    Of a depthwise layer it makes K times as many. With tap coefficients it unfolds too.
    """
    if problem.C == problem.G and problem.K < problem.T and "tap" not in problem.axes:
        return None
    return f"it takes {problem.K} times the arithmetic"
