# SPDX-License-Identifier: Apache-2.0
"""KernelWarehouse's layers, convolutional or linear: kernels of cells, and the warehouse that layers share."""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from convary.errors import ConfigError
from convary.methods import kernelwarehouse_plan as plan
from convary.methods.kernelwarehouse_attention import CellAttention, CellWeights
from convary.nn import DynamicLayer, Router
from convary.nn.layout import Row, trailing
from convary.nn.upcycle import spread
from convary.ops.shapes import plain_shape

_FIRST = "attention.fc1.weight"


class _Warehouse:
    """What layers that share have in common: their cells, as the one parameter that all of them hold."""

    def __init__(self, cells: nn.Parameter) -> None:
        self.cells = cells

    def follow(self, before: nn.Parameter, after: nn.Parameter) -> nn.Parameter:
        """The cells after a layer's parameter was replaced: the first layer's that it happened to."""
        if self.cells is before:
            self.cells = after
        return self.cells


class StockedLayer(DynamicLayer):
    """What the convolutions and the linear layer have in common; ``weight`` is the warehouse, (n, co, ci)."""

    config: Any
    router: CellAttention
    takes = CellWeights
    rank: ClassVar[int]
    in_channels: int
    kernel_shape: tuple[int, ...]
    absorbs = False  # every filter is made of the same cells
    constant_weights = False
    released_weight = "warehouse_manager.weights.{}"
    released_network = {"MobileNetV2": ((r"classifier\.1\.(weight|bias)", r"classifier.\1"),)}  # noqa: RUF012
    released_inside: ClassVar[str] = ""  # where in the authors' layer its tensors are
    _warehouse: _Warehouse

    def make_weight(self, **factory) -> None:
        """A warehouse of the layer's own."""
        shape = self.config.cell_shape([self.kernel_shape])
        m = math.prod(self.kernel_shape) // math.prod(shape)
        n = max(int(m * self.config.cell_ratio), 1)
        self.weight = nn.Parameter(torch.empty(n, *shape, **factory))
        self._warehouse = _Warehouse(self.weight)
        self._starts = plan.starts(m, n, self.config.cell_ratio, 0, 0)[0]

    def make_router(self, **factory) -> CellAttention:
        """The layer's attention."""
        n = self.weight.shape[0]
        return CellAttention(self.in_channels, self._starts, n, slice(0, n), self.config, **factory)

    def enter(self, warehouse: _Warehouse, starts: list[int], own: slice) -> None:
        """Share a warehouse with other layers.

        Args:
            warehouse: Its cells are (n, co, ci).
            starts: The cell that each part of this layer's kernel starts as.
            own: The cells that this layer initialises.
        """
        self._warehouse, mode = warehouse, self.training
        self.put("weight", warehouse.cells)
        factory: dict[str, Any] = {"device": self.weight.device, "dtype": self.weight.dtype}
        n = self.weight.shape[0]
        self.router = CellAttention(self.in_channels, starts, n, own, self.config, **factory)
        self.router.train(mode)
        self.initialise_()

    @property
    def alike(self) -> tuple[Any, ...]:
        """What the layers that ``convert`` lets share have in common; for all but the rank it is a must."""
        taps = () if self.config.spatial_partition else self.kernel_shape[2:]
        return self.rank, self.weight.dtype, self.weight.device, taps

    def _apply(self, fn, recurse: bool = True):
        before = self.weight
        super()._apply(fn, recurse)
        self._stay_tied(before)  # to_empty() and the like exchange each layer's parameter for another
        return self

    def _load_from_state_dict(self, state_dict, prefix, *args):
        before = self.weight
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._stay_tied(before)  # assign=True does

    def _stay_tied(self, before: nn.Parameter) -> None:
        if self.weight is not before:
            self.put("weight", self._warehouse.follow(before, self.weight))

    @property
    def num_experts(self) -> int:
        """1: no whole kernels are mixed."""
        return 1

    @property
    def label(self) -> str:
        """Parts and cells."""
        return f"{len(self.router.starts)} parts of {self.router.n} cells"

    def extra_options(self) -> str:
        """Parts and cells."""
        return f"parts={len(self.router.starts)}, cells={self.router.n}"

    def initialise_(self) -> None:
        """The layer's own cells Kaiming-normal with the fan-out of all of them."""
        super().initialise_()
        with torch.no_grad():
            own = self.weight[self.router.own].flatten(0, 1)
            if own.numel():
                nn.init.kaiming_normal_(own, mode="fan_out", nonlinearity="relu")

    def kernels(self, coeffs: CellWeights) -> Tensor:
        """(B, O, C/G, *k), its parts ordered as (tap, filters, channels); (B, O, C, 1) of a linear layer."""
        co, ci, *k_cell = plain_shape(self.weight)[1:]
        O, C_group, *k = self.kernel_shape
        taps = math.prod(k_cell)  # that a cell has itself
        parts = coeffs.cells.transpose(1, 2) @ self.weight.flatten(1)  # (B, m, numel of a cell)
        parts = parts.reshape(-1, O // co, C_group // ci, co, ci * taps).transpose(2, 3)  # of all samples and taps
        parts = parts.reshape(-1, math.prod(k) // taps, O * C_group, taps).transpose(1, 2)
        return parts.reshape(-1, O, C_group, *k)

    def macs(self, positions: int) -> dict[str, int]:
        """Assembling takes every cell for every part."""
        numel = math.prod(self.kernel_shape)
        assembly = len(self.router.starts) * self.weight.numel()
        return {"convolution": numel * positions, "routing": self.router.macs(), "assembly": assembly}

    def cannot_hold(self) -> str | None:
        """Fewer cells than parts do not hold a kernel."""
        if self.config.cell_ratio >= 1:
            return None
        return (
            f"a warehouse with cell_ratio={self.config.cell_ratio} has fewer cells than a trained kernel has parts "
            "and can't hold it; use cell_ratio of at least 1, or convert with upcycle=False"
        )

    def take_(self, weight: Tensor, noise: float, router: Router | None) -> float:
        """Become a static layer, exactly, at temperature 1; annealing it to 0 lets the cells mix.

        Each part starts as its own cell, and keeps to it to 0.1 % at temperature 0 until the attention learns. Cells
        that no part starts as become copies of the one before, with noise.
        """
        starts, cells = self.router.starts, self.router.own
        own = torch.arange(cells.start, cells.stop, device=weight.device)
        parts = self._parts(weight)
        part = torch.searchsorted(starts, own, right=True) - 1
        spare = (starts[part] != own).reshape(-1, *[1] * (parts.ndim - 1))
        made = parts[part] + spread(weight, noise) * spare * torch.randn_like(parts[part])
        self.weight[own] = made.to(self.weight.dtype)
        return 1.0

    def _parts(self, weight: Tensor) -> Tensor:
        """A kernel's parts, (m, co, ci) or with all taps, in the order of ``kernels``."""
        co, ci, *k_cell = self.weight.shape[1:]
        O, C_group = weight.shape[:2]
        parts = weight.reshape(O // co, co, C_group // ci, ci, -1, math.prod(k_cell))
        return parts.permute(4, 0, 2, 1, 3, 5).reshape(-1, co, ci, *k_cell)

    def released(self, present: Container[str] | None) -> Iterator[Row]:
        """OSVAI/KernelWarehouse's layout: the cells are in the network's warehouse manager; neither tau nor beta."""
        inside = self.released_inside if present is None or f"{self.released_inside}{_FIRST}" in present else ""
        yield Row("weight", "weight", trailing(3 + self.rank - self.weight.ndim))
        names = {"router.squeeze.weight": _FIRST, "router.heads.weight": "attention.fc2.weight"}
        names |= {f"router.norm.{leaf}": f"attention.norm1.{leaf}" for leaf in self.router.norm.state_dict()}
        if self.router.squeeze.bias is not None:
            names["router.squeeze.bias"] = "attention.fc1.bias"
        if self.router.basis is None:
            names["router.heads.bias"] = "attention.fc2.bias"
        else:
            names |= {"router.basis.weight": "attention.fc3.weight", "router.bias": "attention.basis_bias"}
        if self.bias is not None:
            names["bias"] = "bias"
        yield from (Row(ours, f"{inside}{theirs}") for ours, theirs in names.items())


def share_warehouse(layers: Sequence[nn.Module]) -> None:
    """Give layers one warehouse, in place: one tied ``weight``, of which each layer starts with cells of its own.

    ``convert`` does so for the layers of a stage; this is for layers of one's own, or another grouping. Cells and
    attentions are made and initialised anew, as in layers that were just built: share before training. A trained
    static kernel goes in after, by ``layer.load_static(weight, bias, noise=0.0)``.

    Args:
        layers: Layers of KernelWarehouse with the same options, dtype and device; with ``spatial_partition=False`` of
            one kernel size too. Their order is the order of their cells.

    Raises:
        ConfigError: a layer is of another method, or differs from the others in one of these; or there is none.

    >>> from convary.methods import KernelWarehouse
    >>> config = KernelWarehouse(cell_ratio=2)
    >>> layers = [config.build(nn.Conv2d(16, 32, 3)), config.build(nn.Linear(48, 32))]
    >>> share_warehouse(layers)
    >>> layers[0].weight is layers[1].weight, tuple(layers[0].weight.shape)
    (True, (24, 32, 16))
    """
    members = [layer for layer in layers if isinstance(layer, StockedLayer)]
    if len(members) < len(layers):
        other = next(layer for layer in layers if not isinstance(layer, StockedLayer))
        raise ConfigError(
            f"only layers of KernelWarehouse share a warehouse; got {type(other).__name__}; build it with "
            "convary.KernelWarehouse(...).build(module)"
        )
    kinds = {(layer.config, *layer.alike[1:]) for layer in members}
    if len(kinds) != 1:
        told = "; ".join(sorted(", ".join(map(str, kind)) for kind in kinds)) or "no layer"
        raise ConfigError(f"layers that share a warehouse have the same options, dtype, device and taps; got {told}")
    _stock(members, members[0].config)


def _stock(layers: Sequence[StockedLayer], config: Any) -> None:
    shapes = [layer.kernel_shape for layer in layers]
    shape = config.cell_shape(shapes)
    parts = [math.prod(kernel) // math.prod(shape) for kernel in shapes]
    n = max(int(sum(parts) * config.cell_ratio), 1)
    like = layers[0].weight
    warehouse = _Warehouse(nn.Parameter(torch.empty(n, *shape, device=like.device, dtype=like.dtype)))
    first_part = first_cell = 0
    for layer, m in zip(layers, parts, strict=True):
        starts, end = plan.starts(m, n, config.cell_ratio, first_part, first_cell)
        layer.enter(warehouse, starts, slice(first_cell, n if layer is layers[-1] else end))
        first_part, first_cell = first_part + m, end
