# SPDX-License-Identifier: Apache-2.0
"""A call of the library: memory as its kernels read it, sizes as a C structure, pointers, and what an error says."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from convary.errors import ConvaryError
from convary.ops.geometry import Geometry
from convary.ops.native import library


def structure(name: str, *fields: str, floats: Sequence[str] = ()) -> type[ctypes.Structure]:
    """A C structure of 64-bit whole numbers, and floats after them."""
    typed = [(field, ctypes.c_int64) for field in fields] + [(field, ctypes.c_float) for field in floats]
    return type(name, (ctypes.Structure,), {"_fields_": tuple(typed)})


ConvSizes = structure(  # convary_conv_sizes of csrc/convary.h
    "ConvSizes",
    "B", "C", "H", "W", "O", "K", "G", "kernel_h", "kernel_w", "stride_h", "stride_w", "pad_h", "pad_w", "dilation_h",
    "dilation_w", "filter_rows", "channel_rows", "tap_rows", "bias_rows", "channels_last", "half",
    "half_bank", "threads", "bounded", floats=("lower", "upper"),
)  # fmt: skip


@lru_cache(maxsize=1024)
def conv_sizes(
    x: torch.Size,
    kernels: torch.Size,
    geometry: Geometry,
    rows: tuple[int, int, int, int],
    channels_last: bool,
    threads: int,
    halves: tuple[bool, bool] = (False, False),
) -> tuple[ctypes.Structure, tuple[int, ...]]:
    """The C structure and the shape of y, for shapes of one call.

    ``rows`` are those of filter, channel, tap and bias; ``halves`` says whether features and kernels are bfloat16.
    """
    line = (1,) * (4 - len(x))  # one spatial axis is a map one row high
    B, C, *size = x
    K, O, _, *kernel_size = kernels
    axes = [
        (*line, *size), (*line, *kernel_size), (*line, *geometry.stride), (*(0,) * len(line), *geometry.padding),
        (*line, *geometry.dilation),
    ]  # fmt: skip
    flat = [n for axis in axes[1:] for n in axis]
    sizes = ConvSizes(B, C, *axes[0], O, K, geometry.groups, *flat, *rows, channels_last, *halves, threads)
    return sizes, (B, O, *geometry.out_size(size, kernel_size))


def is_dense(tensor: Tensor) -> bool:
    """Whether its numbers lie as the kernels read them: row-major, no lazy sign."""
    return tensor.is_contiguous() and not tensor.is_neg()


def dense(tensor: Tensor) -> Tensor:
    """The numbers as the kernels read them."""
    if tensor.is_contiguous() and not tensor.is_neg():  # is_dense, without a call
        return tensor
    return tensor.resolve_neg().contiguous()


def all_dense(*tensors: Tensor | None) -> list[Tensor | None]:
    """The same of several, to be kept while the library reads them: a copy made here must live as long."""
    return [None if t is None else dense(t) for t in tensors]


def features(x: Tensor, *, channels_last: bool) -> Tensor:
    """The numbers as the kernels read them, in one of the two layouts."""
    return x.resolve_neg().contiguous(memory_format=torch.channels_last) if channels_last else dense(x)


def empty(like: Tensor, shape: Sequence[int], *, channels_last: bool = False) -> Tensor:
    """Memory for a result."""
    if not channels_last:
        return like.new_empty(shape)
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def call(entry: str, sizes: ctypes.Structure, *tensors: Tensor | None) -> None:
    """Call an entry of the library on dense tensors, which the caller keeps alive; it writes the last ones.

    Raises:
        ConvaryError: the library refuses; the sizes are named.
    """
    pointers = [None if t is None else t.data_ptr() for t in tensors]
    check(library.loaded().entries[entry](ctypes.addressof(sizes), *pointers), entry, sizes)


def check(code: int, entry: str, sizes: ctypes.Structure) -> None:
    """Raise ConvaryError for a code other than 0, naming the sizes."""
    if code:
        values = {field[0]: getattr(sizes, field[0]) for field in sizes._fields_}
        listed = ", ".join(f"{k}={v[:] if isinstance(v, ctypes.Array) else v}" for k, v in values.items())
        text = library.loaded().error_text(code).decode()
        raise ConvaryError(f"the library's {entry} failed: {text}; got {listed}")
