# SPDX-License-Identifier: Apache-2.0
"""The arguments of ``sample_conv``: spelled out, checked, and the problem that they pose."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from convary.errors import DeviceError, DtypeError, ShapeError
from convary.ops.geometry import Geometry, Size, autocasting, check_bias, check_conv, nothing, resolve
from convary.ops.problem import Problem, conv_problem
from convary.ops.shapes import plain_shape
from convary.ops.tracing import inside_functorch, is_intercepted


class SampleArguments(NamedTuple):
    """See :class:`convary.ops.dispatch.Arguments`."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    images: Tensor | None
    geometry: Geometry

    def tensors(self) -> tuple[Tensor | None, ...]:
        """x, the kernels, the bias."""
        return self.x, self.weight, self.bias

    def check(self) -> SampleArguments:
        """Raise unless there is a kernel for every sample, or an image for every kernel, and a bias that fits."""
        x, weight, bias, images, geometry = self
        mixed_dtypes = autocasting(x)
        check_conv(x, weight, geometry, mixed_dtypes=mixed_dtypes)
        (N, O), B = plain_shape(weight)[:2], plain_shape(x)[0]
        if images is None and N != B:
            raise ShapeError(
                f"weight has {N} samples but x has a batch of {B}; pass one kernel per sample, "
                f"or index=({N},) to map kernels to images"
            )
        if bias is not None:
            if tuple(plain_shape(bias)) not in ((O,), (N, O)):
                given = tuple(plain_shape(bias))
                raise ShapeError(f"bias is {given}; {N} kernels of {O} output channels want ({O},) or ({N}, {O})")
            check_bias(bias, weight, mixed_dtypes=mixed_dtypes)
        return self

    def problem(self, *, training: bool, obstacle: str | None) -> Problem:
        """The problem that they pose."""
        x, weight, *_, geometry = self
        B = plain_shape(weight)[0]
        return conv_problem("sample_conv", x, weight, geometry, batch=B, training=training, obstacle=obstacle)

    def nothing(self) -> Tensor | None:
        """The answer where there are no kernels."""
        return nothing(self.x, self.weight, self.geometry, self.tensors()) if self.weight.shape[0] == 0 else None


def spell(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Size,
    padding: Size | str,
    dilation: Size,
    groups: int,
    index: Tensor | None,
) -> SampleArguments:
    """The arguments of a call; see :func:`convary.ops.sample_conv`. The numbers in ``index`` are checked here."""
    x, geometry = resolve(x, plain_shape(weight)[3:], stride, padding, dilation, groups)
    if index is not None:  # whose numbers may differ between calls that are alike otherwise
        _check_index(x, plain_shape(weight)[0], index)
    return SampleArguments(x, weight, bias, index, geometry)


def _check_index(x: Tensor, N: int, index: Tensor) -> None:
    if index.dtype not in (torch.int64, torch.int32):
        raise DtypeError(f"index is {index.dtype}; image numbers want torch.int64 or torch.int32")
    if tuple(plain_shape(index)) != (N,):
        raise ShapeError(f"index is {tuple(index.shape)} but weight has {N} kernels; pass index of shape ({N},)")
    if index.device != x.device:
        raise DeviceError(f"index is on {index.device} but x is on {x.device}; move one of them")
    # On a device a look would wait for the numbers; a tracer or a fake tensor has none.
    if index.device.type == "cpu" and N and not (is_intercepted(x, index) or inside_functorch()):
        low, high = int(index.min()), int(index.max())
        if low < 0 or high >= x.shape[0]:
            raise ShapeError(f"index goes from {low} to {high} but x has images 0 to {x.shape[0] - 1}")
