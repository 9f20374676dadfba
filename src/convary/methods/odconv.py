# SPDX-License-Identifier: Apache-2.0
"""ODConv: omni-dimensional dynamic convolution, attention along all four axes of kernel space.

``y = a_f * conv(a_c * x, sum_k a_w[k] a_s W_k)`` with channel, filter and spatial attention
``sigmoid(head(z) / T)``, kernel attention ``softmax(head(z) / T)`` and ``z = relu(BN(Linear(GAP(x))))``.

Li, Zhou, Yao, "Omni-Dimensional Dynamic Convolution", ICLR 2022. The released code shares a_s, a_c and a_f between the
K kernels; the paper's formula has one of each per kernel, and its ablation compares them: ``sharing="per_kernel"``.
The temperature goes from 30 to 1, linearly per iteration, over ten epochs, and divides the logits of all four heads.

Differences from the released code: any of ``nn.ConvNd``'s arguments works (theirs has no bias, no tuple kernels); the
bias is static, added after all attentions; a batch of one can be trained on; the four heads are one linear layer.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from torch import Tensor, nn

from convary.errors import CheckpointError, ConfigError, nearest
from convary.methods.config import Annealing, BankConfig, check_positive
from convary.nn import DynamicConv, PerceptronRouter, Router, Site, check_temperature, make_norm
from convary.nn.arguments import Device, Dtype, PaddingMode, Size
from convary.nn.layout import BATCH_NORM, Row, renamed, trailing
from convary.nn.upcycle import per_expert_
from convary.ops import Coefficients
from convary.ops.shapes import unflatten

Axis = Literal["channel", "filter", "tap", "kernel"]
AXES: tuple[Axis, ...] = get_args(Axis)
_RELEASED = {"channel": "channel_fc", "filter": "filter_fc", "tap": "spatial_fc", "kernel": "kernel_fc"}


@dataclass(frozen=True, kw_only=True)
class ODConv(BankConfig):
    """Options of ODConv.

    Attributes:
        experts: K; 1 and 4 are published.
        reduction: The hidden width is max(int(C / reduction), min_hidden).
        min_hidden: See reduction.
        attentions: Which of "channel", "filter", "tap" (the paper's spatial attention) and "kernel" there are.
            As published, the filter attention is left out of depthwise layers, the tap attention of 1x1 layers
            and the kernel attention where experts is 1.
        sharing: "shared": one channel, filter and tap attention for all kernels, as released. "per_kernel": one each.
        kernel_activation: "softmax" as published, or "sigmoid".
        temperature: Start value; convary.anneal changes it.
        norm: "batch" as published, "layer" or "none".

    Examples:
        >>> import convary as cv
        >>> static = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
        >>> dynamic = cv.convert(static, cv.ODConv(experts=2), cv.where.all())
        >>> type(dynamic[2]).__name__, dynamic[2].num_experts
        ('ODConv2d', 2)
    """

    name: ClassVar[str] = "odconv"
    title: ClassVar[str] = "ODConv"
    citation: ClassVar[str] = "Li et al., ODConv, ICLR 2022"
    annealing: ClassVar[Annealing | None] = Annealing(start=30.0, stop=1.0, epochs=10)

    experts: int = 4
    reduction: float = 16
    min_hidden: int = 16
    attentions: tuple[Axis, ...] = AXES
    sharing: Literal["shared", "per_kernel"] = "shared"
    kernel_activation: Literal["softmax", "sigmoid"] = "softmax"
    temperature: float = 1.0
    norm: Literal["batch", "layer", "none"] = "batch"

    def __post_init__(self) -> None:
        """Check the numbers and names."""
        super().__post_init__()
        if not isinstance(self.attentions, (tuple, list)):
            raise ConfigError(f"attentions must be a tuple of {', '.join(AXES)}; got {self.attentions!r}")
        object.__setattr__(self, "attentions", tuple(self.attentions))  # JSON gives a list
        check_positive("reduction", self.reduction)
        check_positive("min_hidden", self.min_hidden)
        check_temperature(self.temperature)
        for axis in self.attentions:
            if axis not in AXES:
                raise ConfigError(f"attentions are some of {', '.join(AXES)}; got {axis!r}{nearest(axis, AXES)}")
        if not self.attentions or len(set(self.attentions)) != len(self.attentions):
            raise ConfigError(f"attentions must name at least one axis, none twice; got {self.attentions!r}")

    @classmethod
    def placement(cls, site: Site) -> bool:
        """All convolutions but the stem and the projections of residual shortcuts."""
        return site.is_conv and site.index > 0 and not site.shortcut and not site.gate


class OmniAttention(PerceptronRouter):
    """The four attentions, from one hidden vector.

    Args:
        in_channels: C.
        hidden: Width of the hidden vector.
        sizes: Logits per axis, in the order of ``AXES``; an axis that is missing has no attention.
        K: Number of kernels.
        config: The method's options.
    """

    def __init__(
        self,
        in_channels: int,
        hidden: int,
        sizes: dict[str, int],
        K: int,
        config: ODConv,
        device: Device = None,
        dtype: Dtype = None,
    ) -> None:
        sigmoids = [size for axis, size in sizes.items() if axis != "kernel"]
        super().__init__(in_channels, config.kernel_activation, config.temperature, sigmoids, device)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.sizes = sizes
        self.copies = K if config.sharing == "per_kernel" else 1
        self.squeeze = nn.Linear(in_channels, hidden, bias=config.norm == "none", **factory)
        self.norm = make_norm(config.norm, hidden, **factory)
        self.heads = nn.Linear(hidden, sum(sizes.values()), **factory)
        self.initialise_()

    def initialise_(self) -> None:
        """Kaiming-normal (fan-out), every head on its own; the heads' biases zero."""
        super().initialise_()
        assert self.squeeze is not None
        nn.init.kaiming_normal_(self.squeeze.weight, mode="fan_out", nonlinearity="relu")
        for rows in self.heads.weight.split(list(self.sizes.values())):
            nn.init.kaiming_normal_(rows, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.heads.bias)

    @property
    def head(self) -> nn.Linear:
        """All heads side by side."""
        return self.heads

    def to_coefficients(self, pieces: Sequence[Tensor]) -> Coefficients:
        """Channel (B, 1|K, C), filter (B, 1|K, O), tap (B, 1|K, T), kernel (B, K); those that exist."""
        factors = dict(zip(self.sizes, pieces, strict=True))
        for axis, part in factors.items():
            if axis != "kernel":
                factors[axis] = part.unsqueeze(1) if self.copies == 1 else unflatten(part, 1, (self.copies, -1))
        return Coefficients(**factors)


class _ODConvNd(DynamicConv):
    config_type = ODConv
    config: ODConv
    mixed_bias = False
    router: OmniAttention

    if TYPE_CHECKING:  # by scripts/signatures.py

        def __init__(
            self, in_channels: int, out_channels: int, kernel_size: Size, stride: Size = 1, padding: Size | str = 0,
            dilation: Size = 1, groups: int = 1, bias: bool = True, padding_mode: PaddingMode = "zeros",
            device: Device = None, dtype: Dtype = None, *, experts: int = 4, reduction: float = 16,
            min_hidden: int = 16, attentions: tuple[Axis, ...] = ("channel", "filter", "tap", "kernel"),
            sharing: Literal["shared", "per_kernel"] = "shared",
            kernel_activation: Literal["softmax", "sigmoid"] = "softmax", temperature: float = 1.0,
            norm: Literal["batch", "layer", "none"] = "batch"
        ) -> None:  # fmt: skip
            """Torch's arguments, then the method's options, which its config explains."""

    def make_router(self, **factory) -> Router | None:
        config, K = self.config, self.config.experts
        copies = K if config.sharing == "per_kernel" else 1
        T = math.prod(self.kernel_size)
        depthwise = self.groups == self.in_channels == self.out_channels
        sizes = {
            "channel": copies * self.in_channels,
            "filter": 0 if depthwise else copies * self.out_channels,
            "tap": 0 if T == 1 else copies * T,
            "kernel": 0 if K == 1 else K,
        }
        sizes = {axis: size for axis, size in sizes.items() if size and axis in config.attentions}
        if not sizes:
            raise ConfigError(
                f"no attention is left for this layer: attentions={config.attentions!r} with experts={K}, "
                f"kernel_size={self.kernel_size}, groups={self.groups}; add 'channel', which every layer can have"
            )
        hidden = max(int(self.in_channels / config.reduction), config.min_hidden)
        return OmniAttention(self.in_channels, hidden, sizes, K, config, **factory)

    def initialise_(self) -> None:
        """Every kernel Kaiming-normal (fan-out) on its own."""
        super().initialise_()
        per_expert_(self.weight, lambda kernel: nn.init.kaiming_normal_(kernel, mode="fan_out", nonlinearity="relu"))

    def released(self, present: Container[str] | None) -> Iterator[Row]:
        """OSVAI/ODConv's layout: ``attention.fc``, ``.bn`` and four 1x1 convolutions, one per head.

        Raises:
            CheckpointError: to write, a bias or other attentions than theirs.
        """
        config = self.config
        usual = (config.sharing, config.norm, set(config.attentions)) == ("shared", "batch", set(AXES))
        if present is None and (self.bias is not None or not usual):
            raise CheckpointError(
                "the released ODConv layout holds layers without bias, with all four attentions, sharing='shared' and "
                f"norm='batch'; got bias={self.bias is not None}, {config}"
            )
        heads = {f"attention.{_RELEASED[axis]}": size for axis, size in self.router.sizes.items()}
        yield Row("weight", "weight")
        yield Row("router.squeeze.weight", "attention.fc.weight", trailing(2))
        yield Row("router.heads.weight", {f"{head}.weight": size for head, size in heads.items()}, trailing(2))
        yield Row("router.heads.bias", {f"{head}.bias": size for head, size in heads.items()})
        yield from renamed({"router.norm": "attention.bn"}, BATCH_NORM)


class ODConv1d(_ODConvNd):
    """ODConv over (B, C, L): ``nn.Conv1d``'s arguments, then the options of ``ODConv``."""

    rank = 1


class ODConv2d(_ODConvNd):
    """ODConv over (B, C, H, W): ``nn.Conv2d``'s arguments, then the options of ``ODConv``.

    >>> import torch
    >>> layer = ODConv2d(64, 128, 3, padding=1, experts=4)
    >>> layer(torch.randn(1, 64, 5, 5)).shape
    torch.Size([1, 128, 5, 5])
    """

    rank = 2


class ODConv3d(_ODConvNd):
    """ODConv over (B, C, D, H, W): ``nn.Conv3d``'s arguments, then the options of ``ODConv``."""

    rank = 3


ODConv.layers = {1: ODConv1d, 2: ODConv2d, 3: ODConv3d}
