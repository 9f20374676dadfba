# SPDX-License-Identifier: Apache-2.0
"""A router in inference as one call: pooling, hidden layer, last layer, activations.

Each piece of the coefficients is dense, as the convolution reads it. At batch 1 the ten small operations of a router
cost more than the convolution of a small layer.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from convary.ops.native import eligible
from convary.ops.native.call import call, is_dense
from convary.ops.tracing import needs_gradient

ACTIVATIONS = {"sigmoid": 1, "softmax": 2}
PIECES = 4  # at most


class RouteSizes(ctypes.Structure):
    """``convary_route_sizes`` of csrc/convary.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("B", "C", "P", "hidden")),
        ("pieces", ctypes.c_int64 * PIECES),
        *((name, ctypes.c_int64) for name in ("gates", "rest")),
        ("epsilon", ctypes.c_float),
    )


class Layers(NamedTuple):
    """``activations((last relu(norm(squeeze v + squeeze_bias)) + last_bias) / temperature)`` of a pooled vector v.

    Attributes:
        squeeze: (hidden, C), or None for no hidden layer.
        squeeze_bias: (hidden,) or None.
        mean: (hidden,), as the next three: running statistics and affine map of the normalisation; or all None.
        variance: See mean.
        gain: See mean.
        shift: See mean.
        last: (outputs, hidden), or (outputs, C) without a hidden layer.
        last_bias: (outputs,) or None.
        temperature: One number, or None.
        epsilon: Of the normalisation.
        pieces: Lengths of the pieces that the outputs fall into; they add up to all of them.
        gates: This many pieces come first, with a sigmoid.
        rest: The activation of each of the others: "sigmoid" or "softmax".
    """

    squeeze: Tensor | None
    squeeze_bias: Tensor | None
    mean: Tensor | None
    variance: Tensor | None
    gain: Tensor | None
    shift: Tensor | None
    last: Tensor
    last_bias: Tensor | None
    temperature: Tensor | None
    epsilon: float
    pieces: tuple[int, ...]
    gates: int
    rest: str


TENSORS = 9  # of the fields, in the order of the C interface


def can_run(x: Tensor, layers: Layers) -> bool:
    """Whether :func:`route` takes these tensors, none of which may need a gradient now."""
    given = [t for t in layers[:TENSORS] if t is not None]
    if not can_run_on(x) or needs_gradient(x, *given):
        return False
    for t in given:
        if not is_dense(t) or eligible.refusal(t) is not None:
            return False
    return _fits(x, layers)


def _fits(x: Tensor, layers: Layers) -> bool:
    """Whether the sizes belong together: the kernels trust them, and the layers themselves tell what is wrong."""
    width, outputs = x.shape[1], layers.last.shape[0]
    vectors = [(layers.last_bias, outputs), (layers.temperature, 1)]
    if layers.squeeze is not None:
        if layers.squeeze.shape[1] != width:
            return False
        width = layers.squeeze.shape[0]
        norm = (layers.mean, layers.variance, layers.gain, layers.shift)
        if any(t is None for t in norm) and any(t is not None for t in norm):
            return False
        vectors += [(t, width) for t in (layers.squeeze_bias, *norm)]
    elif layers.mean is not None:
        return False
    if layers.last.shape[1] != width or len(layers.pieces) > PIECES or sum(layers.pieces) != outputs:
        return False
    return all(t is None or t.numel() == n for t, n in vectors)


def can_run_on(x: Tensor) -> bool:
    """Whether :func:`route` takes x, in the modes that are on now."""
    return eligible.obstacle((x,), dispatched=False) is None and is_dense(x) and x.numel() > 0


@lru_cache(maxsize=1024)
def _sizes(x: torch.Size, hidden: int, pieces: tuple[int, ...], gates: int, rest: str, epsilon: float) -> RouteSizes:
    return RouteSizes(*x[:2], x[2:].numel(), hidden, pieces, gates, ACTIVATIONS[rest], epsilon)


def sizes(x: torch.Size, layers: Layers) -> RouteSizes:
    """The C structure for x of this shape."""
    hidden = 0 if layers.squeeze is None else layers.squeeze.shape[0]
    return _sizes(x, hidden, layers.pieces, layers.gates, layers.rest, layers.epsilon)


def route(x: Tensor, layers: Layers) -> list[Tensor]:
    """The coefficients of x (B, C, *S) without a gradient: a tensor (B, length) for each piece, dense, in one memory.

    Raises:
        ConvaryError: the library refuses; the sizes are named.
    """
    B = x.shape[0]
    pooled, out = x.new_empty(x.shape[:2]), x.new_empty(B * layers.last.shape[0])
    call("route", sizes(x.shape, layers), x, *layers[:TENSORS], pooled, out)
    pieces, first = [], 0
    for length in layers.pieces:
        pieces.append(out.as_strided((B, length), (length, 1), first))
        first += B * length
    return pieces
