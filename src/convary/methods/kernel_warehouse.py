# SPDX-License-Identifier: Apache-2.0
"""KernelWarehouse: kernels assembled per sample from small cells that the layers of a stage share.

A kernel is cut into m parts, each (co, ci) at one tap, and every part is a mixture of the n cells of a warehouse:
``part_j = sum_i a[j, i] cell_i`` with ``a = (1 - tau) z / (|z|_1 + 0.001) + tau beta`` and
``z = Linear(relu(BN(Linear(GAP(x)))))``. Each row of z holds one more number, for a cell of zeros; the values may be
negative. beta is one-hot: part j starts as a cell of its own, so at tau = 1 the layer is a static convolution. tau goes
from 1 to 0, linearly per iteration, over twenty epochs; here it is the router's temperature.

Li, Yao, "KernelWarehouse: Rethinking the Design of Dynamic Convolution", ICML 2024.

Differences from the released code: a layer stands alone, with a warehouse of its own, and ``convert`` makes the layers
of a stage share one, as one tied weight; tau and beta are buffers, saved and moved with the model; any of
``nn.ConvNd``'s arguments works, and any cell ratio: where fewer cells than parts do not come out even (the released
code stops there), the parts left over start as zeros.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convary.errors import ConfigError
from convary.methods.config import Annealing, MethodConfig, check_positive
from convary.nn import DynamicConv, Router, Site, VectorBatchNorm
from convary.nn.routers import zero_
from convary.ops import sample_conv
from convary.ops.geometry import Size

EPSILON = 1e-3  # beside the sum of magnitudes, as released
_BASES = 16  # the fewest, as released
_LARGE, _OUTGROWN = 1 << 20, 8  # weights of an attention, and those per weight of the kernels; published are at most 7
_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


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
            apart, too (MobileNetV2 4x). A stage whose channels have so small a common divisor that the attention would
            outgrow the kernels by far shares nothing.
        nonlocal_ratio: Below 1, the cells that a layer does not start with are reached over that many bases per cell
            (1/16 in ResNet-50 1/2x).
        reduction: The hidden width is max(int(C / reduction), min_hidden).
        min_hidden: See reduction.
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
    nonlocal_ratio: float = 1.0
    reduction: float = 16
    min_hidden: int = 16
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

    @classmethod
    def placement(cls, site: Site) -> bool:
        """ResNets: the convolutions of the blocks, and the shortcuts that stride. MobileNetV2: every convolution.

        A ResNet's 7x7 stem stays static, and in ResNet-50 the layer behind it.
        """
        if not site.is_conv or site.gate:
            return False
        if site.shortcut:
            return max(site.module.stride) > 1
        if site.block_type == "Bottleneck" and site.index == 1:
            return False
        return site.block is not None or max(site.module.kernel_size) < 7

    def join(self, sites: Sequence[Site], layers: Mapping[str, nn.Module]) -> None:
        """Give the layers of a stage one warehouse, with the cells of each in order; see ``sharing``."""
        groups: dict[tuple[str, ...], list[_KernelWarehouseNd]] = {}
        stages = _stages(sites) if self.sharing != "layer" else {}
        opened: set[str | None] = set()
        for site in sites:
            layer = layers.get(site.name)
            opens = site.is_conv and site.block is not None and site.block not in opened
            opened.add(site.block)
            if isinstance(layer, _KernelWarehouseNd):
                alike = (str(layer.rank), str(layer.weight.dtype), str(layer.weight.device))
                key = (stages.get(site.name, site.name), *alike, _kind(site, self.sharing, opens))
                groups.setdefault(key, []).append(layer)
        for group in groups.values():
            if len(group) > 1 and not self._outgrown([layer.kernel_shape for layer in group]):
                stock(group, self)

    def _outgrown(self, kernel_shapes: Sequence[tuple[int, ...]]) -> bool:
        """Whether the attention of layers that share would be far larger than their kernels."""
        sizes = [math.prod(shape) for shape in kernel_shapes]
        parts = sum(sizes) // math.prod(self.cell_shape(kernel_shapes))
        attention = parts**2 * self.cell_ratio * self.min_hidden
        return attention > _LARGE and attention > _OUTGROWN * sum(sizes)

    def cell_shape(self, kernel_shapes: Sequence[tuple[int, ...]]) -> tuple[int, int]:
        """(co, ci) of the cells of kernels (O, C/G, *k)."""
        outs, ins = (math.gcd(*(shape[axis] for shape in kernel_shapes)) for axis in (0, 1))
        # A ratio that does not divide is rounded to one that does: 1/2 of 3 channels is 1.
        return math.gcd(outs, max(int(outs * self.out_ratio), 1)), math.gcd(ins, max(int(ins * self.in_ratio), 1))


def _kind(site: Site, sharing: str, opens: bool) -> str:
    """Which of a stage's warehouses a layer shares."""
    if site.module.groups == site.module.in_channels > 1:
        return "depthwise"
    return "opening" if sharing == "role" and opens else "other"


def _stages(sites: Sequence[Site]) -> dict[str, str]:
    """The stage of every layer by name, as the authors cut ResNets and MobileNetV2; a layer before all blocks is alone.

    A block that changes the number of channels or the size belongs to the stage before it, where what it reads was
    made; of one with a projected shortcut only what reads the block's input does.
    """
    blocks: dict[str, list[Site]] = {}
    for site in sites:
        if site.is_conv and not site.gate and site.block is not None:
            blocks.setdefault(site.block, []).append(site)
    found: dict[str, str] = {}
    stage, ends = 0, False
    for site in sites:
        members = blocks.pop(site.block or "", [])
        if members:  # the block's first layer
            main = [s for s in members if not s.shortcut] or members
            changes = main[0].module.in_channels != main[-1].module.out_channels or any(
                max(s.module.stride) > 1 for s in main
            )
            before = stage
            if changes and len(main) < len(members):
                stage, ends = stage + 1, False
            elif not changes and ends:
                before = stage = stage + 1
                ends = False
            else:
                ends = ends or changes
            for member in members:
                reads_input = member is main[0] or member.shortcut
                found[member.name] = f"stage {before if reads_input else stage}"
        elif found and site.name not in found:
            found[site.name] = f"stage {stage}"
    return found


def stock(layers: Sequence[_KernelWarehouseNd], config: KernelWarehouse) -> None:
    """One warehouse for the layers, each starting with cells of its own."""
    shapes = [layer.kernel_shape for layer in layers]
    co, ci = config.cell_shape(shapes)
    parts = [math.prod(shape) // (co * ci) for shape in shapes]
    n = max(int(sum(parts) * config.cell_ratio), 1)
    like = layers[0].weight
    cells = nn.Parameter(torch.empty(n, co, ci, device=like.device, dtype=like.dtype))
    first_part = first_cell = 0
    for layer, m in zip(layers, parts, strict=True):
        starts, end = _starts(m, n, config.cell_ratio, first_part, first_cell)
        layer.enter(cells, starts, slice(first_cell, n if layer is layers[-1] else end))
        first_part, first_cell = first_part + m, end


def _starts(m: int, n: int, ratio: float, first_part: int, first_cell: int) -> tuple[list[int], int]:
    """The cell that each of m parts starts as (n: the cell of zeros), and the first cell of the next layer."""
    if ratio >= 1:
        return [int((first_part + j) * ratio) for j in range(m)], min(int((first_part + m) * ratio), n)
    period = int(1 / ratio)  # of every so many parts one has a cell, another one each time
    starts, cell = [], first_cell
    for j in range(m):
        owns = j % period == j // period % period and cell < n
        starts.append(cell if owns else n)
        cell += owns
    return starts, cell


@dataclass(frozen=True, kw_only=True)
class CellWeights:
    """How the parts of a layer's kernel are mixed from cells.

    Attributes:
        cells: (B, n, m) weight of each cell in each part; may be negative.
    """

    cells: Tensor

    def factors(self) -> dict[str, Tensor]:
        """The weights, by name."""
        return {"cells": self.cells}


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
        config: KernelWarehouse,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__(in_channels, config.temperature, device)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        m, hidden = len(starts), max(int(in_channels / config.reduction), config.min_hidden)
        self.n, self.own = n, own
        self.register_buffer("starts", torch.tensor(starts, device=device))
        self.squeeze = nn.Linear(in_channels, hidden, bias=False, **factory)
        self.norm = VectorBatchNorm(hidden, **factory)
        others = n - (own.stop - own.start)
        self.basis: nn.Linear | None = None
        if config.nonlocal_ratio < 1 and others:
            bases = max(int(others * config.nonlocal_ratio), _BASES)
            self.basis = nn.Linear(bases, others, bias=False, **factory)
            self.heads = nn.Linear(hidden, m * (n - others + bases + 1), bias=False, **factory)
            self.bias = nn.Parameter(torch.zeros(m * (n + 1), **factory))
        else:
            self.heads = nn.Linear(hidden, m * (n + 1), **factory)
        for linear in (self.squeeze, self.heads, self.basis):
            if linear is not None:
                nn.init.kaiming_normal_(linear.weight, mode="fan_out", nonlinearity="relu")
                if linear.bias is not None:
                    nn.init.zeros_(linear.bias)

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
        z = self._logits(F.relu(self.norm(self.squeeze(vector))))  # (B, m, n + 1)
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
            return logits.unflatten(1, (-1, self.n + 1))
        own = self.own.stop - self.own.start
        logits = logits.unflatten(1, (len(self.starts), -1))
        local, bases, zero = logits.split_with_sizes([own, self.basis.in_features, 1], 2)
        before, after = self.basis(bases).split_with_sizes([self.own.start, self.n - self.own.stop], 2)
        return torch.cat([before, local, after, zero], 2) + self.bias.unflatten(0, (-1, self.n + 1))


class _KernelWarehouseNd(DynamicConv):
    config_type = KernelWarehouse
    config: KernelWarehouse
    mixed_bias = False
    absorbs = False  # every filter is made of the same cells
    released_weight = "warehouse_manager.weights.{}"

    def make_weight(self, **factory) -> None:
        """A warehouse of the layer's own."""
        co, ci = self.config.cell_shape([self.kernel_shape])
        m = math.prod(self.kernel_shape) // (co * ci)
        n = max(int(m * self.config.cell_ratio), 1)
        self.weight = nn.Parameter(torch.empty(n, co, ci, **factory))
        self._starts = _starts(m, n, self.config.cell_ratio, 0, 0)[0]

    def make_router(self, **factory) -> Router:
        n = self.weight.shape[0]
        return CellAttention(self.in_channels, self._starts, n, slice(0, n), self.config, **factory)

    def enter(self, cells: nn.Parameter, starts: list[int], own: slice) -> None:
        """Share a warehouse with other layers.

        Args:
            cells: (n, co, ci), the same for all of them.
            starts: The cell that each part of this layer's kernel starts as.
            own: The cells that this layer initialises.
        """
        self.weight, mode = cells, self.training
        factory: dict[str, Any] = {"device": cells.device, "dtype": cells.dtype}
        self.router = CellAttention(self.in_channels, starts, cells.shape[0], own, self.config, **factory).train(mode)
        self.reset_parameters()

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

    def reset_parameters(self) -> None:
        """The layer's own cells Kaiming-normal with the fan-out of all of them; bias zero."""
        with torch.no_grad():
            own = self.weight[self.attention.own].flatten(0, 1)
            if own.numel():
                nn.init.kaiming_normal_(own, mode="fan_out", nonlinearity="relu")
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def kernels(self, coeffs: CellWeights) -> Tensor:
        """(B, O, C/G, *k), its parts ordered as (tap, filters, channels)."""
        co, ci = self.weight.shape[1:]
        O, C_group, *k = self.kernel_shape
        parts = coeffs.cells.transpose(1, 2) @ self.weight.flatten(1)  # (B, m, co * ci)
        parts = parts.reshape(-1, math.prod(k), O // co, C_group // ci, co, ci)
        return parts.permute(0, 2, 4, 3, 5, 1).reshape(-1, O, C_group, *k)

    def convolve(self, x: Tensor, coeffs: CellWeights, padding: Size | str) -> Tensor:
        """Assemble the kernels, then convolve each sample with its own."""
        geometry = {"stride": self.stride, "dilation": self.dilation, "groups": self.groups}
        return sample_conv(x, self.kernels(coeffs), self.bias, padding=padding, **geometry)

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
            weight: (O, C/G, *k).
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
        co, ci = self.weight.shape[1:]
        O, C_group = weight.shape[:2]
        parts = weight.reshape(O // co, co, C_group // ci, ci, -1).permute(4, 0, 2, 1, 3).reshape(-1, co, ci)
        own = torch.arange(attention.own.start, attention.own.stop, device=weight.device)
        part = torch.searchsorted(attention.starts, own, right=True) - 1
        spare = attention.starts[part] != own
        spread = noise * weight.float().std(correction=0).to(weight.dtype)
        cells = parts[part] + spread * spare[:, None, None] * torch.randn_like(parts[part])
        self.weight[own] = cells.to(self.weight.dtype)
        if self.bias is not None and bias is not None:
            self.bias.copy_(bias)

    def from_released(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """OSVAI/KernelWarehouse's layout: the cells are in the network's warehouse manager."""
        cells = tensors["weight"]
        state = {"weight": cells.reshape(cells.shape[:3])}  # the axes behind are of size 1
        state |= {ours: tensors[theirs] for ours, theirs in self.released_names().items()}
        return state

    def to_released(self) -> dict[str, Tensor]:
        """OSVAI/KernelWarehouse's layout, which has neither tau nor beta."""
        own = self.state_dict()
        state = {"weight": self.weight.reshape(*self.weight.shape, *[1] * self.rank)}
        return state | {theirs: own[ours] for ours, theirs in self.released_names().items()}

    def released_names(self) -> dict[str, str]:
        """Names of tensors: ours, theirs."""
        names = {"router.squeeze.weight": "attention.fc1.weight", "router.heads.weight": "attention.fc2.weight"}
        names |= {f"router.norm.{leaf}": f"attention.norm1.{leaf}" for leaf in _NORM}
        if self.attention.basis is None:
            names["router.heads.bias"] = "attention.fc2.bias"
        else:
            names |= {"router.basis.weight": "attention.fc3.weight", "router.bias": "attention.basis_bias"}
        return names if self.bias is None else names | {"bias": "bias"}


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
