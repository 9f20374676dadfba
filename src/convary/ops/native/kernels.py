# SPDX-License-Identifier: Apache-2.0
"""The native kernels of an op, and what it takes to call them; makes nothing of them yet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from convary.errors import DtypeError
from convary.ops.native.half import kept, widened


@dataclass(frozen=True)
class Kernels:
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
