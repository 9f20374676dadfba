# SPDX-License-Identifier: Apache-2.0
"""KernelWarehouse: kernels assembled per sample from small cells that the layers of a stage share.

A kernel is cut into m parts, each (co, ci) at one tap, and every part is a mixture of the n cells of a warehouse:
``part_j = sum_i a[j, i] cell_i`` with ``a = (1 - tau) z / (|z|_1 + 0.001) + tau beta`` and
``z = Linear(relu(BN(Linear(GAP(x)))))``. Each row of z holds one more number, for a cell of zeros; the values may be
negative. beta is one-hot: part j starts as a cell of its own, so at tau = 1 the layer is a static convolution. tau goes
from 1 to 0, linearly per iteration, over twenty epochs; here it is the router's temperature.

Li, Yao, "KernelWarehouse: Rethinking the Design of Dynamic Convolution", ICML 2024.

Differences from the released code: a layer stands alone, with a warehouse of its own, and ``convert`` makes the layers
of a stage share one, as one tied weight (``warehouse_plan`` says which, ``share_warehouse`` does it for any layers);
tau and beta are buffers, saved and moved with the model; any of ``nn.ConvNd``'s arguments works, and any cell ratio:
where fewer cells than parts do not come out even (the released code stops there), the parts left over start as zeros.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from convary.errors import ConfigError, ShapeError
from convary.methods import warehouse_plan
from convary.methods.cell_attention import CellAttention, CellWeights
from convary.methods.config import Annealing, MethodConfig, check_positive
from convary.nn import DynamicConv, DynamicLayer, Router, Site
from convary.ops import sample_conv
from convary.ops.geometry import Size
from convary.ops.shapes import plain_shape

_FIRST = "attention.fc1.weight"


@dataclass(frozen=True, kw_only=True)
class KernelWarehouse(MethodConfig):
    """Options of KernelWarehouse.

    Attributes:
        cell_ratio: Cells per kernel part, b in the paper: 1, 2 and 4 are published, and below 1 (1/2, 1/4) for networks
            smaller than the static one, which then can't take over a trained network's weights.
        out_ratio: co over the greatest common divisor of the sharing layers' output channels; 1/2 where cell_ratio
            is below 1.
        in_ratio: ci over that of their input channels per group.
        sharing: Which layers share a warehouse when a model is converted. "layer": none. "stage": all of a stage, its
            depthwise layers apart, as published for ResNets and MobileNetV2 1x. "role": the layers that open a block
            apart, too (MobileNetV2 4x). Where a stage's attentions would outgrow its kernels by far, its layers of
            one shape share, or none.
        spatial_partition: Whether a part has one tap, as published, or all taps of its kernel; then only layers of one
            kernel size share.
        nonlocal_ratio: Below 1, the cells that a layer does not start with are reached over that many bases per cell
            (1/16 in ResNet-50 1/2x).
        reduction: The hidden width is max(int(C / reduction), min_hidden).
        min_hidden: See reduction.
        norm: Of the hidden vector: "batch", or "layer", which ConvNeXt has; the linear layer before it has a bias then.
        temperature: tau; ``convary.anneal`` takes it from 1 to 0.
    """

    name: ClassVar[str] = "kernelwarehouse"
    title: ClassVar[str] = "KernelWarehouse"
    citation: ClassVar[str] = "Li & Yao, KernelWarehouse, ICML 2024"
    annealing: ClassVar[Annealing | None] = Annealing(start=1.0, stop=0.0, epochs=20)

    cell_ratio: float = 1.0
    out_ratio: float = 1.0
    in_ratio: float = 1.0
    sharing: Literal["layer", "stage", "role"] = "stage"
    spatial_partition: bool = True
    nonlocal_ratio: float = 1.0
    reduction: float = 16
    min_hidden: int = 16
    norm: Literal["batch", "layer"] = "batch"
    temperature: float = 0.0

    def __post_init__(self) -> None:
        """Check the numbers."""
        super().__post_init__()
        for name in ("cell_ratio", "out_ratio", "in_ratio", "nonlocal_ratio", "reduction", "min_hidden"):
            check_positive(name, getattr(self, name))
        for name in ("out_ratio", "in_ratio"):
            value = getattr(self, name)
            if value > 1 or not (1 / value).is_integer():
                raise ConfigError(f"{name} must be 1, 1/2, 1/3, ...; got {value}")
        CellAttention.check_temperature(self.temperature)

    @property
    def promise(self) -> float:
        """The paper's budget: cells per kernel part."""
        return self.cell_ratio

    @classmethod
    def placement(cls, site: Site) -> bool:
        """ResNets: the convolutions of the blocks, and the shortcuts that stride. MobileNetV2: every convolution.

        ConvNeXt: every convolution, and the blocks' linear layers. A ResNet's 7x7 stem stays static, and in ResNet-50
        the layer after it.
        """
        if site.gate:
            return False
        if not site.is_conv:
            return site.block is not None
        if site.shortcut:
            return max(site.module.stride) > 1
        if site.block_type == "Bottleneck" and site.index == 1:
            return False
        return site.block is not None or max(site.module.kernel_size) < 7

    def refuses(self, module: nn.Module) -> str | None:
        """KernelWarehouse takes convolutions and linear layers."""
        return None

    def build(self, module: Any) -> nn.Module:
        """A layer with a warehouse of its own."""
        if isinstance(module, nn.Linear):
            return KernelWarehouseLinear.from_linear(module, **self.options())
        return super().build(module)

    def join(self, sites: Sequence[Site], layers: Mapping[str, nn.Module]) -> None:
        """Give the layers of a stage one warehouse, with the cells of each in order; see ``sharing``."""
        own = {name: layer for name, layer in layers.items() if isinstance(layer, _Stocked)}
        for group in warehouse_plan.groups(sites, own, self):
            if len(group) > 1:
                share_warehouse(group)

    def share(self, layers: Sequence[nn.Module]) -> None:
        """One warehouse for the layers; see ``share_warehouse``."""
        share_warehouse(layers)

    def cell_shape(self, kernel_shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
        """(co, ci) of the cells of kernels (O, C/G, *k), and the taps, *k, where a part has all of them."""
        channels = warehouse_plan.cell_shape(kernel_shapes, self.out_ratio, self.in_ratio)
        return channels if self.spatial_partition else (*channels, *kernel_shapes[0][2:])

    def hidden(self, in_channels: int) -> int:
        """Width of the attention's hidden vector."""
        return max(int(in_channels / self.reduction), self.min_hidden)


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

    >>> config = KernelWarehouse(cell_ratio=2)
    >>> layers = [config.build(nn.Conv2d(16, 32, 3)), config.build(nn.Linear(48, 32))]
    >>> share_warehouse(layers)
    >>> layers[0].weight is layers[1].weight, tuple(layers[0].weight.shape)
    (True, (24, 32, 16))
    """
    members = [layer for layer in layers if isinstance(layer, _Stocked)]
    if len(members) < len(layers):
        other = next(layer for layer in layers if not isinstance(layer, _Stocked))
        raise ConfigError(
            f"only layers of KernelWarehouse share a warehouse; got {type(other).__name__}; build it with "
            "convary.KernelWarehouse(...).build(module)"
        )
    kinds = {(layer.config, *layer.alike[1:]) for layer in members}
    if len(kinds) != 1:
        told = "; ".join(sorted(", ".join(map(str, kind)) for kind in kinds)) or "no layer"
        raise ConfigError(f"layers that share a warehouse have the same options, dtype, device and taps; got {told}")
    _stock(members, members[0].config)


def _stock(layers: Sequence[_Stocked], config: KernelWarehouse) -> None:
    shapes = [layer.kernel_shape for layer in layers]
    shape = config.cell_shape(shapes)
    parts = [math.prod(kernel) // math.prod(shape) for kernel in shapes]
    n = max(int(sum(parts) * config.cell_ratio), 1)
    like = layers[0].weight
    warehouse = _Warehouse(nn.Parameter(torch.empty(n, *shape, device=like.device, dtype=like.dtype)))
    first_part = first_cell = 0
    for layer, m in zip(layers, parts, strict=True):
        starts, end = warehouse_plan.starts(m, n, config.cell_ratio, first_part, first_cell)
        layer.enter(warehouse, starts, slice(first_cell, n if layer is layers[-1] else end))
        first_part, first_cell = first_part + m, end


class _Warehouse:
    """What layers that share have in common: their cells, as the one parameter that all of them hold."""

    def __init__(self, cells: nn.Parameter) -> None:
        self.cells = cells

    def follow(self, before: nn.Parameter, after: nn.Parameter) -> nn.Parameter:
        """The cells after a layer's parameter was replaced: the first layer's that it happened to."""
        if self.cells is before:
            self.cells = after
        return self.cells


class _Stocked(DynamicLayer):
    """What the convolutions and the linear layer have in common; ``weight`` is the warehouse, (n, co, ci)."""

    config: KernelWarehouse
    takes = CellWeights
    rank: ClassVar[int]
    in_channels: int
    kernel_shape: tuple[int, ...]
    absorbs = False  # every filter is made of the same cells
    released_weight = "warehouse_manager.weights.{}"
    released_network = {"MobileNetV2": ((r"classifier\.1\.(weight|bias)", r"classifier.\1"),)}  # noqa: RUF012
    _warehouse: _Warehouse

    def make_weight(self, **factory) -> None:
        """A warehouse of the layer's own."""
        shape = self.config.cell_shape([self.kernel_shape])
        m = math.prod(self.kernel_shape) // math.prod(shape)
        n = max(int(m * self.config.cell_ratio), 1)
        self.weight = nn.Parameter(torch.empty(n, *shape, **factory))
        self._warehouse = _Warehouse(self.weight)
        self._starts = warehouse_plan.starts(m, n, self.config.cell_ratio, 0, 0)[0]

    def make_router(self, **factory) -> Router:
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
        self.router = CellAttention(self.in_channels, starts, n, own, self.config, **factory).train(mode)
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
    def size(self) -> str:
        """Parts and cells."""
        return f"{len(self.attention.starts)} parts of {self.attention.n} cells"

    def extra_options(self) -> str:
        """Parts and cells."""
        return f"parts={len(self.attention.starts)}, cells={self.attention.n}"

    @property
    def attention(self) -> CellAttention:
        """The router, by its type."""
        router = self.router
        if not isinstance(router, CellAttention):
            raise TypeError("a KernelWarehouse layer has its own attention")
        return router

    def initialise_(self) -> None:
        """The layer's own cells Kaiming-normal with the fan-out of all of them; bias zero."""
        super().initialise_()
        with torch.no_grad():
            own = self.weight[self.attention.own].flatten(0, 1)
            if own.numel():
                nn.init.kaiming_normal_(own, mode="fan_out", nonlinearity="relu")
        if self.bias is not None:
            nn.init.zeros_(self.bias)

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
        assembly = len(self.attention.starts) * self.weight.numel()
        return {"convolution": numel * positions, "routing": self.attention.macs(), "assembly": assembly}

    @torch.no_grad()
    def load_static(self, weight: Tensor, bias: Tensor | None, noise: float, router: Router | None = None) -> None:
        """Become a static layer, exactly, at temperature 1; annealing it to 0 lets the cells mix.

        Each part starts as its own cell, and keeps to it to 0.1 % at temperature 0 until the attention learns. Cells
        that no part starts as become copies of the one before, with noise.

        Args:
            weight: (O, C/G, *k), or (O, C) of a linear layer.
            bias: (O,) or None.
            noise: Standard deviation of that noise relative to that of the weights.
            router: Not used.

        Raises:
            ConfigError: there are fewer cells than parts.
        """
        if self.config.cell_ratio < 1:
            raise ConfigError(
                f"a warehouse with cell_ratio={self.config.cell_ratio} has fewer cells than a trained kernel has parts "
                "and can't hold it; use cell_ratio of at least 1, or convert with upcycle=False"
            )
        if self.weight.is_meta:
            return
        attention = self.attention
        attention.neutral_()
        parts = self._parts(weight)
        own = torch.arange(attention.own.start, attention.own.stop, device=weight.device)
        part = torch.searchsorted(attention.starts, own, right=True) - 1
        spare = attention.starts[part] != own
        spread = noise * weight.float().std(correction=0).to(weight.dtype)
        cells = parts[part] + spread * spare.reshape(-1, *[1] * (parts.ndim - 1)) * torch.randn_like(parts[part])
        self.weight[own] = cells.to(self.weight.dtype)
        if self.bias is not None and bias is not None:
            self.bias.copy_(bias)

    def _parts(self, weight: Tensor) -> Tensor:
        """A kernel's parts, (m, co, ci) or with all taps, in the order of ``kernels``."""
        co, ci, *k_cell = self.weight.shape[1:]
        O, C_group = weight.shape[:2]
        parts = weight.reshape(O // co, co, C_group // ci, ci, -1, math.prod(k_cell))
        return parts.permute(4, 0, 2, 1, 3, 5).reshape(-1, co, ci, *k_cell)

    def from_released(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """OSVAI/KernelWarehouse's layout: the cells are in the network's warehouse manager."""
        cells = tensors["weight"]
        state = {"weight": cells.reshape(cells.shape[: self.weight.ndim])}  # the axes after are of size 1
        names = self.released_names(self.released_inside if self.released_inside + _FIRST in tensors else "")
        return state | {ours: tensors[theirs] for ours, theirs in names.items()}

    def to_released(self) -> dict[str, Tensor]:
        """OSVAI/KernelWarehouse's layout, which has neither tau nor beta."""
        own, cells = self.state_dict(), self.weight
        state = {"weight": cells.reshape(*cells.shape, *[1] * (3 + self.rank - cells.ndim))}
        return state | {theirs: own[ours] for ours, theirs in self.released_names(self.released_inside).items()}

    released_inside: ClassVar[str] = ""  # where in the authors' layer its tensors are

    def released_names(self, inside: str = "") -> dict[str, str]:
        """Names of tensors: ours, theirs."""
        names = {"router.squeeze.weight": _FIRST, "router.heads.weight": "attention.fc2.weight"}
        names |= {f"router.norm.{leaf}": f"attention.norm1.{leaf}" for leaf in self.attention.norm.state_dict()}
        if self.attention.squeeze.bias is not None:
            names["router.squeeze.bias"] = "attention.fc1.bias"
        if self.attention.basis is None:
            names["router.heads.bias"] = "attention.fc2.bias"
        else:
            names |= {"router.basis.weight": "attention.fc3.weight", "router.bias": "attention.basis_bias"}
        if self.bias is not None:
            names["bias"] = "bias"
        return {ours: inside + theirs for ours, theirs in names.items()}


class _KernelWarehouseNd(_Stocked, DynamicConv):
    config_type = KernelWarehouse
    mixed_bias = False

    def convolve(self, x: Tensor, coeffs: CellWeights, padding: Size | str) -> Tensor:
        """Assemble the kernels, then convolve each sample with its own."""
        geometry = {"stride": self.stride, "dilation": self.dilation, "groups": self.groups}
        return sample_conv(x, self.kernels(coeffs), self.bias, padding=padding, **geometry)


class KernelWarehouseLinear(_Stocked):
    """KernelWarehouse of a linear layer: one matrix per sample, of cells (co, ci).

    Args:
        in_features: C.
        out_features: O.
        bias: Whether to add a bias.
        device: Of the parameters.
        dtype: Of the parameters.
        **options: The options of ``KernelWarehouse``.

    Shape:
        x (B, C) to (B, O), or (C,) to (O,). With axes between, (B, *, C) to (B, *, O), the condition is the mean over
        them.

    Raises:
        ConfigError: an unknown option, or a value that can't work.

    >>> KernelWarehouseLinear(8, 3, cell_ratio=2)(torch.randn(5, 8)).shape
    torch.Size([5, 3])
    """

    rank = 1  # the authors' is a convolution of one tap
    released_inside = "conv."

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, device=None, dtype=None, **options: Any
    ) -> None:
        super().__init__()
        self.config = KernelWarehouse.from_options(options)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.in_features, self.out_features = in_features, out_features
        self.in_channels, self.kernel_shape = in_features, (out_features, in_features, 1)
        self.make_weight(**factory)
        self.register_parameter("bias", nn.Parameter(torch.empty(out_features, **factory)) if bias else None)
        self.router = self.make_router(**factory)
        self.initialise_()

    @classmethod
    def from_linear(cls, linear: nn.Linear, **options: Any) -> KernelWarehouseLinear:
        """A freshly initialised layer with the sizes, dtype, device and mode of a static one."""
        factory: dict[str, Any] = {"device": linear.weight.device, "dtype": linear.weight.dtype}
        layer = cls(linear.in_features, linear.out_features, linear.bias is not None, **factory, **options)
        return layer.train(linear.training)

    def forward(self, x: Tensor, coeffs: Any = None) -> Tensor:
        """(B, *, C) to (B, *, O).

        Raises:
            ShapeError: x has another number of features, or no batch axis.
        """
        if x.ndim == 1:
            return self.forward(x.unsqueeze(0), coeffs).squeeze(0)
        if x.ndim < 2 or x.shape[-1] != self.in_features:
            raise ShapeError(f"KernelWarehouseLinear wants x of shape (B, *, {self.in_features}); got {tuple(x.shape)}")
        rows = x.unsqueeze(1) if x.ndim == 2 else x.flatten(1, -2)  # (B, P, C)
        if coeffs is None:
            coeffs = self.coefficients(rows.transpose(1, 2))
        y = rows @ self.kernels(coeffs).squeeze(3).transpose(1, 2)
        if self.bias is not None:
            y = y + self.bias
        return y.reshape(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        """Like ``nn.Linear``."""
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, {self.extra_options()}"


class KernelWarehouse1d(_KernelWarehouseNd):
    """KernelWarehouse over (B, C, L): ``nn.Conv1d``'s arguments, then the options of ``KernelWarehouse``."""

    rank = 1


class KernelWarehouse2d(_KernelWarehouseNd):
    """KernelWarehouse over (B, C, H, W): ``nn.Conv2d``'s arguments, then the options of ``KernelWarehouse``.

    >>> layer = KernelWarehouse2d(64, 128, 3, padding=1, cell_ratio=2)
    >>> layer(torch.randn(1, 64, 5, 5)).shape
    torch.Size([1, 128, 5, 5])
    """

    rank = 2


class KernelWarehouse3d(_KernelWarehouseNd):
    """KernelWarehouse over (B, C, D, H, W): ``nn.Conv3d``'s arguments, then the options of ``KernelWarehouse``."""

    rank = 3


KernelWarehouse.layers = {1: KernelWarehouse1d, 2: KernelWarehouse2d, 3: KernelWarehouse3d}
