# SPDX-License-Identifier: Apache-2.0
"""The base of dynamic linear layers: ``nn.Linear``'s shapes, and a matrix of its own for every sample."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from convary.errors import ShapeError
from convary.nn.layer import DynamicLayer
from convary.ops.shapes import plain_shape


class DynamicLinear(DynamicLayer):
    """A linear layer over (B, *, C); the condition is the mean over the axes between.

    A subclass is made of ``in_features, out_features, bias, device, dtype`` and its options, and defines ``transform``.
    """

    in_features: int
    out_features: int

    @classmethod
    def from_linear(cls, linear: nn.Linear, **options: Any):
        """A freshly initialised layer with the sizes, dtype, device and mode of a static one."""
        sizes: tuple[Any, ...] = (linear.in_features, linear.out_features, linear.bias is not None)
        return cls(*sizes, linear.weight.device, linear.weight.dtype, **options).train(linear.training)  # type: ignore[call-arg]

    def forward(self, x: Tensor, coeffs: Any = None) -> Tensor:
        """(B, *, C) to (B, *, O), or (C,) to (O,).

        Args:
            x: The features.
            coeffs: Coefficients from elsewhere instead of the layer's router; see ``given``.

        Raises:
            ShapeError: x has another number of features, or no batch axis.
            ConfigError: coefficients of another method.
        """
        if x.ndim == 1:
            return self.forward(x.unsqueeze(0), coeffs).squeeze(0)
        if x.ndim < 2 or plain_shape(x)[-1] != self.in_features:
            raise ShapeError(f"{type(self).__name__} wants x of shape (B, *, {self.in_features}); got {tuple(x.shape)}")
        rows = x.unsqueeze(1) if x.ndim == 2 else x.flatten(1, -2)  # (B, P, C)
        coeffs = self.coefficients(rows.transpose(1, 2)) if coeffs is None else self.given(coeffs)
        return self.transform(rows, coeffs).reshape(*x.shape[:-1], self.out_features)

    def transform(self, rows: Tensor, coeffs: Any) -> Tensor:
        """(B, P, C) to (B, P, O)."""
        raise TypeError(f"{type(self).__name__} must define transform(rows, coeffs)")

    def extra_repr(self) -> str:
        """Like ``nn.Linear``, with what tells of the method's options."""
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, {self.extra_options()}"
