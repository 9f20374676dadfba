# SPDX-License-Identifier: Apache-2.0
"""A router in inference as one call: pooling, hidden layer, last layer, activations.

At batch 1 the ten small operations of a router cost more than the convolution of a small layer.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from convary.errors import ConvaryError
from convary.ops import native, native_conv
from convary.ops.coefficients import Coefficients
from convary.ops.strategy import may_be_native

_NONE = Coefficients()
ACTIVATIONS = {"sigmoid": 1, "softmax": 2}


class _Sizes(ctypes.Structure):
    """``convary_route_sizes`` of csrc/convary.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("B", "C", "P", "hidden", "outputs", "gates", "rest")),
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
        gates: This many outputs come first, with a sigmoid.
        rest: The activation of the others: "sigmoid" or "softmax".
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
    gates: int
    rest: str


TENSORS = 9  # of the fields, in the order of the C interface


def can_run(x: Tensor, layers: Layers) -> bool:
    """Whether :func:`route` takes these tensors, none of which may need a gradient now."""
    if not may_be_native() or native_conv.is_watched(x) or x.numel() == 0:
        return False
    if native_conv.obstacle(x, layers.last, _NONE, None) is not None:
        return False
    gradients = torch.is_grad_enabled()
    for t in (x, *layers[:TENSORS]):
        if t is None:
            continue
        if t.dtype is not torch.float32 or not t.is_cpu or not t.is_contiguous() or t.is_neg():
            return False
        if gradients and t.requires_grad:
            return False
    return True


@lru_cache(maxsize=1024)
def _sizes(x: torch.Size, hidden: int, outputs: int, gates: int, rest: str, epsilon: float) -> tuple[_Sizes, int]:
    """The C structure and its address."""
    sizes = _Sizes(*x[:2], x[2:].numel(), hidden, outputs, gates, ACTIVATIONS[rest], epsilon)
    return sizes, ctypes.addressof(sizes)


def route(x: Tensor, layers: Layers) -> Tensor:
    """The coefficients of x, (B, C, *S) to (B, outputs), without a gradient.

    Raises:
        ConvaryError: the library refuses; the sizes are named.
    """
    B, C = x.shape[:2]
    hidden = 0 if layers.squeeze is None else layers.squeeze.shape[0]
    outputs = layers.last.shape[0]
    _, address = _sizes(x.shape, hidden, outputs, layers.gates, layers.rest, layers.epsilon)
    pooled, out = x.new_empty((B, C)), x.new_empty((B, outputs))
    pointers = [None if t is None else t.data_ptr() for t in layers[:TENSORS]]
    library = native.loaded()
    code = library.route(address, x.data_ptr(), *pointers, pooled.data_ptr(), out.data_ptr())
    if code:
        text = library.error_text(code).decode()
        raise ConvaryError(f"the native router failed: {text}; got x {tuple(x.shape)}, {hidden=}, {outputs=}")
    return out
