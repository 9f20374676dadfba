# SPDX-License-Identifier: Apache-2.0
"""What a strategy and its cost depend on: the sizes of one call."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from convary.ops.coefficients import Coefficients
from convary.ops.geometry import Geometry, autocast_dtype
from convary.ops.shapes import is_channels_last, plain_shape
from convary.ops.tracing import holds_sizes, is_traced


@dataclass(frozen=True)
class Problem:
    """What a strategy needs to know about one call, in plain numbers. B counts kernels (instances with ``index``).

    ``reach`` is the padded size of each axis, ``obstacle`` why the native kernels can't take the tensors, and
    ``batch_fixed`` says that a graph is being exported for this batch alone.
    """

    op: str
    B: int
    C: int
    O: int
    G: int
    K: int
    kernel_size: tuple[int, ...]
    size: tuple[int, ...]
    out_size: tuple[int, ...]
    stride: tuple[int, ...]
    axes: tuple[str, ...]
    shared: tuple[str, ...]
    training: bool
    traced: bool
    device: str
    dtype: torch.dtype
    reach: tuple[int, ...] = ()
    obstacle: str | None = None
    batch_fixed: bool = False
    channels_last: bool = False

    @property
    def T(self) -> int:
        """Taps of a kernel."""
        return prod(self.kernel_size)

    @property
    def P(self) -> int:
        """Output positions of a sample."""
        return prod(self.out_size)

    @property
    def kernel_numel(self) -> int:
        """Weights of one kernel."""
        return self.O * (self.C // self.G) * self.T


def conv_problem(
    op: str,
    x: Tensor,
    kernels: Tensor,
    geometry: Geometry,
    *,
    batch: int,
    training: bool,
    coeffs: Coefficients | None = None,
    obstacle: str | None = None,
) -> Problem:
    """The problem that a convolution by a bank, or by a kernel per sample, poses."""
    axes = () if coeffs is None else tuple(coeffs.factors())
    traced = is_traced(x, kernels)
    (_, C, *size), (K, O, _, *kernel_size) = plain_shape(x), plain_shape(kernels)
    return Problem(
        op=op,
        B=batch,
        C=C,
        O=O,
        G=geometry.groups,
        K=K if coeffs is not None else 1,
        kernel_size=tuple(kernel_size),
        size=tuple(size),
        out_size=tuple(geometry.out_size(size, kernel_size)),
        stride=geometry.stride,
        axes=axes,
        shared=() if coeffs is None else tuple(axis for axis in axes if coeffs.shared(axis) is not None),
        training=training,
        traced=traced,
        device=str(x.device),
        dtype=autocast_dtype(x) or x.dtype,
        reach=tuple(s + 2 * p for s, p in zip(size, geometry.padding, strict=True)),
        obstacle=obstacle,
        batch_fixed=holds_sizes(batch) and batch > 0,  # no convolution has zero groups
        channels_last=not traced and is_channels_last(x),
    )
