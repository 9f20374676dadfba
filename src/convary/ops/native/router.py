# SPDX-License-Identifier: Apache-2.0
"""A router in inference as one call: pooling, hidden layer, last layer, activations.

Each piece of the coefficients is dense, as the convolution reads it. At batch 1 the ten small operations of a router
cost more than the convolution of a small layer.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from convary.errors import DtypeError, ShapeError
from convary.ops.native import eligible
from convary.ops.native.call import call, dense, is_dense
from convary.ops.tracing import forced, is_portable, needs_gradient

ACTIVATIONS = {"sigmoid": 1, "softmax": 2}
PIECES = 4  # at most


class RouteSizes(ctypes.Structure):
    """``convary_route_sizes`` of csrc/convary.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("B", "C", "P", "hidden")),
        ("pieces", ctypes.c_int64 * PIECES),
        *((name, ctypes.c_int64) for name in ("gates", "rest", "half", "half_layers")),
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
    dtype = layers.last.dtype
    if dtype is not torch.float32 and (dtype is not torch.bfloat16 or x.dtype is not dtype):
        return False
    for t in given:
        wanted = torch.float32 if t is layers.temperature else dtype
        if not is_dense(t) or eligible.refusal(t, (wanted,)) is not None:
            return False
    return fits(x, layers)


def fits(x: Tensor, layers: Layers) -> bool:
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


def can_record(x: Tensor, layers: Layers) -> bool:
    """Whether a graph that is compiled for this machine may hold :func:`route` as one operator.

    Asked in few steps, for ``torch.compile`` traces each of them; the operator checks the rest.
    """
    if is_portable() or forced.get() not in (None, "native"):
        return False
    if needs_gradient(x, *layers[:TENSORS]) or not eligible.all_exact((x, layers.last)):
        return False
    return eligible.obstacle((x, layers.last)) is None


def can_run_on(x: Tensor) -> bool:
    """Whether :func:`route` takes x, in the modes that are on now."""
    return eligible.obstacle((x,), dispatched=False, halves=True) is None and is_dense(x) and x.numel() > 0


@functools.lru_cache(maxsize=1024)
def _sizes(
    x: torch.Size,
    halves: tuple[bool, bool],
    hidden: int,
    pieces: tuple[int, ...],
    gates: int,
    rest: str,
    epsilon: float,
) -> RouteSizes:
    return RouteSizes(*x[:2], x[2:].numel(), hidden, pieces, gates, ACTIVATIONS[rest], *halves, epsilon)


def sizes(x: Tensor, layers: Layers) -> RouteSizes:
    """The C structure for x of this shape and dtype."""
    hidden = 0 if layers.squeeze is None else layers.squeeze.shape[0]
    halves = (x.dtype is torch.bfloat16, layers.last.dtype is torch.bfloat16)
    return _sizes(x.shape, halves, hidden, layers.pieces, layers.gates, layers.rest, layers.epsilon)


def route(x: Tensor, layers: Layers) -> list[Tensor]:
    """The coefficients of x (B, C, *S) without a gradient: a tensor (B, length) for each piece, dense, in one memory.

    They are float32, also where x and the layers are bfloat16.

    Raises:
        ConvaryError: the library refuses; the sizes are named.
    """
    B = x.shape[0]
    new = functools.partial(torch.empty, dtype=torch.float32, device="cpu")  # whatever x and the layers are
    pooled, out = new(x.shape[:2]), new(B * layers.last.shape[0])
    call("route", sizes(x, layers), x, *layers[:TENSORS], pooled, out)
    pieces, first = [], 0
    for length in layers.pieces:
        pieces.append(out.as_strided((B, length), (length, 1), first))
        first += B * length
    return pieces


def record(x: Tensor, layers: Layers) -> list[Tensor]:
    """What :func:`route` answers, by an operator that a compiled graph holds."""
    *tensors, epsilon, pieces, gates, rest = layers
    return torch.ops.convary.route(x, *tensors, epsilon, pieces, gates, rest)


def _checked(x: Tensor, given: Sequence) -> Layers:
    """The layers that the operator is given; raises unless they fit together: the kernels trust them."""
    layers = Layers._make(tuple(value) if isinstance(value, list) else value for value in given)
    tensors = [x, *layers[:TENSORS]]
    if not fits(x, layers):
        shapes = [None if t is None else tuple(t.shape) for t in tensors]
        raise ShapeError(f"the layers of a router do not fit x and each other; got {shapes}, pieces {layers.pieces}")
    for t in tensors:
        if t is not None and t.dtype is not torch.float32:
            raise DtypeError(f"native routing takes torch.float32; got {t.dtype}; cast")
    return layers


def _route(x: Tensor, *given) -> list[Tensor]:
    layers = _checked(x, [dense(value) if isinstance(value, Tensor) else value for value in given])
    if not x.numel():
        return [x.new_zeros(x.shape[0], length) for length in layers.pieces]
    first, *others = route(dense(x), layers)
    return [first, *(piece.clone() for piece in others)]  # what an operator answers shares no memory


def _route_fake(x: Tensor, *given) -> list[Tensor]:
    return [x.new_empty(x.shape[0], length) for length in _checked(x, given).pieces]


_operators = torch.library.Library("convary", "FRAGMENT")
_operators.define(
    "route(Tensor x, Tensor? squeeze, Tensor? squeeze_bias, Tensor? mean, Tensor? variance, Tensor? gain, "
    "Tensor? shift, Tensor last, Tensor? last_bias, Tensor? temperature, float epsilon, int[] pieces, int gates, "
    "str rest) -> Tensor[]"
)
_operators.impl("route", _route, "CPU")
torch.library.register_fake("convary::route", _route_fake, lib=_operators)


@register_flop_formula(torch.ops.convary.route)
def _flops(x: Sequence[int], squeeze: Sequence[int] | None, *layers, out_shape=None, **_) -> int:
    """Two operations for every weight and sample."""
    return 2 * x[0] * sum(torch.Size(w).numel() for w in (squeeze, layers[5]) if w is not None)
