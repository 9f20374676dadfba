# SPDX-License-Identifier: Apache-2.0
"""Shapes, said so that every recorder and every converter that reads its graph understands them; memory formats."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor


def plain_shape(tensor: Tensor) -> torch.Size:
    """``tensor.shape`` as numbers in ``torch.jit.trace`` too, which would record the question.

    For what no input changes, such as channels and kernel sizes: a graph that computes them is none that ONNX's
    TorchScript exporter or pnnx can write, for these want them constant. And for checks, which are not recorded.
    """
    if torch.compiler.is_compiling() or (state := torch._C._get_tracing_state()) is None:
        return tensor.shape
    resume = torch._C._set_tracing_state  # pyright: ignore[reportAttributeAccessIssue]
    resume(None)
    try:
        return tensor.shape
    finally:
        resume(state)


def unflatten(tensor: Tensor, axis: int, sizes: Sequence[int]) -> Tensor:
    """``tensor.unflatten(axis, sizes)`` by a reshape, which opset 12, pnnx and free sizes in a trace take.

    One of the ``sizes`` may be -1 where no input changes the axis.
    """
    axis %= tensor.ndim
    if any(type(size) is int and size == -1 for size in sizes):  # a trace's sizes are tensors, and not to be compared
        rest = plain_shape(tensor)[axis] // -prod(sizes)  # the others' product
        sizes = [rest if size == -1 else size for size in sizes]
    return tensor.reshape(*tensor.shape[:axis], *sizes, *tensor.shape[axis + 1 :])


def is_channels_last(x: Tensor) -> bool:
    """Whether features are dense with channels innermost, and not row-major as well."""
    return x.ndim == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def in_format_of(x: Tensor, y: Tensor) -> Tensor:
    """The output y, in channels_last where x is, as torch's convolutions answer."""
    return y.contiguous(memory_format=torch.channels_last) if is_channels_last(x) else y
