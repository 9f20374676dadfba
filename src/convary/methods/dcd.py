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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convary.errors import CheckpointError, ShapeError
from convary.methods.config import MethodConfig, check_positive
from convary.nn import BatchNorm, DynamicConv, OneKernel, Router, Site
from convary.nn.norm import normalised, scale_and_shift
from convary.ops.coefficients import Factors
from convary.ops.geometry import CONV, Size, resolve
from convary.ops.shapes import plain_shape, unflatten

_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
_BLOCK = r"features\.(\d+)\.conv"
# Their blocks of MobileNetV2 are flat, their classifiers a sequence of one, or of two with dropout.
_NETWORKS = {
    "ResNet": ((r"fc\.(.*)", r"classifier.0.\1"), (r"fc\.(.*)", r"classifier.1.\1")),
    "MobileNetV2": (
        (r"features\.1\.conv\.1\.(.*)", r"features.1.conv.3.\1"),
        (r"features\.1\.conv\.2\.(.*)", r"features.1.conv.4.\1"),
        (rf"{_BLOCK}\.0\.(\d)\.(.*)", r"features.\1.conv.\2.\3"),
        (rf"{_BLOCK}\.1\.0\.(.*)", r"features.\1.conv.3.\2"),
        (rf"{_BLOCK}\.1\.1\.(.*)", r"features.\1.conv.4.\2"),
        (rf"{_BLOCK}\.2\.(.*)", r"features.\1.conv.6.\2"),
        (rf"{_BLOCK}\.3\.(.*)", r"features.\1.conv.7.\2"),
        (r"features\.18\.(.*)", r"conv.\1"),
        (r"classifier\.1\.(.*)", r"classifier.0.\1"),
    ),
}
_CLASSIFIER = 32  # latent and hidden width of the classifier, as released


@dataclass(frozen=True, kw_only=True)
class DCD(MethodConfig):
    """Options of DCD.

    Attributes:
        latent: How wide the latent space is, and what is pooled; see ``sizes``. "pointwise" as released for
            MobileNetV2, "basic" and "bottleneck" for the blocks of ResNets. "auto": ``convert`` takes the one of the
            layer's block; a layer on its own is "pointwise".
        squeeze: Width of z: of max(pooled inputs, latent ** 2) one part in so many; 16 is published, and 8 for
            MobileNetV2 0.5.
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


class Fusion(Factors):
    """What a DCD layer does to a sample.

    Attributes:
        filter: (B, 1, O) scale of each filter of the static kernel, L(x).
        latent: (B, latent, latent) matrix that fuses the latent channels, Phi(x).
    """

    __slots__ = ()
    filter: Tensor
    latent: Tensor


class FusionRouter(Router):
    """Makes Phi and L from pooled features.

    Args:
        in_channels: C.
        out_channels: O.
        latent: Width of the latent space.
        pool: Positions per axis that are left of x; 1 or 2.
        rank: Spatial axes of x.
        hidden: Width of z.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        latent: int,
        pool: int,
        rank: int,
        hidden: int,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__(in_channels)
        factory: dict[str, Any] = {"bias": False, "device": device, "dtype": dtype}
        self.pool, self.sizes = pool, [latent**2, out_channels]
        self.squeeze = nn.Linear(in_channels * pool**rank, hidden, **factory)
        self.gate = nn.Linear(hidden, hidden, **factory)
        self.heads = nn.Linear(hidden, sum(self.sizes), **factory)
        self.initialise_()

    def initialise_(self) -> None:
        """Normal, and small."""
        super().initialise_()
        for linear in (self.squeeze, self.gate, self.heads):
            nn.init.normal_(linear.weight, 0, 0.01)

    def _route(self, x: Tensor) -> Fusion:
        return self.coefficients((halves(x) if self.pool == 2 else x.flatten(2).mean(2)).to(self.dtype()))

    def coefficients(self, vector: Tensor) -> Fusion:
        """filter: (B, 1, O) and latent: (B, latent, latent), from pooled features (B, C * pool ** rank)."""
        v = self.squeeze(vector)
        phi, scale = self.heads(v * hsigmoid(self.gate(v))).split_with_sizes(self.sizes, 1)
        width = math.isqrt(self.sizes[0])
        return Fusion(filter=hsigmoid(scale).unsqueeze(1), latent=unflatten(phi, 1, (width, width)))

    def neutral_(self) -> None:
        """Zero logits: every filter's scale is 1, and Phi 0."""
        nn.init.zeros_(self.heads.weight)


def hsigmoid(t: Tensor) -> Tensor:
    """``relu6(t + 3) / 3``, from 0 to 2."""
    return F.relu6(t + 3) / 3


def halves(x: Tensor) -> Tensor:
    """Means over the halves of every axis, (B, C, *S) to (B, C * 2 ** rank): adaptive pooling to 2, for any size.

    The halves of an odd axis share its middle, as in ``F.adaptive_avg_pool2d``.
    """
    for _ in range(2, x.ndim):  # each turn takes the first axis that is left and puts its halves last
        size = x.shape[2]
        x = torch.stack([x[:, :, : (size + 1) // 2].mean(2), x[:, :, size // 2 :].mean(2)], -1)
    return x.flatten(1)


def pad_or_cut(x: Tensor, sides: Sequence[int]) -> Tensor:
    """``F.pad`` with zeros that cuts by slices: Core ML and OpenCV pad by no negative number."""
    if not all(type(side) is int for side in sides):  # computed from a size that is free in the graph
        return F.pad(x, list(sides))
    if min(sides) < 0:
        pairs = list(zip(sides[::2], sides[1::2], strict=True))[::-1]  # first axis first
        x = x[(..., *(slice(max(-before, 0), min(after, 0) or None) for before, after in pairs))]
    return F.pad(x, [max(side, 0) for side in sides]) if max(sides) > 0 else x


class _Decomposed(OneKernel):
    """What the convolutions and the classifier have in common; ``kernel`` is W0."""

    takes = Fusion
    released_network = _NETWORKS
    router: FusionRouter
    q: nn.Parameter
    p: nn.Parameter

    def make_residual(self, C: int, O: int, latent: int, **factory: Any) -> None:
        """Q (latent, C), P (O, latent) and the two normalisations, uninitialised."""
        self.q = nn.Parameter(torch.empty(latent, C, **factory))
        self.p = nn.Parameter(torch.empty(O, latent, **factory))
        self.norm1, self.norm2 = BatchNorm(latent, **factory), BatchNorm(latent, **factory)

    def initialise_(self) -> None:
        """Normal with the fan-out of each map; bias zero."""
        super().initialise_()
        taps = math.prod(self.kernel.shape[2:])
        for weight, fan_out in (
            (self.weight, self.kernel.shape[0] * taps),
            (self.q, len(self.q)),
            (self.p, len(self.p)),
        ):
            nn.init.normal_(weight, 0, math.sqrt(2 / fan_out))
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def residual(self, q: Tensor, fusion: Fusion) -> Tensor:
        """``P (BN(Phi q) + q)`` with ``q = BN(Q x)``: (B, latent, *S) to (B, O, *S)."""
        flat = normalised(self.norm1, q).flatten(2)
        fused = normalised(self.norm2, fusion.latent @ flat) + flat
        return unflatten(self.p @ fused, 2, q.shape[2:])

    @property
    def size(self) -> str:
        """The latent width."""
        return f"latent {len(self.q)}"

    def extra_options(self) -> str:
        """The latent width."""
        return f"latent={len(self.q)}"

    def macs(self, positions: int) -> dict[str, int]:
        """Of W0, and of Q, Phi and P; nothing is assembled."""
        per_position = self.weight.numel() + self.q.numel() + len(self.q) ** 2 + self.p.numel()
        return {"convolution": per_position * positions, "routing": self.router.macs(), "assembly": 0}

    def kernels(self, coeffs: Fusion) -> Tensor:
        """In eval mode, where the normalisations are linear: (B, O, C, *k), dense even where W0 has groups."""
        weight = self._dense()  # (O, C, *k)
        weight = coeffs.filter[:, 0].reshape(-1, weight.shape[0], *[1] * (weight.ndim - 1)) * weight
        residual = self._fused(coeffs) @ (scale_and_shift(self.norm1)[0][:, None] * self.q)  # (B, O, C)
        T = math.prod(weight.shape[3:])
        centre = F.one_hot(torch.tensor(self._centre(), device=weight.device), T)
        taps = residual.unsqueeze(3) * centre.to(residual.dtype)
        return weight + taps.reshape(*residual.shape, *weight.shape[3:])

    def biases(self, coeffs: Fusion) -> Tensor:
        """In eval mode: (B, O)."""
        shift = self._fused(coeffs) @ scale_and_shift(self.norm1)[1] + self.p @ scale_and_shift(self.norm2)[1]
        return shift if self.bias is None else shift + coeffs.filter[:, 0] * self.bias

    def _fused(self, coeffs: Fusion) -> Tensor:
        """``P (s Phi + 1)`` with the second normalisation's scale s: (B, O, latent)."""
        unit = torch.eye(len(self.q), device=self.q.device, dtype=self.q.dtype)
        return self.p @ (scale_and_shift(self.norm2)[0][:, None] * coeffs.latent + unit)

    def _dense(self) -> Tensor:
        """W0 without groups, (O, C, *k)."""
        return self.kernel.unsqueeze(2)

    def _centre(self) -> int:
        """Number of the tap that Q reads."""
        return 0

    def absorb_(self, scale: Tensor, shift: Tensor) -> Tensor | None:
        """W0, P and the bias are scaled; the shift, which L would scale, is left."""
        self.weight.mul_(scale.reshape(-1, *[1] * (self.weight.ndim - 2)))
        self.p.mul_(scale[:, None])
        if self.bias is not None:
            self.bias.mul_(scale)
        return shift

    @torch.no_grad()
    def load_static(self, weight: Tensor, bias: Tensor | None, noise: float, router: Router | None = None) -> None:
        """Become a static layer, exactly: L is 1 whatever the input, and P is 0.

        Args:
            weight: (O, C/G, *k) or (O, C).
            bias: (O,) or None.
            noise: Not used: there are no experts that would have to differ.
            router: Not used.
        """
        if self.weight.is_meta:
            return
        self.router.neutral_()
        nn.init.zeros_(self.p)
        self.weight.copy_(weight)
        if self.bias is not None and bias is not None:
            self.bias.copy_(bias)

    def from_released(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """liyunsheng13/dcd's layouts: of its ResNets, its MobileNetV2 and its classifier."""
        kind = next((k for k in ("conv_", "cls_") if f"{k}q.weight" in tensors), "")
        state = {ours: tensors[theirs] for ours, theirs in self.released_names(kind).items()}
        state["weight"] = state["weight"].unsqueeze(0)
        state |= {name: tensors[f"{kind}{name}.weight"].flatten(1) for name in ("q", "p")}
        heads = [tensors[f"fc_{head}.weight"] for head in ("phi", "scale")]
        return state | {"router.heads.weight": torch.cat(heads)}

    def to_released(self) -> dict[str, Tensor]:
        """liyunsheng13/dcd's layout, by the layer's sort."""
        kind = self.released_kind()
        own = self.state_dict()
        own["weight"] = own["weight"].squeeze(0)
        state = {theirs: own[ours] for ours, theirs in self.released_names(kind).items()}
        points = () if kind == "cls_" else (1,) * (self.weight.ndim - 3)
        state |= {f"{kind}{name}.weight": own[name].reshape(*own[name].shape, *points) for name in ("q", "p")}
        phi, scale = own["router.heads.weight"].split(self.router.sizes)
        return state | {"fc_phi.weight": phi, "fc_scale.weight": scale}

    def released_kind(self) -> str:
        """What the authors write in front of q and p."""
        return "cls_"

    def released_names(self, kind: str) -> dict[str, str]:
        """Names of the tensors that are alike: ours, theirs."""
        static = "cls" if kind == "cls_" else "conv"
        names = {"weight": f"{static}.weight", "router.squeeze.weight": "fc.0.weight"}
        names |= {"router.gate.weight": "fc.1.fc.0.weight"}
        names |= {f"norm{i}.{leaf}": f"bn{i}.{leaf}" for i in (1, 2) for leaf in _NORM}
        return names if self.bias is None else names | {"bias": f"{static}.bias"}


class _DCDNd(_Decomposed, DynamicConv):
    config_type = DCD
    config: DCD
    mixed_bias = False

    def make_weight(self, **factory) -> None:
        """W0 and the residual."""
        self.weight = nn.Parameter(torch.empty(1, *self.kernel_shape, **factory))
        latent = self.config.sizes(self.in_channels, self.out_channels, self.rank)[0]
        self.make_residual(self.in_channels, self.out_channels, latent, **factory)

    def make_router(self, **factory) -> Router:
        latent, pool, hidden = self.config.sizes(self.in_channels, self.out_channels, self.rank)
        return FusionRouter(self.in_channels, self.out_channels, latent, pool, self.rank, hidden, **factory)

    def convolve(self, x: Tensor, coeffs: Fusion, padding: Size | str) -> Tensor:
        """The scaled static convolution, and the residual on the centre tap."""
        conv = CONV[self.rank]
        padded, g = resolve(x, self.kernel_size, self.stride, padding, self.dilation, self.groups)
        static = conv(padded, self.kernel, self.bias, g.stride, g.padding, g.dilation, g.groups)
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
        dense = blocks * self.kernel.reshape(G, O // G, 1, C_group, *self.kernel_size)
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


class DCDLinear(_Decomposed):
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

    def __init__(self, in_features: int, out_features: int, bias: bool = True, device=None, dtype=None) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.in_features, self.out_features = in_features, out_features
        self.weight = nn.Parameter(torch.empty(1, out_features, in_features, **factory))
        self.register_parameter("bias", nn.Parameter(torch.empty(out_features, **factory)) if bias else None)
        self.make_residual(in_features, out_features, _CLASSIFIER, **factory)
        self.router = FusionRouter(in_features, out_features, _CLASSIFIER, 1, 1, _CLASSIFIER, **factory)
        self.initialise_()

    @classmethod
    def from_linear(cls, linear: nn.Linear) -> DCDLinear:
        """A freshly initialised layer with the sizes, dtype, device and mode of a static one."""
        layer = cls(
            linear.in_features, linear.out_features, linear.bias is not None, linear.weight.device, linear.weight.dtype
        )
        return layer.train(linear.training)

    def forward(self, x: Tensor, coeffs: Any = None) -> Tensor:
        """(B, *, C) to (B, *, O).

        Raises:
            ShapeError: x has another number of features, or no batch axis.
        """
        if x.ndim == 1:
            return self.forward(x.unsqueeze(0), coeffs).squeeze(0)
        if x.ndim < 2 or plain_shape(x)[-1] != self.in_features:
            raise ShapeError(f"DCDLinear wants x of shape (B, *, {self.in_features}); got {tuple(x.shape)}")
        maps = (x.unsqueeze(1) if x.ndim == 2 else x.flatten(1, -2)).transpose(1, 2)  # (B, C, P)
        coeffs = self.coefficients(maps) if coeffs is None else self.given(coeffs)
        static = F.linear(maps.transpose(1, 2), self.kernel, self.bias).transpose(1, 2)
        scaled = coeffs.filter.transpose(1, 2) * static
        y = scaled + self.residual(self.q @ maps, coeffs)
        return y.transpose(1, 2).reshape(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        """Like ``nn.Linear``."""
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, {self.extra_options()}"


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
