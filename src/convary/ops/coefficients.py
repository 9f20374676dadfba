# SPDX-License-Identifier: Apache-2.0
"""The seam between routers, ops and diagnostics: mixing coefficients, one optional factor per axis of kernel space."""

from __future__ import annotations

import itertools
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from convary.errors import DeviceError, DtypeError, ShapeError
from convary.ops.shapes import plain_shape

if TYPE_CHECKING:
    from typing_extensions import Self, dataclass_transform
else:

    def dataclass_transform(**_: Any) -> Any:
        """Of Python 3.11: tells type checkers that factors are given by name."""
        return lambda cls: cls


AXES = ("kernel", "filter", "channel", "tap")


@dataclass_transform(kw_only_default=True)
class Factors(tuple[Tensor, ...]):
    """What a router answers: factors by name, and to tools that look at a module's output the tuple of their tensors.

    A subclass annotates its factors, in order; one whose default is None may be left out, and is then None as an
    attribute and no element of the tuple. Each combination of factors is a class of its own behind the scenes, with the
    ``_fields`` of a named tuple, so that whoever takes tuples apart (``register_full_backward_hook``, DataParallel,
    Accelerate) puts them together again.

    Raises:
        TypeError: a factor that the class does not have, or too few.
    """

    __slots__ = ()
    axes: ClassVar[tuple[str, ...]] = ()  # the names that the class knows
    _fields: ClassVar[tuple[str, ...]] = ()  # those that are there
    _kinds: ClassVar[dict[tuple[str, ...], type[Factors]]] = {}

    def __init_subclass__(cls, **kwargs) -> None:
        super().__init_subclass__(**kwargs)
        if "_fields" in cls.__dict__:
            return
        cls.axes = tuple(cls.__annotations__)
        wanted = {axis for axis in cls.axes if axis not in cls.__dict__}
        subsets = (itertools.combinations(cls.axes, n) for n in range(len(cls.axes) + 1))
        found = [present for present in itertools.chain.from_iterable(subsets) if wanted <= set(present)]
        cls._kinds = {present: _kind(cls, present) for present in found}

    def __new__(cls, *values: Tensor, **factors: Tensor | None) -> Self:
        """By name; by position only what has been taken apart."""
        if values:
            return tuple.__new__(cls, values)
        present = tuple(axis for axis in cls.axes if factors.get(axis) is not None)
        if present not in cls._kinds or any(axis not in cls.axes for axis in factors):
            raise TypeError(f"{cls.__name__} takes {', '.join(cls.axes)}; got {', '.join(factors) or 'none'}")
        kind: type[Any] = cls._kinds[present]
        return tuple.__new__(kind, [factors[axis] for axis in present])

    def factors(self) -> dict[str, Tensor]:
        """The factors that are present, by name."""
        return dict(zip(self._fields, self, strict=True))

    _asdict = factors

    def replace(self, **factors: Tensor | None) -> Self:
        """A copy with some factors exchanged."""
        return type(self)(**{**self.factors(), **factors})

    def to(self, dtype: torch.dtype) -> Self:
        """The same factors in another dtype."""
        return type(self)(**{axis: value.to(dtype) for axis, value in self.factors().items()})

    def __repr__(self) -> str:
        inside = ", ".join(f"{axis}={value!r}" for axis, value in self.factors().items())
        return f"{type(self).__name__}({inside})"

    def __reduce__(self) -> tuple:
        return _named, (type(self).__mro__[1], self.factors())


def _kind(cls: type[Factors], present: tuple[str, ...]) -> type[Factors]:
    """The class of the objects that have just these factors."""

    def element(i: int) -> property:
        return property(lambda self: self[i])

    body = {"__slots__": (), "__module__": cls.__module__, "__doc__": cls.__doc__, "_fields": present}
    return type(cls.__name__, (cls,), body | {axis: element(i) for i, axis in enumerate(present)})


def _named(cls: type[Factors], factors: dict[str, Tensor]) -> Factors:
    """Out of a pickle."""
    return cls(**factors)


class Coefficients(Factors):
    """Factors that mix a bank of K kernels ``(K, O, C/G, *k)`` into one kernel per sample.

    ``W[b, o, c, t] = sum_k kernel[b, k] * filter[b, k, o] * channel[b, k, c] * tap[b, k, t] * bank[k, o, c, t]``

    A factor that is ``None`` counts as 1. The channel factor has one entry per input channel of x, groups or not.

    Attributes:
        kernel: (B, K) one number per kernel; CondConv, DyConv, ODConv.
        filter: (B, 1 or K, O) one number per output channel; DyNet (K), ODConv (1 as released, K as in the paper).
        channel: (B, 1 or K, C) one number per input channel; ODConv.
        tap: (B, 1 or K, T) one number per kernel tap, row-major, T = prod(kernel_size); ODConv.

    >>> coeffs = Coefficients(kernel=torch.tensor([[0.25, 0.75]]))
    >>> coeffs.kernel.shape, coeffs.tap
    (torch.Size([1, 2]), None)
    """

    __slots__ = ()
    kernel: Tensor | None = None
    filter: Tensor | None = None
    channel: Tensor | None = None
    tap: Tensor | None = None

    def shared(self, axis: str) -> Tensor | None:
        """The factor of ``axis`` (B, 1, n) where it is present and the same for all kernels, else None."""
        value = getattr(self, axis)
        return value if value is not None and value.ndim == 3 and plain_shape(value)[1] == 1 else None

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
