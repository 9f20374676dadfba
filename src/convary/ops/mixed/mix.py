# SPDX-License-Identifier: Apache-2.0
"""Mixing a bank of kernels into one kernel per sample, materialised."""

from __future__ import annotations

import torch
from torch import Tensor

from convary.errors import ShapeError
from convary.ops import native
from convary.ops.coefficients import Coefficients
from convary.ops.shapes import plain_shape, unflatten


def mix_kernels(bank: Tensor, coeffs: Coefficients) -> Tensor:
    """One kernel per sample: ``W[b,o,c,t] = sum_k kernel[b,k] filter[b,k,o] channel[b,k,c] tap[b,k,t] bank[k,o,c,t]``.

    It has no strategies of its own: the native library serves it by default and under ``ops.strategy("native")``,
    where it can; under any other forced strategy torch does.

    Args:
        bank: (K, O, C/G, *k).
        coeffs: factors for B samples; a missing factor counts as 1.

    Returns:
        (B, O, C/G, *k).

    Raises:
        ShapeError, DtypeError, DeviceError: the factors do not fit the bank.

    >>> bank = torch.arange(8.0).reshape(2, 2, 2, 1)
    >>> mix_kernels(bank, Coefficients(kernel=torch.tensor([[0.5, 0.5]]))).flatten().tolist()
    [2.0, 3.0, 4.0, 5.0]
    """
    coeffs.check(bank)
    shape = plain_shape(bank)[1:]
    # (B, O, C/G, *k), the shape of a kernel before anything scales it; B is 1 where only shared factors exist
    weight = unflatten(_mix_per_kernel(bank, coeffs), 3, shape[2:])
    if (shared := coeffs.shared("filter")) is not None:
        weight = weight * shared.reshape(-1, shape[0], *[1] * (len(shape) - 1))
    if (inner := _channel_and_tap(coeffs, shape)) is not None:
        weight = weight * inner
    return weight


def mix_bias(bias: Tensor, coeffs: Coefficients) -> Tensor:
    """A bias bank mixed like the kernels: ``b[b,o] = sum_k kernel[b,k] filter[b,k,o] bias[k,o]``.

    Args:
        bias: (K, O).
        coeffs: factors for B samples; channel and tap do not act on a bias.

    Returns:
        (B, O).

    Raises:
        ShapeError: ``bias`` is not (K, O) for the coefficients' K.
    """
    size = plain_shape(bias)
    if coeffs.kernel is not None and (K := plain_shape(coeffs.kernel)[1]) != size[0]:
        raise ShapeError(f"bias is {tuple(size)} but there are {K} kernels; pass (K, O)")
    if coeffs.filter is None:
        if coeffs.kernel is not None:
            return coeffs.kernel @ bias
        B = next(iter(coeffs.factors().values())).shape[0]
        return bias.sum(0).expand(B, -1)
    if (shared := coeffs.shared("filter")) is not None:
        mixed = bias.sum(0) if coeffs.kernel is None else coeffs.kernel @ bias
        return mixed * shared[:, 0]
    factor = coeffs.filter if coeffs.kernel is None else coeffs.filter * coeffs.kernel.unsqueeze(2)
    return (factor * bias).sum(1)


def _mix_per_kernel(bank: Tensor, coeffs: Coefficients) -> Tensor:
    """Sum over K with the factors that differ between kernels: (B or 1, O, C/G, T)."""
    flat = bank.flatten(3)
    own = {axis: value for axis, value in coeffs.factors().items() if coeffs.shared(axis) is None}
    kernel = own.pop("kernel", None)
    if not own:
        if kernel is None:
            return flat.sum(0, keepdim=True)
        return unflatten(_weighted_sum(kernel, flat.flatten(1)), 1, plain_shape(flat)[1:])
    if kernel is not None and len(own) == 1:  # the one other factor carries the kernel factor along
        axis, value = own.popitem()
        own, kernel = {axis: value * kernel.unsqueeze(2)}, None
    if kernel is None and list(own) == ["filter"]:
        mixed = torch.einsum("bko,kom->bom", own["filter"], flat.flatten(2))
        return unflatten(mixed, 2, plain_shape(flat)[2:])
    if kernel is None and list(own) == ["tap"]:
        mixed = torch.einsum("bkt,kmt->bmt", own["tap"], flat.flatten(1, 2))
        return unflatten(mixed, 1, plain_shape(flat)[1:3])
    return _sum_one_by_one(flat, kernel, own)


def _sum_one_by_one(flat: Tensor, kernel: Tensor | None, own: dict[str, Tensor]) -> Tensor:
    """Several per-kernel factors: add up kernel by kernel, so that nothing of size K x B x O x C x T exists."""
    total = None
    for k in range(plain_shape(flat)[0]):
        term = flat[k]
        if "filter" in own:
            term = term * own["filter"][:, k].reshape(-1, plain_shape(flat)[1], 1, 1)
        if "channel" in own:
            term = term * _channel_per_output(own["channel"][:, k], plain_shape(flat)[1:])
        if "tap" in own:
            term = term * own["tap"][:, k].reshape(-1, 1, 1, plain_shape(flat)[3])
        if kernel is not None:
            term = term * kernel[:, k].reshape(-1, 1, 1, 1)
        total = term if total is None else total + term
    assert total is not None  # a bank has at least one kernel
    return total


def _channel_and_tap(coeffs: Coefficients, shape: torch.Size) -> Tensor | None:
    """The product of the shared channel and tap factors, (B, O or 1, C/G or 1, *k or 1): one pass over the kernels."""
    channel, tap = coeffs.shared("channel"), coeffs.shared("tap")
    if channel is not None:
        channel = _channel_per_output(channel.squeeze(1), shape, len(shape) - 2)
    if tap is not None:
        tap = tap.reshape(-1, 1, 1, *shape[2:])
    return channel if tap is None else tap if channel is None else channel * tap


def _channel_per_output(channel: Tensor, shape: torch.Size, rank: int = 1) -> Tensor:
    """(B, C) as seen by each output channel of a grouped bank: (B, O or 1, C/G) and ``rank`` axes of one position."""
    O, C_group = shape[0], shape[1]
    groups = plain_shape(channel)[1] // C_group
    per_group = channel.reshape(-1, groups, C_group)
    if groups not in (1, O):  # before the axes of one: compilers for small devices take five
        per_group = per_group.unsqueeze(2).expand(-1, -1, O // groups, -1).flatten(1, 2)
    return per_group.reshape(-1, *per_group.shape[1:], *[1] * rank)


def _weighted_sum(kernel: Tensor, flat: Tensor) -> Tensor:
    """``kernel (B, K) @ flat (K, N)``.

    The native kernel streams the bank once per batch; for a single sample torch is as fast.
    """
    if native.why_not(flat, kernel) is None and kernel.shape[0] > 1:
        return native.weighted_sum(kernel, flat)
    return kernel @ flat
