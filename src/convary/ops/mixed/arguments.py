# SPDX-License-Identifier: Apache-2.0
"""The arguments of ``mixed_conv``: spelled out, checked, and the problem that they pose."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from convary.errors import ShapeError
from convary.ops.coefficients import Coefficients
from convary.ops.geometry import Geometry, Size, autocasting, check_bias, check_conv, nothing, resolve
from convary.ops.problem import Problem, conv_problem
from convary.ops.shapes import plain_shape


class MixedArguments(NamedTuple):
    """See :class:`convary.ops.dispatch.Arguments`."""

    x: Tensor
    bank: Tensor
    coeffs: Coefficients
    bias: Tensor | None
    geometry: Geometry

    images = None

    def tensors(self) -> tuple[Tensor | None, ...]:
        """x, the bank, the four factors, the bias."""
        coeffs = self.coeffs
        return self.x, self.bank, coeffs.kernel, coeffs.filter, coeffs.channel, coeffs.tap, self.bias

    def check(self) -> MixedArguments:
        """Raise unless the tensors fit together; the same with coefficients in the bank's dtype under autocast."""
        x, bank, coeffs, bias, geometry = self
        mixed_dtypes = autocasting(x)
        check_conv(x, bank, geometry, mixed_dtypes=mixed_dtypes)
        if mixed_dtypes:
            coeffs = coeffs.to(bank.dtype)
        coeffs.check(bank, batch=plain_shape(x)[0], channels=plain_shape(x)[1])
        if bias is not None:
            K, O = plain_shape(bank)[:2]
            if tuple(plain_shape(bias)) not in ((O,), (K, O)):
                raise ShapeError(
                    f"bias is {tuple(plain_shape(bias))}; a bank of {K} kernels wants ({O},) or ({K}, {O})"
                )
            check_bias(bias, bank, mixed_dtypes=mixed_dtypes)
        return self._replace(coeffs=coeffs)

    def problem(self, *, training: bool, obstacle: str | None) -> Problem:
        """The problem that they pose."""
        x, bank, coeffs, _, geometry = self
        B = plain_shape(x)[0]
        return conv_problem(
            "mixed_conv", x, bank, geometry, batch=B, training=training, coeffs=coeffs, obstacle=obstacle
        )

    def nothing(self) -> Tensor | None:
        """The answer to a batch of none."""
        return nothing(self.x, self.bank, self.geometry, self.tensors()) if self.x.shape[0] == 0 else None


def spell(
    x: Tensor,
    bank: Tensor,
    coeffs: Coefficients,
    bias: Tensor | None,
    stride: Size,
    padding: Size | str,
    dilation: Size,
    groups: int,
) -> MixedArguments:
    """The arguments of a call; see :func:`convary.ops.mixed_conv`."""
    x, geometry = resolve(x, plain_shape(bank)[3:], stride, padding, dilation, groups)
    return MixedArguments(x, bank, coeffs, bias, geometry)
