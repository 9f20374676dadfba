# SPDX-License-Identifier: Apache-2.0
"""CondConv: conditionally parameterised convolutions.

``W(x) = sum_k r_k W_k`` with ``r = sigmoid(Linear(GAP(x)))``. A bias, where there is one, is mixed with the same r.

Yang, Bender, Le, Ngiam, "CondConv: Conditionally Parameterized Convolutions for Efficient Inference", NeurIPS 2019.
Initialisation follows the authors' code as kept by timm: each expert on its own, normal with the fan-out of one
kernel; router uniform, its bias zero.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal

from torch import nn

from convary.methods.config import BankConfig
from convary.methods.perceptron import MixedLinear
from convary.nn import DynamicConv, LinearRouter, Router, Site
from convary.nn.arguments import Device, Dtype, PaddingMode, Size
from convary.nn.layout import Row, renamed, reshaped
from convary.nn.upcycle import per_expert_

ROUTER = "routing_fn"  # in timm's layout


@dataclass(frozen=True, kw_only=True)
class CondConv(BankConfig):
    """Options of CondConv.

    Attributes:
        experts: K.
        activation: "sigmoid" as published, or "softmax" (the paper's ablation: 1.5 points worse).
        router: "layer": every layer routes on its own input. "block": the router is given from outside; convert
            puts one on each block's input, as in the authors' EfficientNet, and a layer of a block has none.

    Examples:
        >>> import convary as cv
        >>> static = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
        >>> dynamic = cv.convert(static, cv.CondConv(experts=4, activation="softmax"), cv.where.all())
        >>> type(dynamic[2]).__name__, dynamic[2].num_experts
        ('CondConv2d', 4)
    """

    name: ClassVar[str] = "condconv"
    title: ClassVar[str] = "CondConv"
    citation: ClassVar[str] = "Yang et al., CondConv, NeurIPS 2019"

    experts: int = 8
    activation: Literal["sigmoid", "softmax"] = "sigmoid"
    router: Literal["layer", "block"] = "layer"

    def refuses(self, module: nn.Module) -> str | None:
        """CondConv takes convolutions and linear layers."""
        return None

    def build(self, module: nn.Module) -> nn.Module:
        """A CondConv layer; for a linear layer a ``MixedLinear`` with CondConv's router: the paper's classifier."""
        if not isinstance(module, nn.Linear):
            return super().build(module)
        return MixedLinear.from_linear(module, experts=self.experts, activation=self.activation, reduction=None)

    def block_router(self, in_channels: int, **factory) -> LinearRouter | None:
        """A router for a block's input where ``router="block"``."""
        return self.make_router(in_channels, **factory) if self.router == "block" else None

    def make_router(self, in_channels: int, **factory) -> LinearRouter:
        """The method's router: one linear layer."""
        return ExampleRouter(in_channels, self.experts, self.activation, **factory)

    @classmethod
    def placement(cls, site: Site) -> bool:
        """The last blocks and the classifier.

        ResNets: the main convolutions of the last three blocks (reproduces the parameter counts of the ODConv paper).
        MobileNetV2: the last six blocks (Sec. 4.1). EfficientNet: blocks of the last three of seven stages; written
        here, as for networks the paper does not know, as the second half of the blocks.
        """
        if not site.is_conv:
            return site.index == site.count - 1
        if not site.block_count:
            return site.index >= site.count // 2
        if site.block is None or site.shortcut or site.gate:
            return False
        last = {"BasicBlock": 3, "Bottleneck": 3}.get(site.block_type)
        if site.block_type == "InvertedResidual" and site.block_count == 17:
            last = 6
        return site.block_index >= site.block_count - (last or site.block_count // 2)


class ExampleRouter(LinearRouter):
    """CondConv's routing function."""

    def initialise_(self) -> None:
        """Uniform with the fans of both sides; bias zero."""
        super().initialise_()
        bound = 1 / math.sqrt(self.in_channels + self.linear.out_features)
        nn.init.uniform_(self.linear.weight, -bound, bound)
        nn.init.zeros_(self.linear.bias)


class _CondConvNd(DynamicConv):
    config_type = CondConv
    config: CondConv

    if TYPE_CHECKING:  # by scripts/signatures.py

        def __init__(
            self, in_channels: int, out_channels: int, kernel_size: Size, stride: Size = 1, padding: Size | str = 0,
            dilation: Size = 1, groups: int = 1, bias: bool = True, padding_mode: PaddingMode = "zeros",
            device: Device = None, dtype: Dtype = None, *, experts: int = 8,
            activation: Literal["sigmoid", "softmax"] = "sigmoid", router: Literal["layer", "block"] = "layer"
        ) -> None:  # fmt: skip
            """Torch's arguments, then the method's options, which its config explains."""

    def make_router(self, **factory) -> Router | None:
        if self.config.router == "block":
            return None
        return self.config.make_router(self.in_channels, **factory)

    def initialise_(self) -> None:
        """Every expert normal(0, sqrt(2 / fan_out)) with the fan-out of one kernel."""
        super().initialise_()
        fan_out = self.out_channels * math.prod(self.kernel_size)
        per_expert_(self.weight, partial(nn.init.normal_, std=math.sqrt(2 / fan_out)))

    def released(self, present: Container[str] | None) -> Iterable[Row]:
        """Timm's CondConv2d (flattened experts) or, to read, d-li14's; the router, if any, under either's name."""
        inside = "conv." if "conv.weight" in (present or ()) else ""
        yield Row("weight", f"{inside}weight", reshaped(lambda bank: bank.flatten(1)))
        if self.bias is not None:
            yield Row("bias", f"{inside}bias")
        if self.router is not None:
            yield from released_router(present)


def released_router(present: Container[str] | None) -> Iterable[Row]:
    """The rows of a router: under timm's name (``routing_fn``) or, to read, d-li14's (``route.fc``) or ours."""
    names = (ROUTER, "route.fc", "router.linear")
    found = next((name for name in names if f"{name}.weight" in (present or ())), ROUTER)
    return renamed({"router.linear": found}, ("weight", "bias"))


class CondConv1d(_CondConvNd):
    """CondConv over (B, C, L): ``nn.Conv1d``'s arguments, then the options of ``CondConv``."""

    rank = 1


class CondConv2d(_CondConvNd):
    """CondConv over (B, C, H, W): ``nn.Conv2d``'s arguments, then the options of ``CondConv``.

    >>> import torch
    >>> layer = CondConv2d(8, 16, 3, padding=1, experts=4)
    >>> layer(torch.randn(2, 8, 5, 5)).shape
    torch.Size([2, 16, 5, 5])
    """

    rank = 2


class CondConv3d(_CondConvNd):
    """CondConv over (B, C, D, H, W): ``nn.Conv3d``'s arguments, then the options of ``CondConv``."""

    rank = 3


CondConv.layers = {1: CondConv1d, 2: CondConv2d, 3: CondConv3d}
