# SPDX-License-Identifier: Apache-2.0
"""KernelWarehouse's contrasting-driven attention: how the parts of a layer's kernel are mixed from cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convary.errors import ConfigError
from convary.nn import Router
from convary.nn.arguments import Device, Dtype
from convary.nn.norm import make_norm, normalised
from convary.nn.router import kaiming_, zero_
from convary.ops.coefficients import Factors
from convary.ops.shapes import plain_shape, unflatten

EPSILON = 1e-3  # beside the sum of magnitudes, as released
_BASES = 16  # the fewest, as released


class CellWeights(Factors):
    """How the parts of a layer's kernel are mixed from cells.

    Attributes:
        cells: (B, n, m) weight of each cell in each part; may be negative.
    """

    __slots__ = ()
    cells: Tensor


class CellAttention(Router):
    """Contrasting-driven attention: L1-normalised weights of the cells, blended with the cell each part starts as.

    Args:
        in_channels: C.
        starts: For each of m parts the cell that it starts as; n for the cell of zeros.
        n: Cells of the warehouse.
        own: The layer's own cells among them.
        config: The method's options.
    """

    first_temperature = 1.0
    final_temperature = 0.0
    starts: Tensor

    def __init__(
        self,
        in_channels: int,
        starts: Sequence[int],
        n: int,
        own: slice,
        config: Any,
        device: Device = None,
        dtype: Dtype = None,
    ) -> None:
        super().__init__(in_channels, config.temperature, device)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        m, hidden = len(starts), config.hidden(in_channels)
        self.n, self.own, self.parts = n, own, tuple(starts)
        self.register_buffer("starts", torch.tensor(starts, device=device))
        self.squeeze = nn.Linear(in_channels, hidden, bias=config.norm != "batch", **factory)
        self.norm = make_norm(config.norm, hidden, **factory)
        others = n - (own.stop - own.start)
        self.basis: nn.Linear | None = None
        if config.nonlocal_ratio < 1 and others:
            bases = max(int(others * config.nonlocal_ratio), _BASES)
            self.basis = nn.Linear(bases, others, bias=False, **factory)
            self.heads = nn.Linear(hidden, m * (n - others + bases + 1), bias=False, **factory)
            self.bias = nn.Parameter(torch.empty(m * (n + 1), **factory))
        else:
            self.heads = nn.Linear(hidden, m * (n + 1), **factory)
        self.initialise_()

    def initialise_(self) -> None:
        """Kaiming-normal (fan-out); biases zero."""
        super().initialise_()
        self.starts.copy_(torch.tensor(self.parts))
        for linear in (self.squeeze, self.heads, self.basis):
            kaiming_(linear)
        if self.basis is not None:
            nn.init.zeros_(self.bias)

    @classmethod
    def check_temperature(cls, value: float) -> float:
        """A number from 0 to 1."""
        if not 0.0 <= value <= 1.0:
            raise ConfigError(
                f"the temperature of KernelWarehouse goes from 1 (static) to 0 (dynamic); got {value}; anneal it with "
                "start=1.0, stop=0.0"
            )
        return float(value)

    def coefficients(self, vector: Tensor) -> CellWeights:
        """cells: (B, n, m)."""
        z = self._logits(F.relu(normalised(self.norm, self.squeeze(vector))))  # (B, m, n + 1)
        z = z / (z.abs().sum(2, keepdim=True) + EPSILON)
        tau = self.temperature
        mixed = (1 - tau) * z + tau * self.one_hot().to(z.dtype)  # type: ignore[operator]
        return CellWeights(cells=mixed[:, :, :-1].transpose(1, 2))

    def one_hot(self) -> Tensor:
        """beta: (m, n + 1)."""
        return F.one_hot(self.starts, self.n + 1)

    def neutral_(self) -> None:
        """Whatever the input, each part is the cell it starts as: exactly at temperature 1, to 0.1 % at 0."""
        zero_(self.heads) if self.basis is None else nn.init.zeros_(self.heads.weight)
        bias = self.heads.bias if self.basis is None else self.bias
        with torch.no_grad():
            bias.copy_(self.one_hot().flatten())
        if self.temperature is not None:
            self.set_temperature_(1.0)

    def _logits(self, hidden: Tensor) -> Tensor:
        logits = self.heads(hidden)
        if self.basis is None:
            return unflatten(logits, 1, (-1, self.n + 1))
        own = self.own.stop - self.own.start
        logits = unflatten(logits, 1, (plain_shape(self.starts)[0], -1))
        local, bases, zero = logits.split_with_sizes([own, self.basis.in_features, 1], 2)
        before, after = self.basis(bases).split_with_sizes([self.own.start, self.n - self.own.stop], 2)
        return torch.cat([before, local, after, zero], 2) + unflatten(self.bias, 0, (-1, self.n + 1))
