# SPDX-License-Identifier: Apache-2.0
"""Strategy ``native`` of ``sample_conv``: a kernel per sample or per instance; features are never copied."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from convary.ops import reference
from convary.ops.geometry import Geometry
from convary.ops.native import call, half, library
from convary.ops.native.bridge import GEOMETRY, NativeOp
from convary.ops.sample.arguments import spell
from convary.ops.shapes import in_format_of


def _structure(
    x: Sequence[int], weight: Sequence[int], bias: Tensor | None, geometry: Geometry
) -> tuple[ctypes.Structure, tuple[int, ...]]:
    """The C structure and the shape of a map of y, for shapes of one call."""
    rows = (1, 1, 1, bias.shape[0] if bias is not None and bias.ndim == 2 else 1)
    threads = library.threads()
    sizes, shape = call.conv_sizes(torch.Size(x), torch.Size(weight), geometry, rows, False, threads)
    return sizes, shape[1:]


def _images(index: Tensor | None) -> Tensor | None:
    return None if index is None else call.dense(index.to(torch.int64))


def _forward(x: Tensor, weight: Tensor, index: Tensor | None, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """The convolution (N, O, *S_out)."""
    sizes, map_shape = _structure(x.shape, weight.shape, bias, geometry)
    tensors = [*call.all_dense(x, weight, bias), _images(index)]
    y = call.empty(x, (weight.shape[0], *map_shape))
    call.call("sample_conv", sizes, *tensors, y)
    return in_format_of(x, y)


def _gradient_of_x(
    grad: Tensor, size: Sequence[int], weight: Tensor, index: Tensor | None, geometry: Geometry
) -> Tensor:
    sizes, _ = _structure(size, weight.shape, None, geometry)
    tensors = [*call.all_dense(grad, weight), _images(index)]
    grad_x = call.empty(grad, size)
    call.call("sample_conv_grad_x", sizes, *tensors, grad_x)
    return grad_x


def _gradient_of_weight(
    grad: Tensor, x: Tensor, weight: Tensor, index: Tensor | None, geometry: Geometry
) -> list[Tensor]:
    sizes, _ = _structure(x.shape, weight.shape, None, geometry)
    tensors = [*call.all_dense(x, grad), _images(index)]
    grad_weight = call.empty(grad, weight.shape)
    call.call("sample_conv_grad_weight", sizes, *tensors, grad_weight)
    return [grad_weight]


def _check(
    x: Tensor, weight: Tensor, index: Tensor | None, bias: Tensor | None, stride, padding, dilation, groups
) -> Geometry:
    """The geometry of an operator's arguments, checked as in ``sample_conv``."""
    arguments = spell(x, weight, bias, stride, padding, dilation, groups, index).check()
    NATIVE.check_dtypes(x, weight, bias)
    return arguments.geometry


def _again(x: Tensor, weight: Tensor, index: Tensor | None, geometry: Geometry) -> Tensor:
    return reference.sample_conv(x, weight, index=index, **geometry._asdict())


def _y_shape(x: Sequence[int], weight: Sequence[int], geometry: Geometry) -> tuple[int, ...]:
    return (*weight[:2], *geometry.out_size(x[2:], weight[3:]))


def _flops(y: Sequence[int], weight: Sequence[int], passes: int) -> int:
    """Of y (N, O, *S_out), with weight (N, O, C/G, *k), which is given."""
    return 2 * torch.Size(y).numel() * torch.Size(weight[2:]).numel()


NATIVE = NativeOp(
    name="sample_conv",
    portable="bmm",
    weights=("Tensor weight", "Tensor? index"),
    bias=True,
    settings=GEOMETRY,
    kind=Geometry,
    check=_check,
    y_shape=_y_shape,
    forward=_forward,
    gradient_of_x=_gradient_of_x,
    gradient_of_weights=_gradient_of_weight,
    again=_again,
    flops=_flops,
    result=half.of_convolution,
)


def run(x: Tensor, weight: Tensor, bias: Tensor | None, index: Tensor | None, geometry: Geometry) -> Tensor:
    """``sample_conv`` after its checks."""
    return NATIVE.run(x, weight, index, bias, geometry)
