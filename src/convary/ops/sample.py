# SPDX-License-Identifier: Apache-2.0
"""Convolution with one given kernel per sample, or per instance."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from convary.ops import native_conv, native_sample, registered_sample
from convary.ops.geometry import Geometry, Size, autocasting, check_conv, resolve
from convary.ops.instances import check_kernels
from convary.ops.shapes import plain_shape, unflatten
from convary.ops.strategy import Problem, Strategy, choose, choose_traced, describe, is_traced, needs_gradient

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def sample_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
    index: Tensor | None = None,
) -> Tensor:
    """Convolve each sample with its own kernel; with ``index``, each instance with its own kernel on its own image.

    ``y[n,o,p] = bias[n,o] + sum_c sum_t weight[n,o,c,t] x[index[n], c, p*stride + t*dilation - padding]``

    Graphs record it as they do ``mixed_conv``; the operator is ``torch.ops.convary.sample_conv``. Memory formats are
    taken as in ``mixed_conv``.

    Args:
        x: (B, C, *S), one to three spatial axes.
        weight: (B, O, C/G, *k), or (N, O, C/G, *k) with ``index``.
        bias: (O,) for all, or one row per kernel (B or N, O).
        stride: As in ``torch.nn.functional.conv2d``.
        padding: As in ``torch.nn.functional.conv2d``, ``"same"`` and ``"valid"`` included. ``"same"`` takes any
            stride: the output has ceil(size / stride) positions, as TensorFlow has it.
        dilation: As in ``torch.nn.functional.conv2d``.
        groups: G.
        index: (N,) integers in [0, B): the image that kernel n is applied to.

    Returns:
        (B or N, O, *S_out).

    Raises:
        ShapeError, DtypeError, DeviceError: the tensors do not fit together.
        ConfigError: a stride, padding or dilation that no convolution takes.
        StrategyError: the forced strategy can't run.
    """
    x, geometry = resolve(x, plain_shape(weight)[3:], stride, padding, dilation, groups)
    check_conv(x, weight, geometry, mixed_dtypes=autocasting(x))
    check_kernels(x, weight, bias, index)
    return run(x, weight, bias, geometry, index)


def run(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, index: Tensor | None) -> Tensor:
    """``sample_conv`` after its checks."""
    B, training = plain_shape(weight)[0], needs_gradient(x, weight)
    traced = is_traced(x, weight)
    obstacle = native_sample.obstacle(x, weight, bias, index)

    def problem() -> Problem:
        return describe("sample_conv", x, weight, geometry, batch=B, training=training, obstacle=obstacle)

    if traced:
        return STRATEGIES[choose_traced(STRATEGIES, problem())].run(x, weight, bias, geometry, index)
    if B == 0:
        return empty_batch(x, weight, geometry, weight.shape[1])
    key = ("sample_conv", x.shape, weight.shape, geometry, training, x.device.type, x.dtype, obstacle)
    return STRATEGIES[choose(STRATEGIES, key, problem)].run(x, weight, bias, geometry, index)


def empty_batch(x: Tensor, weight: Tensor, geometry: Geometry, O: int) -> Tensor:
    """No kernels, no output; still connected to the inputs, so that backward gives zeros."""
    out_size = geometry.out_size(x.shape[2:], weight.shape[3:])
    dtype = torch.get_autocast_dtype(x.device.type) if autocasting(x) else x.dtype
    return x.new_zeros(0, O, *out_size, dtype=dtype) + 0 * (x.sum() + weight.sum())


def add_bias(y: Tensor, bias: Tensor | None) -> Tensor:
    """Add (O,) or (N, O) to y (N, O, *S)."""
    if bias is None:
        return y
    return y + bias.to(y.dtype).reshape(-1, plain_shape(bias)[-1], *[1] * (y.ndim - 2))


def grouped(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, index: Tensor | None) -> Tensor:
    """One convolution with B*G groups: what most released code does."""
    if index is not None:
        x = x.index_select(0, index)
    N, O = weight.shape[:2]
    y = CONV[x.ndim - 2](
        x.reshape(1, -1, *x.shape[2:]),
        weight.reshape(N * O, *weight.shape[2:]),
        None if bias is None else bias.expand(N, O).reshape(-1),
        geometry.stride,
        geometry.padding,
        geometry.dilation,
        N * geometry.groups,
    )
    return y.reshape(N, O, *y.shape[2:])


def loop(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, index: Tensor | None) -> Tensor:
    """A convolution per kernel; features are never copied, not even with ``index``."""
    # split and unbind, not x[i] and weight[n]: the gradient of an index is a tensor of zeros as large as the whole.
    images = x.split(1)
    if index is not None:
        images = [images[i] for i in index.tolist()]
    conv = CONV[x.ndim - 2]
    rows = [
        conv(image, kernel, None, geometry.stride, geometry.padding, geometry.dilation, geometry.groups)
        for image, kernel in zip(images, weight.unbind(0), strict=True)
    ]
    return add_bias(torch.cat(rows), bias)


def bmm(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, index: Tensor | None) -> Tensor:
    """Unfold the features and multiply matrices batched over samples and groups; depends on no size, so it traces."""
    O, C_group, *kernel_size = plain_shape(weight)[1:]
    out_size = geometry.out_size(x.shape[2:], kernel_size)
    columns = unfold(x, kernel_size, geometry, out_size)
    if index is not None:
        columns = columns.index_select(0, index)
    rows, G = weight.flatten(2), geometry.groups
    if G > 1:
        rows, columns = unflatten(rows, 1, (G, O // G)), unflatten(columns, 1, (G, C_group * prod(kernel_size)))
    return add_bias((rows @ columns).reshape(-1, O, *out_size), bias)


def unfold(x: Tensor, kernel_size: Sequence[int], geometry: Geometry, out_size: list[int]) -> Tensor:
    """Every kernel window of x (B, C, *S) as columns: (B, C * T, P), taps row-major."""
    rank = len(kernel_size)
    if all(k == 1 for k in kernel_size) and not any(geometry.padding):
        if any(s != 1 for s in geometry.stride):
            x = x[(..., *(slice(None, None, s) for s in geometry.stride))]
        return x.flatten(2)
    if rank < 3:
        line = rank == 1  # torch unfolds 2-D maps only; a line is a map one row high
        return F.unfold(
            x.unsqueeze(2) if line else x,
            (1, *kernel_size) if line else tuple(kernel_size),
            (1, *geometry.dilation) if line else geometry.dilation,
            (0, *geometry.padding) if line else geometry.padding,
            (1, *geometry.stride) if line else geometry.stride,
        )
    return _unfold_by_slices(x, kernel_size, geometry, out_size)


def _unfold_by_slices(x: Tensor, kernel_size: Sequence[int], geometry: Geometry, out_size: list[int]) -> Tensor:
    """Any rank, one strided slice per tap."""
    x = F.pad(x, [p for p in reversed(geometry.padding) for _ in range(2)])
    slices = [()]
    for k, d, s, n in zip(kernel_size, geometry.dilation, geometry.stride, out_size, strict=True):
        slices = [(*head, slice(t * d, t * d + s * (n - 1) + 1, s)) for head in slices for t in range(k)]
    return torch.stack([x[(..., *window)].flatten(2) for window in slices], dim=2).flatten(1, 2)


def needs_fixed_batch(problem: Problem) -> str | None:
    """Why a strategy whose graph holds the batch size can't run."""
    return "it would bake the batch size into the recorded graph" if problem.traced else None


STRATEGIES = {
    "grouped": Strategy(needs_fixed_batch, grouped),
    "loop": Strategy(needs_fixed_batch, loop),
    "bmm": Strategy(lambda problem: None, bmm),
    "native": Strategy(native_conv.why_not, registered_sample.run),
}
