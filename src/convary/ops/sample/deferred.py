# SPDX-License-Identifier: Apache-2.0
"""Strategy ``deferred``: an operator that a graph holds, and that chooses its strategy when it runs.

A convolution with B groups would bake the batch into a compiled graph, and unfolding, which does not, is the slowest
way on a GPU. The operator (``torch.ops.convary.deferred_conv``) is opaque to the compiler: it takes any batch, and runs
``grouped`` or, where that was measured or is in the device's table of costs, ``triton``. Its gradients are operators
too, and have no gradients of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from convary.ops.cost import measured
from convary.ops.dispatch import OPS, estimate, is_ranked
from convary.ops.geometry import Geometry, autocast_dtype
from convary.ops.problem import Problem, conv_problem
from convary.ops.sample import triton
from convary.ops.sample.arguments import SampleArguments
from convary.ops.sample.aten import add_bias
from convary.ops.shapes import is_channels_last


def why_not(problem: Problem) -> str | None:
    """Why a graph can't hold it, or None."""
    return None if problem.traced else "it is for graphs; a call chooses by itself"


def run(x: Tensor, weight: Tensor, bias: Tensor | None, index: Tensor | None, geometry: Geometry) -> Tensor:
    """``sample_conv`` after its checks."""
    dtype = autocast_dtype(x) or x.dtype
    y = torch.ops.convary.deferred_conv(x.to(dtype), weight.to(dtype), index, *geometry)
    return add_bias(y, bias)


def for_gpu(problem: Problem) -> str:
    """What a graph compiled for a GPU holds: products where no window overlaps another, else this operator."""
    return "bmm" if problem.T == 1 and problem.reach == problem.size else "deferred"


def _strategy(x: Tensor, weight: Tensor, index: Tensor | None, geometry: Geometry) -> str:
    """``triton`` where it is faster, as measured or as the device's table has it; else ``grouped``."""
    op = OPS["sample_conv"]
    problem = conv_problem("sample_conv", x, weight, geometry, batch=weight.shape[0], training=False)
    if triton.why_not(problem) is not None:
        return "grouped"
    names = ("grouped", "triton")
    if measured.is_on():
        arguments = SampleArguments(x, weight, None, index, geometry)
        measured.measure(problem, arguments, {name: op.strategies[name].run for name in names})
        if len(times := {k: v for k, v in (measured.known(problem) or {}).items() if k in names}) == len(names):
            return measured.preferred(times)
    if not is_ranked(op, problem, "triton"):
        return "grouped"
    return min(names, key=lambda name: estimate(problem, name))


def _forward(x: Tensor, weight: Tensor, index: Tensor | None, *settings: Any) -> Tensor:
    geometry = _geometry(settings)
    y = OPS["sample_conv"].strategies[_strategy(x, weight, index, geometry)].run(x, weight, None, index, geometry)
    return _formatted(x, y)


def _gradient_of_x(grad: Tensor, x: Tensor, weight: Tensor, index: Tensor | None, *settings: Any) -> Tensor:
    geometry = _geometry(settings)
    seen = x if index is None else x.index_select(0, index)
    if _strategy(x, weight, index, geometry) == "triton":
        found = _on_maps(triton.gradient_of_x, grad, seen, weight.contiguous(), geometry)
    else:
        found = _backward_of_grouped(grad, seen, weight, geometry, of_x=True)
    return _formatted(x, found if index is None else torch.zeros_like(x).index_add_(0, index, found))


def _gradient_of_weight(grad: Tensor, x: Tensor, weight: Tensor, index: Tensor | None, *settings: Any) -> Tensor:
    geometry = _geometry(settings)
    seen = x if index is None else x.index_select(0, index)
    if _strategy(x, weight, index, geometry) == "triton":
        return _on_maps(triton.gradient_of_weight, grad, seen, weight.contiguous(), geometry)
    return _backward_of_grouped(grad, seen, weight, geometry, of_x=False).contiguous()


def _on_maps(gradient: Any, grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """A gradient of the Triton kernels, to which a line is a map one row high."""
    if x.ndim > 3:
        return gradient(grad, x, weight, geometry)
    line = Geometry((1, *geometry.stride), (0, *geometry.padding), (1, *geometry.dilation), geometry.groups)
    return gradient(grad.unsqueeze(2), x.unsqueeze(2), weight.unsqueeze(3), line).squeeze(-2)


def _backward_of_grouped(grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, *, of_x: bool) -> Tensor:
    """The gradient of x (N, C, *S) or of the kernels (N, O, C/G, *k), with N groups for each of G."""
    N, O = weight.shape[:2]
    rank = x.ndim - 2
    found = torch.ops.aten.convolution_backward(
        grad.reshape(1, N * O, *grad.shape[2:]), x.reshape(1, -1, *x.shape[2:]),
        weight.reshape(N * O, *weight.shape[2:]), None, geometry.stride, geometry.padding, geometry.dilation, False,
        [0] * rank, N * geometry.groups, [of_x, not of_x, False],
    )  # fmt: skip
    return found[0].reshape(x.shape) if of_x else found[1].reshape(weight.shape)


def _geometry(settings: Sequence[Any]) -> Geometry:
    stride, padding, dilation, groups = settings
    return Geometry(tuple(stride), tuple(padding), tuple(dilation), groups)


def _formatted(x: Tensor, y: Tensor) -> Tensor:
    """What the compiler was told: y is in the memory format of x."""
    return y.contiguous(memory_format=torch.channels_last if is_channels_last(x) else torch.contiguous_format)


def _forward_fake(x: Tensor, weight: Tensor, index: Tensor | None, *settings: Any) -> Tensor:
    size = _geometry(settings).out_size(x.shape[2:], weight.shape[3:])
    return _formatted(x, x.new_empty(*weight.shape[:2], *size))


def _setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, weight, index, *ctx.settings = inputs
    ctx.save_for_backward(x, weight, index)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, index = ctx.saved_tensors
    given = (grad, x, weight, index, *ctx.settings)
    of_x = torch.ops.convary.deferred_conv_grad_x(*given) if ctx.needs_input_grad[0] else None
    of_weight = torch.ops.convary.deferred_conv_grad_weight(*given) if ctx.needs_input_grad[1] else None
    return of_x, of_weight, *[None] * (1 + len(ctx.settings))


_operators = torch.library.Library("convary", "FRAGMENT")
_TENSORS = "Tensor x, Tensor weight, Tensor? index"
_SETTINGS = "int[] stride, int[] padding, int[] dilation, int groups"
for _name, _schema, _run, _fake in (
    ("deferred_conv", f"({_TENSORS}, {_SETTINGS}) -> Tensor", _forward, _forward_fake),
    ("deferred_conv_grad_x", f"(Tensor grad, {_TENSORS}, {_SETTINGS}) -> Tensor", _gradient_of_x,
     lambda grad, x, *rest: _formatted(x, x.new_empty(x.shape))),
    ("deferred_conv_grad_weight", f"(Tensor grad, {_TENSORS}, {_SETTINGS}) -> Tensor", _gradient_of_weight,
     lambda grad, x, weight, *rest: weight.new_empty(weight.shape)),
):  # fmt: skip
    _operators.define(_name + _schema)
    _operators.impl(_name, _run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"convary::{_name}", _fake, lib=_operators)
torch.library.register_autograd("convary::deferred_conv", _backward, setup_context=_setup_context, lib=_operators)


def _flops(y: Sequence[int], weight: Sequence[int]) -> int:
    return 2 * torch.Size(y).numel() * torch.Size(weight[2:]).numel()


@register_flop_formula(torch.ops.convary.deferred_conv)
def _forward_flops(x: Sequence[int], weight: Sequence[int], *rest, out_shape: Any = None, **_) -> int:
    return _flops(out_shape, weight)


@register_flop_formula([torch.ops.convary.deferred_conv_grad_x, torch.ops.convary.deferred_conv_grad_weight])
def _gradient_flops(grad: Sequence[int], x: Sequence[int], weight: Sequence[int], *rest, **_) -> int:
    return _flops(grad, weight)
