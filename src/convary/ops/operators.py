# SPDX-License-Identifier: Apache-2.0
"""The native kernels as torch's operators: how one is declared, and the checks that all of them share.

An eager call goes straight to ``native_conv`` or ``native_sample``; the operators are for those who watch operations go
by: tracers and dispatch modes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from convary.errors import ConvaryError, DtypeError, ShapeError
from convary.ops import native

GEOMETRY = "int[] stride, int[] padding, int[] dilation, int groups"
_library = torch.library.Library("convary", "DEF")
native.available()  # loaded now, because torch.compile asks for it but can't trace the loading


def no_gradient(ctx, *grads) -> None:
    """The autograd formula of an operator that is a gradient itself.

    Raises:
        ConvaryError: always.
    """
    raise ConvaryError(
        "native gradients have no gradient of their own; differentiate the convolution itself with "
        "create_graph=True outside of torch.compile, or force a strategy of torch's operations: "
        "ops.strategy('bmm'), or 'taps' for pixel_conv"
    )


def register(
    name: str,
    signature: str,
    cpu: Callable,
    fake: Callable,
    flops: Callable[..., int],
    backward: Callable = no_gradient,
    **setup,
) -> None:
    """Declare ``torch.ops.convary.name``.

    Args:
        name: Of the operator.
        signature: Its arguments and results, as in a schema of torch.
        cpu: What it does.
        fake: The same for tensors without numbers.
        flops: From the shapes of its arguments and ``out_shape``.
        backward: Its autograd formula.
        **setup: ``setup_context`` of the formula.
    """
    _library.define(name + signature)
    _library.impl(name, cpu, "CPU")
    torch.library.register_fake(f"convary::{name}", fake, lib=_library)
    torch.library.register_autograd(f"convary::{name}", backward, lib=_library, **setup)
    register_flop_formula(getattr(torch.ops.convary, name))(flops)


def flop_formulas(flops: Callable[[Sequence[int], Sequence[int]], int]) -> tuple[Callable[..., int], ...]:
    """Flop formulas of a convolution by given kernels and of its gradients, which cost what it costs.

    Args:
        flops: From the shapes of y, or of its gradient, and of the kernels.

    Returns:
        For the operators (x, weight, ...) to y, (grad, size of x, weight, ...) and (grad, x, size of weight, ...).
    """

    def conv(x_shape, weight_shape, *rest, out_shape: Sequence[int], **_) -> int:
        return flops(out_shape, weight_shape)

    def grad_x(grad_shape, size, weight_shape, *rest, **_) -> int:
        return flops(grad_shape, weight_shape)

    def grad_weight(grad_shape, x_shape, size, *rest, **_) -> int:
        return flops(grad_shape, size)

    return conv, grad_x, grad_weight


def check_dtype(x: Tensor, op: str, other: str = "bmm") -> None:
    """Raise DtypeError unless the kernels take x; ``other`` is a strategy that takes every dtype."""
    if x.dtype is not torch.float32:
        raise DtypeError(f"native {op} takes torch.float32; got {x.dtype}; cast, or force strategy {other}")


def check_grad(grad: Tensor, shape: Sequence[int], like: Tensor) -> None:
    """Raise ShapeError unless grad has the shape of y and the dtype of ``like``."""
    if tuple(grad.shape) != tuple(shape) or grad.dtype is not like.dtype:
        raise ShapeError(
            f"the gradient is {tuple(grad.shape)}, {grad.dtype}; that of y must be {tuple(shape)}, {like.dtype}"
        )


def shaped(like: Tensor, size: Sequence[int]) -> Tensor:
    """A stand-in for a tensor of which only the shape counts: one number for all."""
    return like.new_empty(()).expand(size)


def of_nothing(x: Tensor, shape: Sequence[int], row: Tensor | None) -> Tensor:
    """A convolution (N, O, *S_out) over no inputs: the bias (O,) or (N, O) alone."""
    y = x.new_zeros(shape)
    return y if row is None else y + row.reshape(-1, shape[1], *[1] * (len(shape) - 2))


def in_format_of(x: Tensor, y: Tensor) -> Tensor:
    """The output y, in channels_last where x is, as torch's convolutions answer."""
    if x.ndim == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last):
        return y.contiguous(memory_format=torch.channels_last)
    return y
