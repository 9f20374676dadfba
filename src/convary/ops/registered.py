# SPDX-License-Identifier: Apache-2.0
"""Strategy ``native`` of ``mixed_conv`` as torch sees it: differentiable, and as operators.

``torch.ops.convary.mixed_conv`` is the forward; its gradients are ``mixed_conv_grad_x`` and ``mixed_conv_grad_bank``
(of the bank, then of the factors that are there), which have none of their own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from convary.errors import ShapeError
from convary.ops import autograd, native_conv, operators
from convary.ops.coefficients import Coefficients
from convary.ops.geometry import Geometry, check_bias, check_conv, resolve
from convary.ops.mix import mix_bias
from convary.ops.strategy import is_watched, needs_gradient


def run(x: Tensor, bank: Tensor, coeffs: Coefficients, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """Strategy ``native``: ``mixed_conv`` after its checks."""
    row = mix_bias(bias, coeffs) if bias is not None and bias.ndim == 2 else bias
    tensors = (x, bank, coeffs.kernel, coeffs.filter, coeffs.channel, coeffs.tap, row)
    if is_watched(x):
        return operators.in_format_of(x, torch.ops.convary.mixed_conv.default(*tensors, *geometry))
    if needs_gradient(*tensors):
        return autograd.apply(_Eager, *tensors, coeffs, geometry)
    return native_conv.forward(x, bank, coeffs, row, geometry)


class _Eager(torch.autograd.Function):
    """Forward and backward by the native kernels; keeps x, the bank and the coefficients, no mixed kernels."""

    @staticmethod
    def forward(ctx, x: Tensor, bank: Tensor, *rest) -> Tensor:
        *factors, row, coeffs, geometry = rest  # the factors twice: autograd wants them one by one, the call by name
        native_conv.remember(ctx, x, bank, factors, row, geometry)
        return native_conv.forward(x, bank, coeffs, row, geometry)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        if is_watched(grad):
            return *native_conv.gradients(ctx, grad, _of_x, _of_bank), None, None
        return *native_conv.gradients(ctx, grad, native_conv.gradient_of_x, native_conv.gradient_of_bank), None, None


def _weight(bank: Tensor, coeffs: Coefficients) -> tuple[Tensor | None, ...]:
    return bank, coeffs.kernel, coeffs.filter, coeffs.channel, coeffs.tap


def _named(x: Tensor, bank: Tensor, factors: Sequence[Tensor | None], geometry: tuple) -> tuple[Coefficients, Geometry]:
    """The arguments by name, checked as in ``mixed_conv``: the kernels trust the sizes they are told."""
    coeffs = native_conv.coefficients(factors)
    x, resolved = resolve(x, bank.shape[3:], *geometry)
    check_conv(x, bank, resolved, mixed_dtypes=False)
    coeffs.check(bank, batch=x.shape[0], channels=x.shape[1])
    operators.check_dtype(x, "mixed_conv")
    return coeffs, resolved


def _y_shape(x: Tensor, bank: Tensor, geometry: Geometry) -> tuple[int, ...]:
    return (x.shape[0], bank.shape[1], *geometry.out_size(x.shape[2:], bank.shape[3:]))


def _check_row(row: Tensor | None, x: Tensor, bank: Tensor) -> None:
    if row is None:
        return
    B, O = x.shape[0], bank.shape[1]
    if tuple(row.shape) not in ((O,), (B, O)):
        raise ShapeError(f"row is {tuple(row.shape)}; {B} samples of {O} output channels want ({O},) or ({B}, {O})")
    check_bias(row, bank, mixed_dtypes=False)


def _conv(x: Tensor, bank: Tensor, *rest) -> Tensor:
    *factors, row = rest[:5]
    coeffs, geometry = _named(x, bank, factors, rest[5:])
    _check_row(row, x, bank)
    if x.numel() and bank.numel():
        return native_conv.forward(x.contiguous(), bank, coeffs, row, geometry)
    return operators.of_nothing(x, _y_shape(x, bank, geometry), row)


def _conv_fake(x: Tensor, bank: Tensor, *rest) -> Tensor:
    *factors, row = rest[:5]
    _, geometry = _named(x, bank, factors, rest[5:])
    _check_row(row, x, bank)
    return x.new_empty(_y_shape(x, bank, geometry))


def _grad_x(grad: Tensor, size: Sequence[int], bank: Tensor, *rest) -> Tensor:
    x = operators.shaped(grad, size)
    coeffs, geometry = _named(x, bank, rest[:4], rest[4:])
    operators.check_grad(grad, _y_shape(x, bank, geometry), x)
    if grad.numel() and bank.numel():
        return native_conv.gradient_of_x(grad.contiguous(), x.shape, bank, coeffs, geometry)
    return grad.new_zeros(size)


def _grad_x_fake(grad: Tensor, size: Sequence[int], bank: Tensor, *rest) -> Tensor:
    x = grad.new_empty(size)
    _, geometry = _named(x, bank, rest[:4], rest[4:])
    operators.check_grad(grad, _y_shape(x, bank, geometry), x)
    return x


def _grad_bank(grad: Tensor, x: Tensor, bank: Tensor, *rest) -> list[Tensor]:
    coeffs, geometry = _named(x, bank, rest[:4], rest[4:])
    operators.check_grad(grad, _y_shape(x, bank, geometry), x)
    if x.numel() and bank.numel():
        of_bank, of_factors = native_conv.gradient_of_bank(grad, x.contiguous(), bank, coeffs, geometry)
        return [of_bank, *of_factors.factors().values()]
    return [t.new_zeros(t.shape) for t in (bank, *coeffs.factors().values())]


def _grad_bank_fake(grad: Tensor, x: Tensor, bank: Tensor, *rest) -> list[Tensor]:
    coeffs, geometry = _named(x, bank, rest[:4], rest[4:])
    operators.check_grad(grad, _y_shape(x, bank, geometry), x)
    return [t.new_empty(t.shape) for t in (bank, *coeffs.factors().values())]


def _setup_context(ctx, inputs: tuple, output: Tensor) -> None:
    x, bank, *rest = inputs
    stride, padding, dilation, groups = rest[5:]
    geometry = Geometry(tuple(stride), tuple(padding), tuple(dilation), groups)
    native_conv.remember(ctx, x, bank, rest[:4], rest[4], geometry)


def _backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *native_conv.gradients(ctx, grad, _of_x, _of_bank), *[None] * 4


def _of_x(grad: Tensor, size: torch.Size, bank: Tensor, coeffs: Coefficients, geometry: Geometry) -> Tensor:
    return torch.ops.convary.mixed_conv_grad_x.default(grad, size, *_weight(bank, coeffs), *geometry)


def _of_bank(
    grad: Tensor, x: Tensor, bank: Tensor, coeffs: Coefficients, geometry: Geometry
) -> tuple[Tensor, Coefficients]:
    found = torch.ops.convary.mixed_conv_grad_bank.default(grad, x, *_weight(bank, coeffs), *geometry)
    return found[0], Coefficients(**dict(zip(coeffs.factors(), found[1:], strict=True)))


def _flops(out: Sequence[int], bank: Sequence[int], passes: int) -> int:
    """Of a convolution with output (B, O, *S_out), and of ``passes`` over a bank (K, O, C/G, *k) for every sample."""
    B, O, *positions = out
    K, _, *one_filter = bank
    weights = B * O * torch.Size(one_filter).numel()
    return 2 * weights * (torch.Size(positions).numel() + passes * K)


def _conv_flops(x_shape, bank_shape, *rest, out_shape: Sequence[int], **_) -> int:
    return _flops(out_shape, bank_shape, passes=1)


def _grad_x_flops(grad_shape, size, bank_shape, *rest, **_) -> int:
    return _flops(grad_shape, bank_shape, passes=1)


def _grad_bank_flops(grad_shape, x_shape, bank_shape, *rest, **_) -> int:
    return _flops(grad_shape, bank_shape, passes=2)  # to the bank, and its product with it summed for the factors


_WEIGHT = "Tensor bank, Tensor? kernel, Tensor? filter, Tensor? channel, Tensor? tap"
operators.register(
    "mixed_conv",
    f"(Tensor x, {_WEIGHT}, Tensor? row, {operators.GEOMETRY}) -> Tensor",
    _conv,
    _conv_fake,
    _conv_flops,
    _backward,
    setup_context=_setup_context,
)
operators.register(
    "mixed_conv_grad_x",
    f"(Tensor grad, SymInt[] size, {_WEIGHT}, {operators.GEOMETRY}) -> Tensor",
    _grad_x,
    _grad_x_fake,
    _grad_x_flops,
)
operators.register(
    "mixed_conv_grad_bank",
    f"(Tensor grad, Tensor x, {_WEIGHT}, {operators.GEOMETRY}) -> Tensor[]",
    _grad_bank,
    _grad_bank_fake,
    _grad_bank_flops,
)
