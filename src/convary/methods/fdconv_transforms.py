# SPDX-License-Identifier: Apache-2.0
"""Inverse transforms of half a spectrum (FDConv), also for recorders of graphs that know no complex numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from convary.ops.tracing import is_exported


def remainder(numbers: Tensor, n: int) -> Tensor:
    """``numbers % n``; ONNX has none where n is free."""
    return numbers - numbers // n * n


def inverse(spectrum: Tensor, size: Sequence[int]) -> Tensor:
    """Real part of the inverse transform of half a spectrum, over as many last axes as ``size`` has.

    One axis after the other: what ``irfftn`` makes of a spectrum that no real array has is only defined for one.
    """
    if torch.compiler.is_compiling() and is_exported():
        return _inverse_by_axis_one(spectrum, size)
    for axis in range(-len(size), -1):
        spectrum = torch.fft.ifft(spectrum, dim=axis)
    return torch.fft.irfft(spectrum, n=size[-1])


def _inverse_by_axis_one(spectrum: Tensor, size: Sequence[int]) -> Tensor:
    """:func:`inverse` by complex transforms of axis 1, as long as it is.

    For ONNX: of its transforms OpenVINO takes neither the axis nor the length for what they are (seen in 2026.4).
    """
    n = size[-1]
    number = torch.arange(n // 2 + 1, device=spectrum.device)
    parts = torch.view_as_real(spectrum) * stands_for(number, n, spectrum.real.dtype).unsqueeze(1)
    spectrum = torch.view_as_complex(F.pad(parts, (0, 0, 0, n - n // 2 - 1)))
    for axis in range(spectrum.ndim - len(size), spectrum.ndim):
        spectrum = torch.fft.ifft(spectrum.transpose(1, axis), dim=1).transpose(1, axis)
    return torch.view_as_real(spectrum)[..., 0]


def inverse_by_products(spectrum: Tensor, rows: int, columns: int) -> Tensor:
    """:func:`inverse` of (B, rows, columns // 2 + 1, 2) real and imaginary parts, without complex numbers.

    For recorders that have none. It takes rows / log(rows) times the arithmetic.
    """
    real, imaginary = spectrum[..., 0], spectrum[..., 1]
    cosine, sine = _waves(rows, rows, spectrum)
    real, imaginary = cosine @ real - sine @ imaginary, sine @ real + cosine @ imaginary
    cosine, sine = _waves(columns // 2 + 1, columns, spectrum)
    number = torch.arange(columns // 2 + 1, device=spectrum.device).unsqueeze(1)
    twice = stands_for(number, columns, spectrum.dtype)
    return real @ (twice * cosine) - imaginary @ (twice * sine)


def stands_for(number: Tensor, n: int, dtype: torch.dtype) -> Tensor:
    """How many frequencies of a whole spectrum one of half a spectrum stands for: two, but 0 and n/2 for themselves."""
    return 2 - (number == 0).to(dtype) - (2 * number == n).to(dtype)


def _waves(frequencies: int, n: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines of an inverse transform of n numbers, over n: (frequencies, n) each."""
    place = torch.arange(n, device=like.device)
    turns = remainder(torch.arange(frequencies, device=like.device).unsqueeze(1) * place, n)
    angle = turns.to(like.dtype) * (2 * math.pi / n)
    return angle.cos() / n, angle.sin() / n


def fft_macs(n: int) -> int:
    """Multiply-adds of a real transform of n numbers."""
    return math.ceil(1.25 * n * math.log2(max(n, 2)))
