# SPDX-License-Identifier: Apache-2.0
"""From the native kernels of an op to what torch sees: an autograd function, three operators, fakes and flops.

An op declares what differs in a :class:`NativeOp`. An eager call goes straight to its functions; the operators, in
``torch.ops.convary``, are for those who see each operation: tracers and dispatch modes. Of an op with kernels ``bank``
they are ``op``, ``op_grad_x`` and ``op_grad_bank`` (the gradients of the bank and of all that it is mixed by), and
these two have no gradient of their own. A compiled graph for inference holds ``op_forward`` instead: a gradient that is
registered with torch costs 28 us on every call, also where none is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from convary.errors import ConvaryError, DtypeError, ShapeError
from convary.ops.native import library
from convary.ops.native.autograd import apply, differentiable
from convary.ops.native.half import exactly, kept, wide, widened
from convary.ops.shapes import in_format_of, is_channels_last
from convary.ops.tracing import is_exported, is_intercepted, is_portable, needs_gradient

GEOMETRY = "int[] stride, int[] padding, int[] dilation, int groups"
_operators = torch.library.Library("convary", "DEF")
library.available()  # loaded now, because torch.compile asks for it but can't trace the loading


@dataclass(frozen=True)
class NativeOp:
    """The native kernels of an op, and what it takes to call them.

    Its tensors are x, the ``weights`` and, with ``bias``, a bias (O,) or (N, O). The settings are one named tuple; an
    operator takes its fields one by one.

    Attributes:
        name: Of the op.
        portable: Its strategy in torch's operations, which takes every dtype and has every gradient.
        weights: Schemas of the tensors that make the kernels; the kernels themselves come first.
        bias: Whether there is one.
        settings: Schema of the settings.
        kind: Class of the settings.
        check: The settings, from all tensors and settings of an operator; raises unless they fit, in shape and dtype:
            the kernels trust what they are told.
        y_shape: Of the shapes of x and of the kernels, and the settings.
        forward: y, in the memory format of x, of all tensors and the settings.
        gradient_of_x: Of the gradient of y, the shape of x, the weights and the settings.
        gradient_of_weights: Of the gradient of y, x, the weights and the settings: for each weight of numbers.
        again: y without a bias, of x, the weights and the settings, by operations that can be differentiated twice.
        flops: Of the shapes of y and of the kernels, and passes over the kernels: 2 for the gradients of the weights.
        result: The dtype of y, of all tensors.
        halves: Whether the kernels read and write bfloat16 as it lies.
        innermost: Whether they read and write features of two dimensions with channels innermost as they lie.
    """

    name: str
    portable: str
    weights: tuple[str, ...]
    bias: bool
    settings: str
    kind: Callable[..., Any]
    check: Callable[..., Any]
    y_shape: Callable[..., Sequence[int]]
    forward: Callable[..., Tensor]
    gradient_of_x: Callable[..., Tensor]
    gradient_of_weights: Callable[..., list[Tensor]]
    again: Callable[..., Tensor]
    flops: Callable[..., int]
    result: Callable[[Sequence[Tensor | None]], torch.dtype]
    halves: bool = False
    innermost: bool = False

    def __post_init__(self) -> None:
        """Declare the operators."""
        weights, bias = ", ".join(self.weights), "Tensor? bias, " if self.bias else ""
        schema = f"(Tensor x, {weights}, {bias}{self.settings}) -> Tensor"
        self._declare("", schema, _forward, _forward_fake, _forward_flops)
        self._declare("_forward", schema, _forward, _forward_fake, _forward_flops)
        if self.innermost:
            self._declare("_forward_last", schema, _forward_last, _forward_last_fake, _forward_flops)
        schema = f"(Tensor grad, SymInt[] size, {weights}, {self.settings}) -> Tensor"
        self._declare("_grad_x", schema, _grad_x, _grad_x_fake, _grad_x_flops)
        schema = f"(Tensor grad, Tensor x, {weights}, {self.settings}) -> Tensor[]"
        self._declare(self.suffix, schema, _grad_weights, _grad_weights_fake, _grad_weights_flops)
        torch.library.register_autograd(
            f"convary::{self.name}", _backward, setup_context=self._setup_context, lib=_operators
        )

    def run(self, *arguments: Any) -> Tensor:
        """The op's strategy ``native``: y of all tensors and the settings, after the op's checks.

        Numbers of 16 bits are widened for graphs, whose operators take nothing else. Elsewhere features become bfloat16
        where that is asked for, as for torch's own convolutions.
        """
        *tensors, settings = arguments
        dtype = self.result(tensors)
        if is_intercepted(tensors[0], tensors[1]):
            x, *weights = widened(tensors)
            suffix = "" if is_portable() or needs_gradient(*tensors) else "_forward"
            if suffix and self.innermost and not is_exported() and is_channels_last(tensors[0]):
                suffix = "_forward_last"
            y = self.operator(suffix)(x, *weights, *settings)
            return in_format_of(tensors[0], y.to(dtype))
        if self.halves and dtype is torch.bfloat16:
            tensors[0] = exactly(tensors[0], dtype)
        if needs_gradient(*tensors):
            return apply(_Eager, *tensors, settings, self, dtype)
        return exactly(self.forward(*self.taken(tensors, dtype), settings), dtype)

    def taken(self, tensors: Sequence[Tensor | None], dtype: torch.dtype) -> list[Tensor | None]:
        """The tensors as the kernels take them, for a result of this dtype."""
        return kept(tensors, dtype) if self.halves else widened(tensors)

    def check_dtypes(self, *tensors: Tensor | None) -> None:
        """Raise DtypeError unless the kernels take the tensors."""
        for tensor in tensors:
            if tensor is not None and tensor.dtype is not torch.float32:
                raise DtypeError(
                    f"native {self.name} takes torch.float32; got {tensor.dtype}; "
                    f"cast, or force strategy {self.portable}"
                )

    @property
    def suffix(self) -> str:
        """Of the operator that is the gradient of the weights."""
        return f"_grad_{self.weights[0].split()[-1]}"

    def operator(self, suffix: str) -> Any:
        """One of its operators."""
        return getattr(torch.ops.convary, self.name + suffix).default

    def _declare(self, suffix: str, schema: str, cpu: Callable, fake: Callable, flops: Callable) -> None:
        """One operator: what it does, the same for tensors without numbers, and its arithmetic."""
        name = self.name + suffix
        _operators.define(name + schema)
        _operators.impl(name, lambda *arguments: cpu(self, *arguments), "CPU")
        torch.library.register_fake(f"convary::{name}", lambda *arguments: fake(self, *arguments), lib=_operators)
        if "grad" in suffix:
            torch.library.register_autograd(f"convary::{name}", self._no_gradient, lib=_operators)
        shapes = register_flop_formula(getattr(torch.ops.convary, name))
        shapes(lambda *arguments, out_shape=None, **_: flops(self, *arguments[:3], out_shape))

    def _no_gradient(self, ctx, *grads) -> None:
        raise ConvaryError(
            "native gradients have no gradient of their own; differentiate the convolution itself with "
            "create_graph=True outside of torch.compile, or force a strategy of torch's operations: "
            f"ops.strategy({self.portable!r})"
        )

    def _setup_context(self, ctx, inputs: tuple, output: Tensor) -> None:
        count = 1 + len(self.weights) + self.bias
        settings = [tuple(value) if isinstance(value, list | tuple) else value for value in inputs[count:]]
        _keep(ctx, self, inputs[:count], self.kind(*settings))


class _Eager(torch.autograd.Function):
    """Forward and backward by the native kernels; keeps x and the weights as they are given, no mixed kernels."""

    @staticmethod
    def forward(ctx, *arguments: Any) -> Tensor:
        *tensors, settings, op, dtype = arguments
        _keep(ctx, op, tensors, settings)
        return exactly(op.forward(*op.taken(tensors, dtype), settings), dtype)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        return *_gradients(ctx, grad, operators=is_intercepted(grad)), None, None, None


def _backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *_gradients(ctx, grad, operators=True), *[None] * len(ctx.settings)


def _keep(ctx, op: NativeOp, tensors: Sequence[Tensor | None], settings: Any) -> None:
    """Keep in an autograd context what :func:`_gradients` needs."""
    count = 1 + len(op.weights)
    ctx.op, ctx.settings = op, settings
    ctx.bias_ndims = [None if bias is None else bias.ndim for bias in tensors[count:]]
    ctx.save_for_backward(*tensors[:count])


def _gradients(ctx, grad: Tensor, *, operators: bool) -> Iterable[Tensor | None]:
    """The gradients of all tensors that are asked for."""
    op, settings = ctx.op, ctx.settings
    saved = ctx.saved_tensors
    x, *weights = widened(saved) if operators else op.taken(saved, grad.dtype)
    assert x is not None
    if x.dtype is torch.float32:
        grad = wide(grad)  # autograd narrows each gradient by itself
    needs_x, *needs = ctx.needs_input_grad[: 1 + len(weights)]
    needs_bias = zip(ctx.bias_ndims, ctx.needs_input_grad[1 + len(weights) :], strict=False)
    bias = [_gradient_of_bias(grad, ndim) if needed else None for ndim, needed in needs_bias]
    if torch.is_grad_enabled():
        with torch.autocast("cpu", enabled=False):
            again = lambda *tensors: op.again(*widened(tensors), settings)  # noqa: E731
            return *differentiable(again, saved, (needs_x, *needs), wide(grad)), *bias
    if operators:
        grad_x = op.operator("_grad_x")(grad, x.shape, *weights, *settings) if needs_x else None
        found = op.operator(op.suffix)(grad, x, *weights, *settings) if any(needs) else ()
    else:
        grad_x = op.gradient_of_x(grad, x.shape, *weights, settings) if needs_x else None
        found = op.gradient_of_weights(grad, x, *weights, settings) if any(needs) else ()
    rest = iter(found)
    return grad_x, *[next(rest, None) if _is_of_numbers(w) else None for w in weights], *bias


def _is_of_numbers(weight: Tensor | None) -> bool:
    return weight is not None and weight.is_floating_point()


def _gradient_of_bias(grad: Tensor, ndim: int) -> Tensor:
    by_sample = grad.flatten(2).sum(2, dtype=torch.float32)
    return by_sample if ndim == 2 else by_sample.sum(0)


_settled: dict[tuple, Any] = {}
_SETTLED_KEPT = 4096


def _settle(op: NativeOp, tensors: Sequence[Tensor | None], settings: Sequence) -> Any:
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


def _forward(op: NativeOp, x: Tensor, kernels: Tensor, *rest) -> Tensor:
    count = len(op.weights) - 1 + op.bias
    tensors = rest[:count]
    settings = _settle(op, (x, kernels, *tensors), rest[count:])
    if x.numel() and kernels.numel():
        return op.forward(x.contiguous(), kernels, *tensors, settings)
    y = x.new_zeros(op.y_shape(x.shape, kernels.shape, settings))  # of nothing: the bias alone
    bias = tensors[-1] if op.bias else None
    return y if bias is None else y + bias.reshape(-1, y.shape[1], *[1] * (y.ndim - 2))


def _forward_last(op: NativeOp, x: Tensor, *rest) -> Tensor:
    count = len(op.weights) + op.bias
    settings = _settle(op, (x, *rest[:count]), rest[count:])
    if x.numel() and rest[0].numel():
        x = x.contiguous(memory_format=torch.channels_last)
        return op.forward(x, *rest[:count], settings).contiguous(memory_format=torch.channels_last)
    return _forward(op, x, *rest).contiguous(memory_format=torch.channels_last)


def _forward_last_fake(op: NativeOp, x: Tensor, *rest) -> Tensor:
    return _forward_fake(op, x, *rest).contiguous(memory_format=torch.channels_last)


def _forward_fake(op: NativeOp, x: Tensor, kernels: Tensor, *rest) -> Tensor:
    return x.new_empty(op.y_shape(x.shape, kernels.shape, op.check(x, kernels, *rest)))


def _check_all(op: NativeOp, tensors: Sequence[Tensor | None], settings: Sequence) -> Any:
    """``op.check`` itself, for tensors without numbers, whose sizes may be symbols."""
    return op.check(*tensors, *settings)


def _checked(
    check: Callable[..., Any], op: NativeOp, grad: Tensor, x: Tensor, *rest
) -> tuple[tuple[Tensor | None, ...], Any]:
    """The weights and the settings of a gradient, which has no bias."""
    count = len(op.weights)
    settings = check(op, (x, *rest[:count], *[None] * op.bias), rest[count:])
    shape = tuple(op.y_shape(x.shape, rest[0].shape, settings))
    if tuple(grad.shape) != shape or grad.dtype is not x.dtype:
        raise ShapeError(f"the gradient is {tuple(grad.shape)}, {grad.dtype}; that of y must be {shape}, {x.dtype}")
    return rest[:count], settings


def _grad_x(op: NativeOp, grad: Tensor, size: Sequence[int], *rest) -> Tensor:
    x = grad.new_empty(()).expand(size)  # only its shape counts
    weights, settings = _checked(_settle, op, grad, x, *rest)
    if x.numel() and grad.numel() and rest[0].numel():
        return op.gradient_of_x(grad.contiguous(), x.shape, *weights, settings)
    return grad.new_zeros(size)


def _grad_x_fake(op: NativeOp, grad: Tensor, size: Sequence[int], *rest) -> Tensor:
    x = grad.new_empty(size)
    _checked(_check_all, op, grad, x, *rest)
    return x


def _grad_weights(op: NativeOp, grad: Tensor, x: Tensor, *rest) -> list[Tensor]:
    weights, settings = _checked(_settle, op, grad, x, *rest)
    if x.numel() and grad.numel() and rest[0].numel():
        return op.gradient_of_weights(grad, x.contiguous(), *weights, settings)
    return [w.new_zeros(w.shape) for w in weights if w is not None and _is_of_numbers(w)]


def _grad_weights_fake(op: NativeOp, grad: Tensor, x: Tensor, *rest) -> list[Tensor]:
    weights, _ = _checked(_check_all, op, grad, x, *rest)
    return [w.new_empty(w.shape) for w in weights if w is not None and _is_of_numbers(w)]


def _forward_flops(op: NativeOp, x: Sequence[int], kernels: Sequence[int], _, out: Sequence[int]) -> int:
    return op.flops(out, kernels, 1)


def _grad_x_flops(op: NativeOp, grad: Sequence[int], size: Sequence[int], kernels: Sequence[int], _) -> int:
    return op.flops(grad, kernels, 1)


def _grad_weights_flops(op: NativeOp, grad: Sequence[int], x: Sequence[int], kernels: Sequence[int], _) -> int:
    return op.flops(grad, kernels, 2)
