# SPDX-License-Identifier: Apache-2.0
"""Frequency bands of features, gated position by position (FDConv's frequency band modulation)."""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from convary.methods.fdconv_transforms import fft_macs, inverse, remainder, stands_for
from convary.nn.arguments import Device, Dtype
from convary.ops.geometry import CONV
from convary.ops.shapes import plain_shape
from convary.ops.tracing import is_exported, is_onnx_trace

_GRID = 64  # the released masks are made for 64 positions per axis, and resized


class FrequencyBands(nn.Module):
    """Frequency band modulation: ``sum_i g_i(x) band_i(x) + rest(x)``, ``g = 2 sigmoid(conv(x))`` per position.

    With ``activation="tanh"`` g is ``1 + tanh(conv(x))``, and with ``lowest`` the rest has a gate too.

    Computed as x plus what the gates change of it, so that gates of 1 leave x as it is, bit for bit. A mask of a band
    is a box, as large as the released one: made for 64 positions per axis and resized to others, half an axis where the
    transform is real. It is not quite symmetric where 64 is no multiple of the size; the result's real part is taken.

    Args:
        in_channels: C.
        bands: Where the bands end; from high to low, each as a part of the highest frequency.
        rank: Spatial axes of x.
        device: Of the parameters.
        dtype: Of the parameters.
        activation: "sigmoid" or "tanh".
        lowest: Whether what is below all ends has a gate.
    """

    def __init__(
        self,
        in_channels: int,
        bands: Sequence[int],
        rank: int,
        device: Device = None,
        dtype: Dtype = None,
        *,
        activation: str = "sigmoid",
        lowest: bool = False,
    ) -> None:
        super().__init__()
        self.bands, self.ends = tuple(bands), [_end(band) for band in bands]
        self.activation, self.lowest = activation, lowest
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        gates = len(bands) + lowest
        self.weight = nn.Parameter(torch.empty(gates, in_channels, *(3,) * rank, **factory))
        self.bias = nn.Parameter(torch.empty(gates, **factory))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Gates of 1."""
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *S) to (B, C, *S), in x's dtype; transformed in float32 at least."""
        logits = CONV[x.ndim - 2](x, self.weight, self.bias, padding=1)
        halves = 2 if self.activation == "sigmoid" else 1
        change = torch.tanh(logits / halves).unbind(1)  # what gates are above 1: 2 sigmoid(t) - 1 is tanh(t / 2)
        precise = x if x.dtype == torch.float64 else x.float()
        y = precise * (1 + change[0].unsqueeze(1))
        gates = change if self.lowest else [*change, None]
        for low, (this, after) in zip(self.lows(precise), itertools.pairwise(gates), strict=True):
            y = y + low * (-this if after is None else after - this).unsqueeze(1)
        return y.to(x.dtype)

    def kept(self, x: Tensor) -> list[list[Tensor]]:
        """Which frequencies of each axis are below each band's end."""
        size = x.shape[2:]
        return [[_kept(n, end, i == len(size) - 1, x.device) for i, n in enumerate(size)] for end in self.ends]

    def lows(self, x: Tensor) -> list[Tensor]:
        """What of x is below each band's end, (B, C, *S) each."""
        size, axes, kept = x.shape[2:], tuple(range(2, x.ndim)), self.kept(x)
        if is_onnx_trace() or (torch.compiler.is_compiling() and is_exported()):  # ONNX's transform takes no free sizes
            return [_lowpass(x, masks) for masks in kept]
        if 0 in plain_shape(x):
            return [x for _ in kept]
        spectrum = torch.fft.rfftn(x, dim=axes)
        return [inverse(spectrum * _box(masks), size) for masks in kept]

    def extra_repr(self) -> str:
        """Where they end."""
        return f"bands={self.bands}"

    def macs(self, positions: int) -> int:
        """Of the gates and the transforms, for one sample with that many positions."""
        return self.weight.numel() * positions + (1 + len(self.ends)) * self.weight.shape[1] * fft_macs(positions)


def _end(band: int) -> int:
    """Of the frequencies 0, 1/64, 2/64, ... the first that is no longer below the end of a band."""
    # As released: in float32 the summand counts for 1/4 and 1/8 of the highest frequency, and is lost for 1/2.
    (end,) = struct.unpack("f", struct.pack("f", 0.5 / band + 1e-8))
    return sum(place / _GRID < end for place in range(_GRID // 2 + 1))


def _kept(n: int, end: int, last: bool, device: Any) -> Tensor:
    """Which of the frequencies of an axis of n positions stay below: (n,), of the last axis (n // 2 + 1,)."""
    count, grid = (n // 2 + 1, _GRID // 2 + 1) if last else (n, _GRID)
    place = torch.arange(count, device=device) * grid // count
    return torch.minimum(place, _GRID - place) < end


def _box(masks: Sequence[Tensor]) -> Tensor:
    """The mask over all axes, from one for each."""
    box = masks[0]
    for mask in masks[1:]:
        box = box.unsqueeze(-1) * mask
    return box


def _lowpass(x: Tensor, masks: Sequence[Tensor]) -> Tensor:
    """The same low-pass as one circulant matrix per axis, so that graphs keep dynamic sizes.

    It works because a mask is a box: the product of one mask per axis.
    """
    real, imaginary = x, None
    for axis, mask in enumerate(masks, 2):
        n = x.shape[axis]
        weights = mask.to(x.dtype) / n
        if axis == x.ndim - 1:  # half a spectrum: all but the first, and the middle of an even size, stand for two
            number = torch.arange(n // 2 + 1, device=x.device)
            weights = weights * stands_for(number, n, x.dtype)
        place = torch.arange(n, device=x.device)
        turns = remainder(place.unsqueeze(1) * torch.arange(mask.shape[0], device=x.device), n)
        angle = turns.to(x.dtype) * (2 * math.pi / n)
        apart = remainder(place.unsqueeze(1) - place, n)  # the filter is the same everywhere: a circulant matrix
        cosine, sine = ((wave(angle) @ weights)[apart].transpose(0, 1) for wave in (torch.cos, torch.sin))
        last = real.transpose(axis, -1), None if imaginary is None else imaginary.transpose(axis, -1)
        real, imaginary = last[0] @ cosine, last[0] @ sine
        if last[1] is not None:
            real, imaginary = real - last[1] @ sine, imaginary + last[1] @ cosine
        real, imaginary = real.transpose(axis, -1), imaginary.transpose(axis, -1)
    return real
