# SPDX-License-Identifier: Apache-2.0
"""The seam between routers, ops and diagnostics: mixing coefficients, one optional factor per axis of kernel space."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from convary.errors import DeviceError, DtypeError, ShapeError
from convary.ops.shapes import plain_shape

AXES = ("kernel", "filter", "channel", "tap")


@dataclass(frozen=True, kw_only=True)
class Coefficients:
    """Factors that mix a bank of K kernels ``(K, O, C/G, *k)`` into one kernel per sample.

    ``W[b, o, c, t] = sum_k kernel[b, k] * filter[b, k, o] * channel[b, k, c] * tap[b, k, t] * bank[k, o, c, t]``

    A factor that is ``None`` counts as 1. The channel factor has one entry per input channel of x, groups or not.

    Attributes:
        kernel: (B, K) one number per kernel; CondConv, DyConv, ODConv.
        filter: (B, 1 or K, O) one number per output channel; DyNet (K), ODConv (1 as released, K as in the paper).
        channel: (B, 1 or K, C) one number per input channel; ODConv.
        tap: (B, 1 or K, T) one number per kernel tap, row-major, T = prod(kernel_size); ODConv.
    """

    kernel: Tensor | None = None
    filter: Tensor | None = None
    channel: Tensor | None = None
    tap: Tensor | None = None

    def factors(self) -> dict[str, Tensor]:
        """The factors that are present, by axis name."""
        return {axis: value for axis in AXES if (value := getattr(self, axis)) is not None}

    def shared(self, axis: str) -> Tensor | None:
        """The factor of ``axis`` (B, 1, n) where it is present and the same for all kernels, else None."""
        value = getattr(self, axis)
        return value if value is not None and value.ndim == 3 and plain_shape(value)[1] == 1 else None

    def replace(self, **factors: Tensor | None) -> Coefficients:
        """A copy with some factors exchanged."""
        return dataclasses.replace(self, **factors)

    def to(self, dtype: torch.dtype) -> Coefficients:
        """The same factors in another dtype."""
        return Coefficients(**{axis: value.to(dtype) for axis, value in self.factors().items()})

    def check(self, bank: Tensor, batch: int | None = None, channels: int | None = None) -> None:
        """Raise unless the factors fit ``bank`` (K, O, C/G, *k), each other and, where given, B and C of x.

        Raises:
            ShapeError: a factor has another shape than the class docstring gives.
            DtypeError: a factor has another dtype than the bank.
            DeviceError: a factor lies on another device than the bank.
        """
        factors = self.factors()
        if not factors:
            raise ShapeError("coefficients have no factor; give at least one of kernel, filter, channel, tap")
        if bank.ndim < 4:
            raise ShapeError(f"bank must be (K, O, C/G, *kernel_size) with 4 to 6 axes; got {tuple(bank.shape)}")
        shape = plain_shape(bank)
        K, O, C_group, *kernel_size = shape
        if batch is None:
            batch = plain_shape(next(iter(factors.values())))[0]
        for axis, value in factors.items():
            self._check_factor(axis, value, batch, K, {"filter": O, "tap": prod(kernel_size)}.get(axis))
            if value.dtype != bank.dtype:
                raise DtypeError(
                    f"{axis} coefficients are {value.dtype} but the bank is {bank.dtype}; cast one of them"
                )
            if value.device != bank.device:
                raise DeviceError(
                    f"{axis} coefficients are on {value.device} but the bank is on {bank.device}; move one"
                )
        C = None if self.channel is None else plain_shape(self.channel)[2]
        if C is not None and C % C_group:
            raise ShapeError(
                f"channel coefficients have {C} channels, which is not a multiple of the "
                f"{C_group} input channels per group of the bank {tuple(shape)}; pass (B, 1 or K, C)"
            )
        if C is not None and channels is not None and C != channels:
            raise ShapeError(f"channel coefficients have {C} channels but x has {channels}")

    @staticmethod
    def _check_factor(axis: str, value: Tensor, batch: int, K: int, last: int | None) -> None:
        shape = tuple(plain_shape(value))
        if axis == "kernel":
            if shape != (batch, K):
                raise ShapeError(
                    f"kernel coefficients are {shape}; a batch of {batch} and a bank of {K} kernels want ({batch}, {K})"
                )
            return
        fits = len(shape) == 3 and shape[0] == batch and shape[1] in (1, K)
        if not fits or (last is not None and shape[2] != last):
            size = "C" if last is None else str(last)
            raise ShapeError(
                f"{axis} coefficients are {shape}; a batch of {batch} and a bank of {K} kernels "
                f"want ({batch}, 1 or {K}, {size})"
            )
