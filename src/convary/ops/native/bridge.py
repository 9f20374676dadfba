# SPDX-License-Identifier: Apache-2.0
"""From the native kernels of an op to what torch sees: an autograd function, three operators, fakes and flops.

An op declares what differs in a :class:`NativeOp`. An eager call goes straight to its functions; the operators, in
``torch.ops.convary``, are for those who see each operation: tracers and dispatch modes. Of an op with kernels ``bank``
they are ``op``, ``op_grad_x`` and ``op_grad_bank`` (the gradients of the bank and of all that it is mixed by), and
these two have no gradient of their own. A compiled graph for inference holds ``op_forward`` instead: a gradient that is
registered with torch costs 28 us on every call, also where none is asked for. ``op_forward_last`` is that for features
in channels_last, which stay so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from convary.errors import ConvaryError
from convary.ops.native import library, operators
from convary.ops.native.autograd import apply, differentiable
from convary.ops.native.half import exactly, wide, widened
from convary.ops.native.kernels import Kernels
from convary.ops.shapes import in_format_of, is_channels_last
from convary.ops.tracing import is_exported, is_intercepted, is_portable, needs_gradient

GEOMETRY = "int[] stride, int[] padding, int[] dilation, int groups"
_operators = torch.library.Library("convary", "DEF")
library.available()  # loaded now, because torch.compile asks for it but can't trace the loading


@dataclass(frozen=True)
class NativeOp(Kernels):
    """An op's native kernels with an autograd function and with operators in ``torch.ops.convary``."""

    def __post_init__(self) -> None:
        """Declare the operators."""
        weights, bias = ", ".join(self.weights), "Tensor? bias, " if self.bias else ""
        schema = f"(Tensor x, {weights}, {bias}{self.settings}) -> Tensor"
        of = operators
        self._declare("", schema, of.forward, of.forward_fake, of.forward_flops)
        self._declare("_forward", schema, of.forward, of.forward_fake, of.forward_flops)
        if self.innermost:
            self._declare("_forward_last", schema, of.forward_last, of.forward_last_fake, of.forward_flops)
        schema = f"(Tensor grad, SymInt[] size, {weights}, {self.settings}) -> Tensor"
        self._declare("_grad_x", schema, of.grad_x, of.grad_x_fake, of.grad_x_flops)
        schema = f"(Tensor grad, Tensor x, {weights}, {self.settings}) -> Tensor[]"
        self._declare(self.suffix, schema, of.grad_weights, of.grad_weights_fake, of.grad_weights_flops)
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
            suffix = "" if is_portable() or needs_gradient(*tensors) else "_forward"
            if suffix and self.innermost and not is_exported() and is_channels_last(tensors[0]):
                suffix = "_forward_last"
            y = self.operator(suffix)(*widened(tensors), *settings)
            return in_format_of(tensors[0], y.to(dtype))
        if self.halves and dtype is torch.bfloat16:
            tensors[0] = exactly(tensors[0], dtype)
        if needs_gradient(*tensors):
            return apply(_Eager, *tensors, settings, self, dtype)
        return exactly(self.forward(*self.taken(tensors, dtype), settings), dtype)

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
        return *_gradients(ctx, grad, recorded=is_intercepted(grad)), None, None, None


def _backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *_gradients(ctx, grad, recorded=True), *[None] * len(ctx.settings)


def _keep(ctx, op: NativeOp, tensors: Sequence[Tensor | None], settings: Any) -> None:
    """Keep in an autograd context what :func:`_gradients` needs."""
    count = 1 + len(op.weights)
    ctx.op, ctx.settings = op, settings
    ctx.bias_ndims = [None if bias is None else bias.ndim for bias in tensors[count:]]
    ctx.save_for_backward(*tensors[:count])


def _gradients(ctx, grad: Tensor, *, recorded: bool) -> Iterable[Tensor | None]:
    """The gradients of all tensors that are asked for; by the operators where a graph records them."""
    op, settings = ctx.op, ctx.settings
    saved = ctx.saved_tensors
    x, *weights = widened(saved) if recorded else op.taken(saved, grad.dtype)
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
    if recorded:
        grad_x = op.operator("_grad_x")(grad, x.shape, *weights, *settings) if needs_x else None
        found = op.operator(op.suffix)(grad, x, *weights, *settings) if any(needs) else ()
    else:
        grad_x = op.gradient_of_x(grad, x.shape, *weights, settings) if needs_x else None
        found = op.gradient_of_weights(grad, x, *weights, settings) if any(needs) else ()
    rest = iter(found)
    return grad_x, *[next(rest, None) if operators.is_of_numbers(w) else None for w in weights], *bias


def _gradient_of_bias(grad: Tensor, ndim: int) -> Tensor:
    by_sample = grad.flatten(2).sum(2, dtype=torch.float32)
    return by_sample if ndim == 2 else by_sample.sum(0)
