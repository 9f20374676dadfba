# SPDX-License-Identifier: Apache-2.0
"""KernelWarehouse: kernels assembled per sample from small cells that the layers of a stage share.

A kernel is cut into m parts, each (co, ci) at one tap, and every part is a mixture of the n cells of a warehouse:
``part_j = sum_i a[j, i] cell_i`` with ``a = (1 - tau) z / (|z|_1 + 0.001) + tau beta`` and
``z = Linear(relu(BN(Linear(GAP(x)))))``. Each row of z holds one more number, for a cell of zeros; the values may be
negative. beta is one-hot: part j starts as a cell of its own, so at tau = 1 the layer is a static convolution. tau goes
from 1 to 0, linearly per iteration, over twenty epochs; here it is the router's temperature.

Li, Yao, "KernelWarehouse: Rethinking the Design of Dynamic Convolution", ICML 2024.

Differences from the released code: a layer stands alone, with a warehouse of its own, and ``convert`` makes the layers
of a stage share one, as one tied weight (``kernelwarehouse_plan`` says which, ``share_warehouse`` does it for any
layers); tau and beta are buffers, saved and moved with the model; any of ``nn.ConvNd``'s arguments works, and any cell
ratio: where fewer cells than parts do not come out even (the released code stops there), the parts left over start as
zeros.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from convary.errors import ConfigError
from convary.methods import kernelwarehouse_plan as plan
from convary.methods.config import Annealing, MethodConfig, check_positive
from convary.methods.kernelwarehouse_attention import CellAttention, CellWeights
from convary.methods.kernelwarehouse_cells import StockedLayer, share_warehouse
from convary.nn import AssembledConv, DynamicLinear, Site
from convary.nn.arguments import Device, Dtype, PaddingMode, Size


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
        temperature: tau; convary.anneal takes it from 1 to 0.

    Examples:
        >>> from torch import nn
        >>> layer = KernelWarehouse(cell_ratio=2).build(nn.Conv2d(16, 32, 3, padding=1))
        >>> type(layer).__name__, tuple(layer.weight.shape)
        ('KernelWarehouse2d', (18, 32, 16))
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
        own = {name: layer for name, layer in layers.items() if isinstance(layer, StockedLayer)}
        for group in plan.groups(sites, own, self):
            if len(group) > 1:
                share_warehouse(group)

    def share(self, layers: Sequence[nn.Module]) -> None:
        """One warehouse for the layers; see ``share_warehouse``."""
        share_warehouse(layers)

    def cell_shape(self, kernel_shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
        """(co, ci) of the cells of kernels (O, C/G, *k), and the taps, *k, where a part has all of them."""
        channels = plan.cell_shape(kernel_shapes, self.out_ratio, self.in_ratio)
        return channels if self.spatial_partition else (*channels, *kernel_shapes[0][2:])

    def hidden(self, in_channels: int) -> int:
        """Width of the attention's hidden vector."""
        return max(int(in_channels / self.reduction), self.min_hidden)


class _KernelWarehouseNd(StockedLayer, AssembledConv):
    config_type = KernelWarehouse
    config: KernelWarehouse

    if TYPE_CHECKING:  # by scripts/signatures.py

        def __init__(
            self, in_channels: int, out_channels: int, kernel_size: Size, stride: Size = 1, padding: Size | str = 0,
            dilation: Size = 1, groups: int = 1, bias: bool = True, padding_mode: PaddingMode = "zeros",
            device: Device = None, dtype: Dtype = None, *, cell_ratio: float = 1.0, out_ratio: float = 1.0,
            in_ratio: float = 1.0, sharing: Literal["layer", "stage", "role"] = "stage", spatial_partition: bool = True,
            nonlocal_ratio: float = 1.0, reduction: float = 16, min_hidden: int = 16,
            norm: Literal["batch", "layer"] = "batch", temperature: float = 0.0
        ) -> None:  # fmt: skip
            """Torch's arguments, then the method's options, which its config explains."""


class _KernelWarehouseLinear(StockedLayer, DynamicLinear):
    config_type = KernelWarehouse
    config: KernelWarehouse
    rank = 1  # the authors' is a convolution of one tap
    released_inside = "conv."

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Device = None,
        dtype: Dtype = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.config = self.config_type.from_options(options)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.in_features, self.out_features = in_features, out_features
        self.in_channels, self.kernel_shape = in_features, (out_features, in_features, 1)
        self.make_weight(**factory)
        self.register_parameter("bias", nn.Parameter(torch.empty(out_features, **factory)) if bias else None)
        self.router = self.make_router(**factory)
        self.initialise_()

    def transform(self, rows: Tensor, coeffs: CellWeights) -> Tensor:
        """By a matrix per sample."""
        y = rows @ self.kernels(coeffs).squeeze(3).transpose(1, 2)
        return y if self.bias is None else y + self.bias


class KernelWarehouseLinear(_KernelWarehouseLinear):
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

    if TYPE_CHECKING:  # by scripts/signatures.py

        def __init__(
            self, in_features: int, out_features: int, bias: bool = True, device: Device = None, dtype: Dtype = None, *,
            cell_ratio: float = 1.0, out_ratio: float = 1.0, in_ratio: float = 1.0,
            sharing: Literal["layer", "stage", "role"] = "stage", spatial_partition: bool = True,
            nonlocal_ratio: float = 1.0, reduction: float = 16, min_hidden: int = 16,
            norm: Literal["batch", "layer"] = "batch", temperature: float = 0.0
        ) -> None:  # fmt: skip
            """Torch's arguments, then the method's options, which its config explains."""


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
