# SPDX-License-Identifier: Apache-2.0
"""DCD: dynamic convolution as a static kernel, scaled by filter, plus a dynamic residual of low rank.

``y = L(x) (W0 * x + b) + P (BN(Phi(x) q) + q)`` with ``q = BN(Q x)``: Q takes C channels to a latent space of few,
Phi(x) fuses these, P takes them to O. With ``v = U pool(x)`` and ``z = v hsig(V v)``, Phi (latent x latent) and the
logits of ``L = hsig(...)`` are linear in z; ``hsig(t) = relu6(t + 3) / 3`` goes from 0 to 2 and is 1 at 0.

Li et al., "Revisiting Dynamic Convolution via Matrix Decomposition", ICLR 2021. The paper writes
``W(x) = L(x) W0 + P Phi(x) Q^T``; the released code, and this file, put a normalisation behind Q and one behind Phi,
and add q again. Of a k x k kernel Q reads the centre tap.

Differences from the released code: any of ``nn.ConvNd``'s arguments works (the residual reaches over all groups); a
batch of one, or a map of one position, can be trained on; Phi and L come from one linear layer.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convary.errors import CheckpointError
from convary.methods.config import MethodConfig, check_positive
from convary.methods.dcd_fusion import Fusion, FusionRouter
from convary.methods.dcd_residual import Decomposed
from convary.nn import AssembledConv, DynamicLinear, Router, Site
from convary.nn.arguments import Device, Dtype, PaddingMode
from convary.ops.geometry import CONV, Size, resolve
from convary.ops.shapes import plain_shape

_CLASSIFIER = 32  # latent and hidden width of the classifier, as released


@dataclass(frozen=True, kw_only=True)
class DCD(MethodConfig):
    """Options of DCD.

    Attributes:
        latent: How wide the latent space is, and what is pooled; see sizes. "pointwise" as released for
            MobileNetV2, "basic" and "bottleneck" for the blocks of ResNets. "auto": convert takes the one of the
            layer's block; a layer on its own is "pointwise".
        squeeze: Width of z: of max(pooled inputs, latent ** 2) one part in so many; 16 is published, and 8 for
            MobileNetV2 0.5.

    Examples:
        >>> from torch import nn
        >>> layer = DCD().build(nn.Conv2d(16, 32, 3, padding=1))
        >>> type(layer).__name__, tuple(layer.weight.shape)
        ('DCDConv2d', (1, 32, 16, 3, 3))
    """

    name: ClassVar[str] = "dcd"
    title: ClassVar[str] = "DCD"
    citation: ClassVar[str] = "Li et al., DCD, ICLR 2021"

    latent: Literal["auto", "pointwise", "basic", "bottleneck"] = "auto"
    squeeze: int = 16

    def __post_init__(self) -> None:
        """Check the number."""
        super().__post_init__()
        check_positive("squeeze", self.squeeze)

    def refuses(self, module: nn.Module) -> str | None:
        """DCD takes convolutions and linear layers."""
        return None

    def at(self, site: Site) -> DCD:
        """With the latent space of the layer's block."""
        if self.latent != "auto":
            return self
        block = {"BasicBlock": "basic", "Bottleneck": "bottleneck"}.get(site.block_type, "pointwise")
        return dataclasses.replace(self, latent=block)

    def build(self, module: Any) -> nn.Module:
        """A DCD layer; for a linear layer the released classifier."""
        return DCDLinear.from_linear(module) if isinstance(module, nn.Linear) else super().build(module)

    @classmethod
    def placement(cls, site: Site) -> bool:
        """The classifier, and the ungrouped convolutions of the blocks but those of MobileNetV2's first.

        Stem, shortcuts, depthwise layers and the 1x1 behind MobileNetV2's blocks stay static. A network without
        blocks: all but the first.
        """
        if not site.is_conv:
            return site.index == site.count - 1
        if site.gate or site.shortcut or site.module.groups > 1:
            return False
        if not site.block_count:
            return site.index > 0
        unexpanded = site.block_type == "DepthwiseSeparableConv" or (
            site.block_type == "InvertedResidual" and site.block_index == 0
        )
        return site.block is not None and not unexpanded

    def sizes(self, C: int, O: int, rank: int) -> tuple[int, int, int]:
        """Width of the latent space, positions per axis that are pooled, and width of z."""
        if self.latent == "bottleneck":
            latent = int(math.sqrt(C))
            return latent, 1, max(max(C, latent**2) // self.squeeze, 1)
        if self.latent == "basic":
            pooled = C * 2**rank
            latent = int(math.sqrt(pooled))
            return latent, 2, max(max(pooled, latent**2) // self.squeeze, 4)
        pool, part = (2, 8) if C < O else (1, 2)
        pooled = C * pool**rank
        while min(pooled // part, O // part) ** 2 > 2 * pooled:
            part *= 2
        latent = max(min(pooled // part, O // part), 4)
        return latent, pool, max(max(pooled, latent**2) // self.squeeze, 4)


class _DCDNd(Decomposed, AssembledConv):
    config_type = DCD
    config: DCD
    constant_weights = True  # W0, Q and P: kernels are made for inspection and folding alone

    if TYPE_CHECKING:  # by scripts/signatures.py

        def __init__(
            self, in_channels: int, out_channels: int, kernel_size: Size, stride: Size = 1, padding: Size | str = 0,
            dilation: Size = 1, groups: int = 1, bias: bool = True, padding_mode: PaddingMode = "zeros",
            device: Device = None, dtype: Dtype = None, *,
            latent: Literal["auto", "pointwise", "basic", "bottleneck"] = "auto", squeeze: int = 16
        ) -> None:  # fmt: skip
            """Torch's arguments, then the method's options, which its config explains."""

    def make_weight(self, **factory) -> None:
        """W0 and the residual."""
        super().make_weight(**factory)
        latent = self.config.sizes(self.in_channels, self.out_channels, self.rank)[0]
        self.make_residual(self.in_channels, self.out_channels, latent, **factory)

    def make_router(self, **factory) -> Router:
        latent, pool, hidden = self.config.sizes(self.in_channels, self.out_channels, self.rank)
        return FusionRouter(self.in_channels, self.out_channels, latent, pool, self.rank, hidden, **factory)

    def convolve(self, x: Tensor, coeffs: Fusion, padding: Size | str) -> Tensor:
        """The scaled static convolution, and the residual on the centre tap."""
        conv = CONV[self.rank]
        padded, g = resolve(x, self.kernel_size, self.stride, padding, self.dilation, self.groups)
        static = conv(padded, self.weight[0], self.bias, g.stride, g.padding, g.dilation, g.groups)
        scale = coeffs.filter.reshape(-1, self.out_channels, *[1] * self.rank).to(static.dtype)
        sides = self._centre_sides(x, padding)
        points = self.q.reshape(*plain_shape(self.q), *[1] * self.rank)
        q = conv(pad_or_cut(x, sides), points, None, self.stride)
        return scale * static + self.residual(q, coeffs)

    def _centre_sides(self, x: Tensor, padding: Size | str) -> list[int]:
        """``F.pad``'s argument that puts the first centre tap first; negative where it cuts."""
        sides = [0] * (2 * self.rank) if padding == 0 else self._pad_sides(x.shape[2:])
        for i, (k, d) in enumerate(zip(reversed(self.kernel_size), reversed(self.dilation), strict=True)):
            sides[2 * i] -= (k - 1) // 2 * d
            sides[2 * i + 1] -= k // 2 * d
        return sides

    def _dense(self) -> Tensor:
        G, (O, C_group) = self.groups, self.kernel_shape[:2]
        blocks = torch.eye(G, device=self.q.device, dtype=self.q.dtype).reshape(G, 1, G, 1, *[1] * self.rank)
        dense = blocks * self.weight[0].reshape(G, O // G, 1, C_group, *self.kernel_size)
        return dense.reshape(O, G * C_group, *self.kernel_size)

    def _centre(self) -> int:
        number = 0
        for k in self.kernel_size:
            number = number * k + (k - 1) // 2
        return number

    def released_kind(self) -> str:
        """What they write in their MobileNetV2, or nothing, as in their ResNets.

        Raises:
            CheckpointError: the layer has a bias.
        """
        if self.bias is not None:
            raise CheckpointError("the released DCD layout holds convolutions without bias; got one with bias")
        return "" if self.config.latent in ("basic", "bottleneck") else "conv_"


class DCDLinear(Decomposed, DynamicLinear):
    """DCD's classifier: a linear layer with the same decomposition, 32 latent features.

    Args:
        in_features: C.
        out_features: O.
        bias: Whether to add a bias, which L scales too.
        device: Of the parameters.
        dtype: Of the parameters.

    Shape:
        x (B, C) to (B, O), or (C,) to (O,). With axes between, (B, *, C) to (B, *, O), the condition is the mean over
        them.

    >>> DCDLinear(8, 3)(torch.randn(5, 8)).shape
    torch.Size([5, 3])
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, device: Device = None, dtype: Dtype = None
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.in_features, self.out_features = in_features, out_features
        self.weight = nn.Parameter(torch.empty(1, out_features, in_features, **factory))
        self.register_parameter("bias", nn.Parameter(torch.empty(out_features, **factory)) if bias else None)
        self.make_residual(in_features, out_features, _CLASSIFIER, **factory)
        self.router = FusionRouter(in_features, out_features, _CLASSIFIER, 1, 1, _CLASSIFIER, **factory)
        self.initialise_()

    def transform(self, rows: Tensor, coeffs: Fusion) -> Tensor:
        """The scaled static layer, and the residual."""
        static = F.linear(rows, self.weight[0], self.bias)
        return coeffs.filter * static + self.residual(self.q @ rows.transpose(1, 2), coeffs).transpose(1, 2)


def pad_or_cut(x: Tensor, sides: Sequence[int]) -> Tensor:
    """``F.pad`` with zeros that cuts by slices: Core ML and OpenCV pad by no negative number."""
    if not all(type(side) is int for side in sides):  # computed from a size that is free in the graph
        return F.pad(x, list(sides))
    if min(sides) < 0:
        pairs = list(zip(sides[::2], sides[1::2], strict=True))[::-1]  # first axis first
        x = x[(..., *(slice(max(-before, 0), min(after, 0) or None) for before, after in pairs))]
    return F.pad(x, [max(side, 0) for side in sides]) if max(sides) > 0 else x


class DCDConv1d(_DCDNd):
    """DCD over (B, C, L): ``nn.Conv1d``'s arguments, then the options of ``DCD``."""

    rank = 1


class DCDConv2d(_DCDNd):
    """DCD over (B, C, H, W): ``nn.Conv2d``'s arguments, then the options of ``DCD``.

    >>> layer = DCDConv2d(64, 128, 1)
    >>> layer(torch.randn(1, 64, 5, 5)).shape
    torch.Size([1, 128, 5, 5])
    """

    rank = 2


class DCDConv3d(_DCDNd):
    """DCD over (B, C, D, H, W): ``nn.Conv3d``'s arguments, then the options of ``DCD``."""

    rank = 3


DCD.layers = {1: DCDConv1d, 2: DCDConv2d, 3: DCDConv3d}
