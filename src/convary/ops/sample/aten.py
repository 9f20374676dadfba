# SPDX-License-Identifier: Apache-2.0
"""The strategies of ``sample_conv`` in torch's operations; ``mixed_conv`` convolves its mixed kernels by them."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from convary.ops.geometry import CONV, Geometry
from convary.ops.problem import Problem
from convary.ops.shapes import in_format_of, is_channels_last, plain_shape, unflatten
from convary.ops.tracing import is_portable, is_traced


def add_bias(y: Tensor, bias: Tensor | None) -> Tensor:
    """Add (O,) or (N, O) to y (N, O, *S)."""
    if bias is None:
        return y
    return y + bias.to(y.dtype).reshape(-1, plain_shape(bias)[-1], *[1] * (y.ndim - 2))


def grouped(x: Tensor, weight: Tensor, bias: Tensor | None, index: Tensor | None, geometry: Geometry) -> Tensor:
    """One convolution with B*G groups: what most released code does. For one sample it is a plain convolution."""
    given = x
    if index is not None:
        x = x.index_select(0, index)
    N, O = weight.shape[:2]
    conv, settings = CONV[x.ndim - 2], (geometry.stride, geometry.padding, geometry.dilation)
    if type(N) is int and N == 1:
        return conv(x, weight.squeeze(0), None if bias is None else bias.reshape(-1), *settings, geometry.groups)
    y = conv(
        x.reshape(1, -1, *x.shape[2:]),
        weight.reshape(N * O, *weight.shape[2:]),
        None if bias is None else bias.expand(N, O).reshape(-1),
        *settings,
        N * geometry.groups,
    )
    return kept_format(given, y.reshape(N, O, *y.shape[2:]))


def kept_format(x: Tensor, y: Tensor) -> Tensor:
    """The result y in x's memory format, on a GPU: the layers that follow are fast in it."""
    return in_format_of(x, y) if _is_for_gpu(x) else y


def _is_for_gpu(x: Tensor) -> bool:
    """Whether a call, or a graph that is compiled, computes on a GPU; what is exported may run elsewhere."""
    return x.is_cuda and not (is_traced(x) and is_portable())


def loop(x: Tensor, weight: Tensor, bias: Tensor | None, index: Tensor | None, geometry: Geometry) -> Tensor:
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


def bmm(x: Tensor, weight: Tensor, bias: Tensor | None, index: Tensor | None, geometry: Geometry) -> Tensor:
    """Unfold the features and multiply matrices batched over samples and groups; depends on no size, so it traces."""
    O, C_group, *kernel_size = plain_shape(weight)[1:]
    out_size = geometry.out_size(x.shape[2:], kernel_size)
    if geometry.groups == 1 and is_pointwise(kernel_size, geometry) and _is_for_gpu(x) and is_channels_last(x):
        return add_bias(channels_innermost(x, weight, index, geometry), bias)
    columns = unfold(x, kernel_size, geometry, out_size)
    if index is not None:
        columns = columns.index_select(0, index)
    rows, G = weight.flatten(2), geometry.groups
    if G > 1:
        rows, columns = unflatten(rows, 1, (G, O // G)), unflatten(columns, 1, (G, C_group * prod(kernel_size)))
    return add_bias(kept_format(x, (rows @ columns).reshape(-1, O, *out_size)), bias)


def unfold(x: Tensor, kernel_size: Sequence[int], geometry: Geometry, out_size: list[int]) -> Tensor:
    """Every kernel window of x (B, C, *S) as columns: (B, C * T, P), taps row-major."""
    rank = len(kernel_size)
    if is_pointwise(kernel_size, geometry):
        return _strided(x, geometry).flatten(2)
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


def is_pointwise(kernel_size: Sequence[int], geometry: Geometry) -> bool:
    """Whether every window is one position of x."""
    return all(k == 1 for k in kernel_size) and not any(geometry.padding)


def _strided(x: Tensor, geometry: Geometry) -> Tensor:
    """The positions that pointwise windows see."""
    if any(s != 1 for s in geometry.stride):
        x = x[(..., *(slice(None, None, s) for s in geometry.stride))]
    return x


def channels_innermost(x: Tensor, weight: Tensor, index: Tensor | None, geometry: Geometry) -> Tensor:
    """A pointwise convolution of channels_last features as a product batched over samples: so is the result."""
    x = _strided(x, geometry)
    rows = x.movedim(1, -1).flatten(1, -2)  # (B, P, C), a view where no stride leaves positions out
    if index is not None:
        rows = rows.index_select(0, index)
    y = rows @ weight.flatten(2).transpose(1, 2)
    return unflatten(y, 1, x.shape[2:]).movedim(-1, 1)


def _unfold_by_slices(x: Tensor, kernel_size: Sequence[int], geometry: Geometry, out_size: list[int]) -> Tensor:
    """Any rank, one strided slice per tap."""
    x = F.pad(x, [p for p in reversed(geometry.padding) for _ in range(2)])
    slices = [()]
    for k, d, s, n in zip(kernel_size, geometry.dilation, geometry.stride, out_size, strict=True):
        slices = [(*head, slice(t * d, t * d + s * (n - 1) + 1, s)) for head in slices for t in range(k)]
    return torch.stack([x[(..., *window)].flatten(2) for window in slices], dim=2).flatten(1, 2)


def needs_fixed_batch(problem: Problem) -> str | None:
    """Why a strategy whose graph holds the batch size can't run."""
    return (
        "it would bake the batch size into the recorded graph" if problem.traced and not problem.batch_fixed else None
    )
