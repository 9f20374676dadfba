# SPDX-License-Identifier: Apache-2.0
"""Which kernel goes with which image: the checks of a kernel per sample, or per instance."""

from __future__ import annotations

import torch
from torch import Tensor

from convary.errors import DeviceError, DtypeError, ShapeError
from convary.ops.geometry import autocasting, check_bias
from convary.ops.shapes import plain_shape
from convary.ops.strategy import inside_functorch, is_watched


def check_kernels(x: Tensor, weight: Tensor, bias: Tensor | None, index: Tensor | None) -> None:
    """Raise unless there is a kernel for every sample, or an image for every kernel, and a bias that fits.

    Raises:
        ShapeError, DtypeError, DeviceError: the tensors do not fit together.
    """
    (N, O), B = plain_shape(weight)[:2], plain_shape(x)[0]
    if index is None and N != B:
        raise ShapeError(
            f"weight has {N} samples but x has a batch of {B}; pass one kernel per sample, "
            f"or index=({N},) to map kernels to images"
        )
    if index is not None:
        _check_index(x, N, index)
    if bias is not None and tuple(plain_shape(bias)) not in ((O,), (N, O)):
        given = tuple(plain_shape(bias))
        raise ShapeError(f"bias is {given}; {N} kernels of {O} output channels want ({O},) or ({N}, {O})")
    if bias is not None:
        check_bias(bias, weight, mixed_dtypes=autocasting(x))


def _check_index(x: Tensor, N: int, index: Tensor) -> None:
    if index.dtype not in (torch.int64, torch.int32):
        raise DtypeError(f"index is {index.dtype}; image numbers want torch.int64 or torch.int32")
    if tuple(plain_shape(index)) != (N,):
        raise ShapeError(f"index is {tuple(index.shape)} but weight has {N} kernels; pass index of shape ({N},)")
    if index.device != x.device:
        raise DeviceError(f"index is on {index.device} but x is on {x.device}; move one of them")
    # On a device a look would wait for the numbers; a tracer or a fake tensor has none.
    if index.device.type == "cpu" and N and not (is_watched(x, index) or inside_functorch()):
        low, high = int(index.min()), int(index.max())
        if low < 0 or high >= x.shape[0]:
            raise ShapeError(f"index goes from {low} to {high} but x has images 0 to {x.shape[0] - 1}")
