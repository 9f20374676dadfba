# SPDX-License-Identifier: Apache-2.0
"""A router in inference as one Triton kernel, where torch launches about ten.

Nobody has measured it on a GPU: it runs under ``ops.strategy("triton")``, and where ``ops.autotune()`` found it to be
faster. Its values are tested in Triton's interpreter.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from convary.ops.cost import measured
from convary.ops.native.router import PIECES, TENSORS, Layers, fits
from convary.ops.problem import Problem
from convary.ops.tracing import forced, is_intercepted, needs_gradient
from convary.ops.triton.launch import BLOCK, DTYPES, MOST, launch, obstacle, power

WIDEST = 4096  # a hidden layer, or the piece of a softmax, in one program


def why_not(x: Tensor, layers: Layers) -> str | None:
    """Why :func:`route` can't take these tensors in the modes that are on now, or None."""
    if (reason := obstacle(str(x.device), x.dtype)) is not None:
        return reason
    given = [t for t in layers[:TENSORS] if t is not None]
    widest = layers.pieces[-1] if layers.rest == "softmax" else 0
    if is_intercepted(x, *given):
        return "a tracer or a dispatch mode, such as a counter, is watching and would not see it"
    if needs_gradient(x, *given):
        return "it has no gradient"
    if any(t.dtype not in DTYPES or t.device != x.device or not t.is_contiguous() for t in given):
        return "a layer is of another dtype, on another device or not contiguous"
    if not fits(x, layers) or x.numel() == 0 or x.ndim < 3:
        return "the layers do not fit x and each other, or x is empty"
    if layers.squeeze is None and len(layers.pieces) > 1:
        return "without a hidden layer it takes one piece"
    if max(widest, _width(layers)) > WIDEST or x.shape[0] > MOST:
        return f"a layer is wider than {WIDEST}, or the batch is above {MOST}"
    return None


def route(x: Tensor, layers: Layers) -> list[Tensor]:
    """The coefficients of x (B, C, *S) in the layers' dtype: a tensor (B, length) for each piece, in one memory."""
    from convary.ops.triton.router_kernel import of_sample

    B, C = x.shape[:2]
    x = x.flatten(2) if x.ndim > 3 else x
    out = layers.last.new_empty(B * layers.last.shape[0])
    width, softmax = _width(layers), layers.rest == "softmax" and len(layers.pieces) > layers.gates
    lengths = (*layers.pieces, *[0] * (PIECES - len(layers.pieces)))
    hidden = power(width)
    flags = {
        "HAS_SQUEEZE": layers.squeeze is not None, "HAS_SQUEEZE_BIAS": layers.squeeze_bias is not None,
        "HAS_NORM": layers.mean is not None, "HAS_LAST_BIAS": layers.last_bias is not None,
        "HAS_TEMPERATURE": layers.temperature is not None, "SOFTMAX": softmax, "PIECES": len(layers.pieces),
    }  # fmt: skip
    positions = min(power(x.shape[2]), BLOCK)
    blocked = {
        "HIDDEN": hidden, "POSITIONS": positions,
        "CHANNELS": min(power(C), max(1, 8 * BLOCK // max(positions, hidden))),
        "OUT": max(1, 16 * BLOCK // hidden), "REST": power(layers.pieces[-1]),
    }  # fmt: skip
    tensors = [layers.last if t is None else t for t in layers[:TENSORS]]  # what is absent is not read
    sizes = (B, C, x.shape[2], width, layers.epsilon, *lengths, *x.stride())
    launch(of_sample, (B,), x, *tensors, out, *sizes, **flags, **blocked)
    pieces, first = [], 0
    for length in layers.pieces:
        pieces.append(out.as_strided((B, length), (length, 1), first))
        first += B * length
    return pieces


def wanted(x: Tensor, layers: Layers, plain: object) -> bool:
    """Whether :func:`route` is to take the place of ``plain``, torch's own operations: forced, or measured faster.

    Args:
        x: Features, for which :func:`why_not` gives None.
        layers: The router's.
        plain: Computes the same from x.
    """
    if forced.get() is not None or not measured.is_on():
        return forced.get() == "triton"
    problem = _problem(x, layers)
    runs = {"triton": lambda x, layers: route(x, layers)[0], "torch": lambda x, layers: plain(x)}  # type: ignore
    with torch.no_grad():
        measured.measure(problem, _Arguments(x, layers), runs)
    times = measured.known(problem) or {}
    return len(times) == len(runs) and measured.preferred(times) == "triton"


class _Arguments(NamedTuple):
    x: Tensor
    layers: Layers

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.x,)


def _width(layers: Layers) -> int:
    return layers.last.shape[0] if layers.squeeze is None else layers.squeeze.shape[0]


def _problem(x: Tensor, layers: Layers) -> Problem:
    """What its time depends on, under the names that it is kept by."""
    return Problem(
        op="route", B=x.shape[0], C=x.shape[1], O=layers.last.shape[0], G=1, K=_width(layers), kernel_size=(),
        size=tuple(x.shape[2:]), out_size=layers.pieces, stride=(), axes=(), shared=(), training=False, traced=False,
        device=str(x.device), dtype=x.dtype,
    )  # fmt: skip
