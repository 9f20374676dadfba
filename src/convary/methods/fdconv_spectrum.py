# SPDX-License-Identifier: Apache-2.0
"""FDConv's weight: spectra of the kernel seen as a matrix, whose frequencies are cut into groups by radius."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from convary.methods.fdconv_transforms import inverse, inverse_by_products
from convary.nn import AssembledConv
from convary.ops.shapes import plain_shape, unflatten
from convary.ops.tracing import is_onnx_trace


class SpectralConv(AssembledConv):
    """A convolution whose ``weight`` holds R spectra, and how kernels are made of them.

    Attributes:
        group_of: Group of each stored coefficient, from 0 to R K - 1; a byte.
        kept: Numbers of the frequencies that are kept, from low to high; None for all.
    """

    config: Any
    group_of: Tensor
    kept: Tensor | None

    def make_weight(self, **factory) -> None:
        """The spectra, (R rows, columns // 2 + 1, 2) real and imaginary parts, and the group of each frequency.

        Of kept frequencies (R kept, 1, 2), from low to high.
        """
        shape = self.spectrum_shape if self.config.param_reduction == 1 else (self.count, 1)
        self.weight = nn.Parameter(torch.empty(self.config.param_ratio * shape[0], shape[1], 2, **factory))
        device, count = factory["device"], self.count
        group_of = torch.empty(self.config.param_ratio * count, dtype=torch.uint8, device=device)
        self.register_buffer("group_of", group_of)
        whole = self.config.param_reduction == 1
        self.register_buffer("kept", None if whole else torch.empty(count, dtype=torch.long, device=device))

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """Rows and columns of the kernel as a matrix."""
        O, C_group, *k = self.kernel_shape
        return O * math.prod(k[:-1]), C_group * k[-1]

    @property
    def spectrum_shape(self) -> tuple[int, int]:
        """Rows and columns of a spectrum."""
        rows, columns = self.matrix_shape
        return rows, columns // 2 + 1

    @property
    def count(self) -> int:
        """Frequencies that are kept of a spectrum."""
        return max(int(math.prod(self.spectrum_shape) * self.config.param_reduction), 1)

    @property
    def K(self) -> int:
        """Groups of the frequencies of a spectrum."""
        return min(self.config.kernels, self.count)

    @property
    def gain(self) -> int:
        """Stored coefficients are the spectrum divided by this, as released; a_w's 1/K is undone by ``factor``."""
        return max(min(self.in_channels, self.out_channels) // 2, 1)

    @property
    def factor(self) -> int:
        """What a_w times a stored coefficient is multiplied by; of a reduced spectrum nothing, as released."""
        return self.gain * self.K * self.config.param_ratio if self.kept is None else 1

    def grouped(self, order: Tensor) -> tuple[Tensor, Tensor | None]:
        """From the frequencies in an order: the group of each stored coefficient, and the frequencies that are kept."""
        R, count = self.config.param_ratio, self.count
        number, kept = numbered(count, self.K, order.device), order[:count]
        if self.config.param_reduction == 1:
            number, kept = torch.empty_like(number).scatter_(0, order, number), None
        copies = torch.arange(R, device=order.device).unsqueeze(1) * self.K
        return (copies + number).flatten().to(torch.uint8), kept

    def spectrum(self, kernel: Tensor) -> Tensor:
        """The weight that a kernel (O, C/G, *k) has: (rows, columns // 2 + 1, 2)."""
        matrix = kernel.double().movedim(1, -2).reshape(self.matrix_shape)
        return torch.view_as_real(torch.fft.rfft2(matrix)) / self.gain

    def stored(self, kernels: Tensor) -> Tensor:
        """The weight of R kernels whose sum the layer starts with, (R, O, C/G, *k)."""
        spectra = torch.stack([self.spectrum(kernel).flatten(0, 1) for kernel in kernels])  # (R, frequencies, 2)
        if self.kept is not None:
            spectra = spectra[:, self.kept] * (self.gain * self.K * len(kernels) / self.factor)
        return spectra.reshape(self.weight.shape)

    def transformed(self, frequency: Tensor | None) -> Tensor:
        """The kernels as matrices (B, rows, columns), from the weights of the groups (B, K); one for all without."""
        weight = self.weight if self.weight.dtype == torch.float64 else self.weight.float()
        if frequency is None:
            mixed = weight.unsqueeze(0) * self.factor
        else:
            group = self.group_of.long().expand(frequency.shape[0], -1)
            share = torch.gather(frequency * self.factor, 1, group).to(weight.dtype)
            mixed = unflatten(share, 1, (*plain_shape(weight)[:2], 1)) * weight
        mixed = self._summed(mixed)
        if is_onnx_trace():  # that exporter has no transform
            return inverse_by_products(mixed, *self.matrix_shape).to(self.weight.dtype)
        spectrum = torch.view_as_complex(mixed)
        if 0 in plain_shape(spectrum):  # the transform takes no empty batch
            return mixed[..., :1, 0].expand(-1, -1, self.matrix_shape[1]).to(self.weight.dtype)
        return inverse(spectrum, self.matrix_shape).to(self.weight.dtype)

    def _summed(self, mixed: Tensor) -> Tensor:
        """(B, R rows, half, 2) to (B, rows, half, 2), frequencies that are not kept as zeros."""
        if self.config.param_ratio > 1:
            mixed = unflatten(mixed, 1, (self.config.param_ratio, -1)).sum(1)
        if self.kept is None:
            return mixed
        whole = mixed.new_zeros(len(mixed), math.prod(self.spectrum_shape), 2)
        return unflatten(whole.index_copy(1, self.kept, mixed.squeeze(2)), 1, self.spectrum_shape)


def by_radius(rows: int, columns: int, device: Any = None) -> Tensor:
    """Numbers of the frequencies of ``rfft2``, row by row, from low to high; equal radii in the order of the numbers.

    The same on every machine: radii are compared as integers, so that no rounding splits equal ones.
    """
    down, across = torch.arange(rows, device=device), torch.arange(columns // 2 + 1, device=device)
    down = torch.minimum(down, rows - down)
    radius = (down * columns).square().unsqueeze(1) + (across * rows).square()
    return radius.flatten().argsort(stable=True)


def by_released_radius(rows: int, columns: int) -> Tensor:
    """The same in the order that the released code makes, call by call.

    Equal radii come as this machine rounds and sorts them: float32 norms and an unstable sort, whose order depends on
    torch's version and the processor. The released layer makes it anew on the machine that it is loaded on.
    """
    grid = torch.meshgrid(
        torch.fft.fftfreq(rows, dtype=torch.float32, device="cpu"),
        torch.fft.rfftfreq(columns, dtype=torch.float32, device="cpu"),
        indexing="ij",
    )
    return torch.norm(torch.stack(grid, dim=-1), dim=-1).view(-1).sort().indices


def numbered(count: int, K: int, device: Any = None) -> Tensor:
    """(count,) group of each of the sorted frequencies: as many in each as can be."""
    return torch.arange(count, device=device) * K // count
