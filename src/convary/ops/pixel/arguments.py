# SPDX-License-Identifier: Apache-2.0
"""The arguments of ``pixel_conv``: spelled out, checked, and the problem that they pose."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from convary.ops.pixel.window import Window, check, resolve
from convary.ops.problem import Problem
from convary.ops.shapes import is_channels_last, plain_shape
from convary.ops.tracing import is_traced


class PixelArguments(NamedTuple):
    """See :class:`convary.ops.dispatch.Arguments`."""

    x: Tensor
    weight: Tensor
    window: Window

    images = None

    def tensors(self) -> tuple[Tensor | None, ...]:
        """X and the kernels."""
        return self.x, self.weight

    def check(self) -> PixelArguments:
        """Raise unless the tensors fit together."""
        check(*self)
        return self

    def problem(self, *, training: bool, obstacle: str | None) -> Problem:
        """A depthwise convolution of C channels, with kernels that G groups share."""
        x, weight, window = self
        traced = is_traced(x, weight)
        (B, C, *size), (_, G, _, *out_size) = plain_shape(x), plain_shape(weight)
        return Problem(
            op="pixel_conv",
            B=B,
            C=C,
            O=C,
            G=G,
            K=1,
            kernel_size=window.kernel_size,
            size=tuple(size),
            out_size=tuple(out_size),
            stride=window.stride,
            axes=(),
            shared=(),
            training=training,
            traced=traced,
            device=str(x.device),
            dtype=x.dtype,
            reach=tuple(s + 2 * p for s, p in zip(size, window.padding, strict=True)),
            obstacle=obstacle,
            channels_last=not traced and is_channels_last(x),
        )

    def nothing(self) -> Tensor | None:
        """Zeros where a tensor is empty."""
        x, weight, _ = self
        if x.numel() and weight.numel():
            return None
        dtype = torch.promote_types(x.dtype, weight.dtype)  # they differ under autocast
        return x.new_zeros(*x.shape[:2], *weight.shape[3:], dtype=dtype) + 0 * (x.sum() + weight.sum())


def spell(x: Tensor, weight: Tensor, *window, **named) -> PixelArguments:
    """The arguments of a call; see :func:`convary.ops.pixel_conv`."""
    return PixelArguments(x, weight, resolve(x, weight, *window, **named))
