# SPDX-License-Identifier: Apache-2.0
"""Strategy ``taps`` of ``pixel_conv``: one pass per tap over a shifted view of x; no window is ever copied.

Beside x, weight and y there is one padded copy of x, and in the backward pass its gradient and one product of y's size.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from convary.ops.native.autograd import apply, differentiable
from convary.ops.pixel.window import Window
from convary.ops.shapes import in_format_of, plain_shape, unflatten
from convary.ops.tracing import in_forward_mode, inside_functorch, is_traced


def run(x: Tensor, weight: Tensor, window: Window) -> Tensor:
    """``pixel_conv`` after its checks."""
    dtype = torch.promote_types(x.dtype, weight.dtype)  # they differ under autocast
    features, weight = x.to(dtype), weight.to(dtype)
    if is_traced(x, weight) or inside_functorch() or in_forward_mode():
        y = sum_of_taps(features, weight, window)
    else:
        y = apply(_Taps, features, weight, window)
    return in_format_of(x, y)


def sum_of_taps(x: Tensor, weight: Tensor, window: Window) -> Tensor:
    """The sum in operations that every transform of torch knows; a compiler makes one loop of them."""
    y, G = None, plain_shape(weight)[1]
    padded = x if window.border == "clamp" else _pad(x, window.padding, window.border)
    for weight_t, tap in zip(weight.unbind(2), _taps(window), strict=True):
        seen = _look(padded, tap, window)
        if window.scale_factor > 1:  # no split axes as below: Core ML has five at most
            seen = F.interpolate(seen, scale_factor=float(window.scale_factor), mode="nearest")
        term = weight_t.unsqueeze(2) * _by_group(seen, G, window)
        y = term if y is None else y + term
    assert y is not None  # T is at least 1
    return _ungroup(y, window)


class _Taps(torch.autograd.Function):
    """Keeps x and weight for the backward pass and nothing else."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, window: Window) -> Tensor:
        ctx.window = window
        ctx.save_for_backward(x, weight)
        y = x.new_zeros(*x.shape[:2], *weight.shape[3:])
        out = _by_window(_by_group(y, weight.shape[1], window), window)
        for weight_t, seen in zip(_weights(weight, window), _looks(x, weight.shape[1], window), strict=True):
            out.addcmul_(weight_t, seen)
        return y

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        if torch.is_grad_enabled():
            needed = ctx.needs_input_grad[:2]
            again = lambda x, weight: sum_of_taps(x, weight, ctx.window)  # noqa: E731
            return *differentiable(again, (x, weight), needed, grad), None
        return *_gradients(x, weight, grad, ctx.window, *ctx.needs_input_grad[:2]), None


def _gradients(
    x: Tensor, weight: Tensor, grad: Tensor, window: Window, needs_x: bool, needs_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    G, clamped = weight.shape[1], window.border == "clamp"
    scaled = tuple(range(4, 4 + 2 * (x.ndim - 2), 2)) if window.scale_factor > 1 else ()
    by_group = _by_window(_by_group(grad, G, window), window)
    grad_weight = torch.empty_like(weight, memory_format=torch.contiguous_format) if needs_weight else None
    with torch.enable_grad():  # what the border read is folded back by torch's own rules for its padding
        leaf = x.detach().requires_grad_(needs_x)
        padded = leaf if clamped else _pad(leaf, window.padding, window.border)
    source = padded.detach()
    grad_padded = torch.zeros_like(source) if needs_x else None
    for t, (tap, weight_t) in enumerate(zip(_taps(window), _weights(weight, window), strict=True)):
        if grad_weight is not None:
            seen = _spread(_by_group(_look(source, tap, window), G, window), window)
            _by_window(grad_weight[:, :, t], window, 2).copy_((by_group * seen).sum(2))
        if grad_padded is not None:
            part = by_group * weight_t
            part = _ungroup(part.sum(scaled) if scaled else part, window)
            if clamped:
                with torch.enable_grad():
                    look = _look(leaf, tap, window)
                grad_padded += torch.autograd.grad(look, leaf, part)[0]
            else:
                _look(grad_padded, tap, window).add_(part)
    if grad_padded is None or padded is leaf:
        return grad_padded, grad_weight
    return torch.autograd.grad(padded, leaf, grad_padded)[0], grad_weight


def _taps(window: Window) -> Iterator[tuple[int, ...]]:
    return itertools.product(*(range(k) for k in window.kernel_size))


def _pad(x: Tensor, padding: Sequence[int], border: str) -> Tensor:
    if not any(padding):
        return x
    mode = "constant" if border == "zeros" else border
    return F.pad(x, [p for p in reversed(padding) for _ in range(2)], mode=mode)


def _look(padded: Tensor, tap: Sequence[int], window: Window) -> Tensor:
    """What one tap of every window sees: (B, C, *windows).

    With border ``clamp`` x is not padded: the tap sees a stretch as long as there are places for a window, and the
    first and last of it wherever windows were moved.
    """
    first = [t * d for t, d in zip(tap, window.dilation, strict=True)]
    if window.border == "clamp":
        places = [s - r + 1 for s, r in zip(padded.shape[2:], window.reach, strict=True)]
        stretch = padded[(..., *(slice(a, a + n) for a, n in zip(first, places, strict=True)))]
        padded, first = _pad(stretch, window.padding, "replicate"), [0] * len(first)
        last = [s - 1 for s in padded.shape[2:]]
    else:
        last = [s - r + a for s, r, a in zip(padded.shape[2:], window.reach, first, strict=True)]
    return padded[(..., *(slice(a, z + 1, s) for a, z, s in zip(first, last, window.stride, strict=True)))]


def _looks(x: Tensor, G: int, window: Window) -> Iterator[Tensor]:
    """What each tap sees, ready to be multiplied with its weights."""
    padded = x if window.border == "clamp" else _pad(x, window.padding, window.border)
    for tap in _taps(window):
        yield _spread(_by_group(_look(padded, tap, window), G, window), window)


def _weights(weight: Tensor, window: Window) -> Iterator[Tensor]:
    """Each tap's weights, shared by the channels of a group: (B, G, 1, *S_out), the axes of S_out split."""
    for weight_t in weight.unbind(2):
        yield _by_window(weight_t.unsqueeze(2), window)


def _by_group(x: Tensor, G: int, window: Window) -> Tensor:
    """(B, C, *S) as (B, G, C/G, *S), a view."""
    if window.group_order == "contiguous":
        return unflatten(x, 1, (G, -1))
    return unflatten(x, 1, (-1, G)).transpose(1, 2)


def _ungroup(x: Tensor, window: Window) -> Tensor:
    """(B, G, C/G, *S) as (B, C, *S)."""
    if plain_shape(x)[2] == 1:  # always a view; flatten would compare C/G with H, and tie a graph to the answer
        return x.squeeze(2)
    return (x if window.group_order == "contiguous" else x.transpose(1, 2)).flatten(1, 2)


def _by_window(y: Tensor, window: Window, first: int = 3) -> Tensor:
    """Every axis of S_out from the ``first`` on as (windows, scale_factor), a view."""
    f = window.scale_factor
    if f > 1:
        for axis in range(first, first + 2 * len(window.kernel_size), 2):
            y = unflatten(y, axis, (y.shape[axis] // f, f))
    return y


def _spread(seen: Tensor, window: Window) -> Tensor:
    """(B, G, C/G, *windows) to be broadcast over the positions of each window."""
    if window.scale_factor > 1:
        for axis in range(4, 4 + 2 * len(window.kernel_size), 2):
            seen = seen.unsqueeze(axis)
    return seen
