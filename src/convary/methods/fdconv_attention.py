# SPDX-License-Identifier: Apache-2.0
"""FDConv's router: kernel spatial modulation, global and local."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convary.nn import Router, VectorBatchNorm
from convary.nn.arguments import Device, Dtype
from convary.nn.norm import normalised
from convary.nn.router import zero_
from convary.ops.coefficients import Factors
from convary.ops.shapes import plain_shape, unflatten


class Modulation(Factors):
    """What an FDConv layer does to its kernel for a sample; what is None counts as 1.

    Attributes:
        frequency: (B, K) weight of each group of frequencies; their mean is 1/K at the start.
        filter: (B, 1, O).
        channel: (B, 1, C).
        tap: (B, 1, T).
        local: (B, O, C/G * T).
    """

    __slots__ = ()
    frequency: Tensor | None = None
    filter: Tensor | None = None
    channel: Tensor | None = None
    tap: Tensor | None = None
    local: Tensor | None = None


class SpectralAttention(Router):
    """Kernel spatial modulation, global and local.

    Args:
        in_channels: C.
        kernel_shape: (O, C/G, *k).
        sizes: Logits per global attention, by name; one that is missing counts as 1.
        config: The method's options.
    """

    def __init__(
        self,
        in_channels: int,
        kernel_shape: tuple[int, ...],
        sizes: dict[str, int],
        config: Any,
        device: Device = None,
        dtype: Dtype = None,
    ) -> None:
        super().__init__(in_channels)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.kernel_shape, self.sizes, self.config = kernel_shape, sizes, config
        hidden = max(int(in_channels / config.reduction), config.min_hidden)
        self.squeeze = nn.Linear(in_channels, hidden, bias=False, **factory)
        self.norm = VectorBatchNorm(hidden, **factory)
        self.scale, self.shift = (nn.Parameter(torch.empty(1, **factory)) for _ in range(2))
        self.heads = nn.Linear(hidden, sum(sizes.values()), **factory)
        self.local_norm: nn.LayerNorm | None = None
        if config.local:
            reach = round(math.log2(in_channels) / 2 + 0.5) // 2 * 2 + 1  # efficient channel attention's, as released
            self.local_norm = nn.LayerNorm(in_channels, **factory)
            self.local = nn.Parameter(torch.empty(kernel_shape[0] * math.prod(kernel_shape[2:]), reach, **factory))
        self.initialise_()

    def initialise_(self) -> None:
        """The squeeze Kaiming-normal (fan-out); the rest neutral."""
        super().initialise_()
        nn.init.kaiming_normal_(self.squeeze.weight, mode="fan_out", nonlinearity="relu")
        nn.init.ones_(self.scale)
        nn.init.zeros_(self.shift)
        self.neutral_()

    def coefficients(self, vector: Tensor) -> Modulation:
        """All attentions, from pooled features (B, C)."""
        hidden = self.scale * F.relu(normalised(self.norm, self.squeeze(vector))).square() + self.shift
        logits = self.heads(hidden).split_with_sizes(list(self.sizes.values()), 1)
        found = {axis: self._activated(axis, part) for axis, part in zip(self.sizes, logits, strict=True)}
        return Modulation(**found, local=None if self.local_norm is None else self._local(self.local_norm(vector)))

    def _activated(self, axis: str, logits: Tensor) -> Tensor:
        temperature = self.config.temperatures.get(axis, self.config.temperature)
        logits = logits if temperature == 1 else logits / temperature
        if self.config.activation == "softmax":
            return logits.softmax(1)
        value = _doubled(logits, self.config.activation)
        return value / self.sizes[axis] if axis == "frequency" else value.unsqueeze(1)

    def _local(self, vector: Tensor) -> Tensor:
        """(B, C) to (B, O, C/G * T): every channel and its neighbours tell the filters of the channel's group."""
        O, C_group, *k = self.kernel_shape
        G, T, reach = self.in_channels // C_group, math.prod(k), plain_shape(self.local)[1]
        padded = F.pad(vector, (reach // 2, reach // 2))
        windows = torch.stack([padded[:, i : i + self.in_channels] for i in range(reach)], 2)
        logits = unflatten(windows, 1, (G, C_group)) @ unflatten(self.local, 0, (G, O // G * T)).transpose(1, 2)
        logits = unflatten(logits, 3, (O // G, T)).transpose(2, 3).reshape(-1, O, C_group * T)
        return _doubled(logits, self.config.local_activation)

    def neutral_(self) -> None:
        """Zero logits: every frequency's weight is 1/K, and the other attentions 1."""
        zero_(self.heads)
        if self.local_norm is not None:
            nn.init.zeros_(self.local)

    def macs(self) -> int:
        """Of the linear layers and of the convolution along the channels."""
        local = 0 if self.local_norm is None else self.local.numel() * self.kernel_shape[1]
        return super().macs() + local


def _doubled(logits: Tensor, activation: str) -> Tensor:
    """From 0 to 2, and 1 at 0."""
    return 2 * logits.sigmoid() if activation == "sigmoid" else 1 + logits.tanh()
