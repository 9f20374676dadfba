# SPDX-License-Identifier: Apache-2.0
"""What the operators of an op do, each the same for tensors without numbers (``_fake``), and their arithmetic.

The kernels trust what they are told, and who calls an operator may say anything: shapes and dtypes are checked here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor

from convary.errors import ShapeError
from convary.ops.native.kernels import Kernels


def is_of_numbers(weight: Tensor | None) -> TypeGuard[Tensor]:
    """Whether a weight has a gradient: there may be none, or one of whole numbers."""
    return weight is not None and weight.is_floating_point()


_settled: dict[tuple, Any] = {}
_SETTLED_KEPT = 4096


def _settle(op: Kernels, tensors: Sequence[Tensor | None], settings: Sequence) -> Any:
    """What ``op.check`` answers; remembered by shapes and dtypes, for a graph calls its operators again and again."""
    if any(t is not None and not t.is_floating_point() for t in tensors):  # whole numbers are checked one by one
        return op.check(*tensors, *settings)
    given = [tuple(value) if isinstance(value, list) else value for value in settings]
    key = (op.name, *[None if t is None else (t.shape, t.dtype) for t in tensors], *given)
    if key not in _settled:
        found = op.check(*tensors, *settings)
        if len(_settled) >= _SETTLED_KEPT:
            _settled.clear()
        _settled[key] = found
    return _settled[key]


def forward(op: Kernels, x: Tensor, kernels: Tensor, *rest) -> Tensor:
    """y; of nothing, the bias alone."""
    count = len(op.weights) - 1 + op.bias
    tensors = rest[:count]
    settings = _settle(op, (x, kernels, *tensors), rest[count:])
    if x.numel() and kernels.numel():
        return op.forward(x.contiguous(), kernels, *tensors, settings)
    y = x.new_zeros(op.y_shape(x.shape, kernels.shape, settings))
    bias = tensors[-1] if op.bias else None
    return y if bias is None else y + bias.reshape(-1, y.shape[1], *[1] * (y.ndim - 2))


def forward_last(op: Kernels, x: Tensor, *rest) -> Tensor:
    """Y of features with channels innermost, which are read and written as they lie."""
    count = len(op.weights) + op.bias
    settings = _settle(op, (x, *rest[:count]), rest[count:])
    if x.numel() and rest[0].numel():
        x = x.contiguous(memory_format=torch.channels_last)
        return op.forward(x, *rest[:count], settings).contiguous(memory_format=torch.channels_last)
    return forward(op, x, *rest).contiguous(memory_format=torch.channels_last)


def forward_last_fake(op: Kernels, x: Tensor, *rest) -> Tensor:
    """As :func:`forward_last`."""
    return forward_fake(op, x, *rest).contiguous(memory_format=torch.channels_last)


def forward_fake(op: Kernels, x: Tensor, kernels: Tensor, *rest) -> Tensor:
    """As :func:`forward`."""
    return x.new_empty(op.y_shape(x.shape, kernels.shape, op.check(x, kernels, *rest)))


def _check_all(op: Kernels, tensors: Sequence[Tensor | None], settings: Sequence) -> Any:
    """``op.check`` itself, for tensors without numbers, whose sizes may be symbols."""
    return op.check(*tensors, *settings)


def _checked(
    check: Callable[..., Any], op: Kernels, grad: Tensor, x: Tensor, *rest
) -> tuple[tuple[Tensor | None, ...], Any]:
    """The weights and the settings of a gradient, which has no bias."""
    count = len(op.weights)
    settings = check(op, (x, *rest[:count], *[None] * op.bias), rest[count:])
    shape = tuple(op.y_shape(x.shape, rest[0].shape, settings))
    if tuple(grad.shape) != shape or grad.dtype is not x.dtype:
        raise ShapeError(f"the gradient is {tuple(grad.shape)}, {grad.dtype}; that of y must be {shape}, {x.dtype}")
    return rest[:count], settings


def grad_x(op: Kernels, grad: Tensor, size: Sequence[int], *rest) -> Tensor:
    """The gradient of x, which has this size."""
    x = grad.new_empty(()).expand(size)  # only its shape counts
    weights, settings = _checked(_settle, op, grad, x, *rest)
    if x.numel() and grad.numel() and rest[0].numel():
        return op.gradient_of_x(grad.contiguous(), x.shape, *weights, settings)
    return grad.new_zeros(size)


def grad_x_fake(op: Kernels, grad: Tensor, size: Sequence[int], *rest) -> Tensor:
    """As :func:`grad_x`."""
    x = grad.new_empty(size)
    _checked(_check_all, op, grad, x, *rest)
    return x


def grad_weights(op: Kernels, grad: Tensor, x: Tensor, *rest) -> list[Tensor]:
    """The gradients of the weights of numbers."""
    weights, settings = _checked(_settle, op, grad, x, *rest)
    if x.numel() and grad.numel() and rest[0].numel():
        return op.gradient_of_weights(grad, x.contiguous(), *weights, settings)
    return [w.new_zeros(w.shape) for w in weights if is_of_numbers(w)]


def grad_weights_fake(op: Kernels, grad: Tensor, x: Tensor, *rest) -> list[Tensor]:
    """As :func:`grad_weights`."""
    weights, _ = _checked(_check_all, op, grad, x, *rest)
    return [w.new_empty(w.shape) for w in weights if is_of_numbers(w)]


def forward_flops(op: Kernels, x: Sequence[int], kernels: Sequence[int], _, out: Sequence[int]) -> int:
    """Of :func:`forward`."""
    return op.flops(out, kernels, 1)


def grad_x_flops(op: Kernels, grad: Sequence[int], size: Sequence[int], kernels: Sequence[int], _) -> int:
    """Of :func:`grad_x`."""
    return op.flops(grad, kernels, 1)


def grad_weights_flops(op: Kernels, grad: Sequence[int], x: Sequence[int], kernels: Sequence[int], _) -> int:
    """Of :func:`grad_weights`."""
    return op.flops(grad, kernels, 2)
