# SPDX-License-Identifier: Apache-2.0
"""CGC, context-gated convolution: one kernel, every weight of it scaled by a gate that the whole map decides.

The map is pooled to the size of the kernel, T positions, and each channel's T numbers are encoded in D = T // 2 + 1:
``z = E pool(x)``. One branch decodes a gate for each channel and tap, ``u = H1 relu(BN(z))``. The other lets channels
interact, from C to O, and decodes one for each filter and tap, ``v = H2 relu(BN(I relu(BN(z))))``. The kernel is
``W[o, c, t] sigmoid(u[c, t] + v[o, t])``.

Lin, Ma, Liu, Chang, "Context-Gated Convolution", ECCV 2020.

Differences from the released code, of which the last version does not construct (an undefined name): maps need not be
square, the bias is added, groups are possible, as is any other of ``nn.ConvNd``'s arguments; a channel count that 16
does not divide too. A kernel of one tap, which the paper leaves static and ``plan`` refuses, is a layer like others: a
number per channel and one per filter, from the mean of the map.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from convary.errors import CheckpointError, ConfigError
from convary.methods.config import MethodConfig, check_positive
from convary.nn import AssembledConv, BatchNorm, Router, Site
from convary.nn.arguments import Device, Dtype, PaddingMode, Size
from convary.nn.layout import BATCH_NORM, ONE_KERNEL, Row, renamed
from convary.nn.norm import normalised
from convary.nn.pool import adaptive_avg_pool
from convary.ops.coefficients import Factors
from convary.ops.shapes import unflatten

# The authors' names of the router's parts.
_LINEAR = {"encoder": "ce", "interaction": "ci", "heads.channel": "gd", "heads.filter": "gd2"}
_NORMS = {"channel_norm": "ce_bn", "interaction_norm": "ci_bn2", "filter_norm": "ci_bn"}


@dataclass(frozen=True, kw_only=True)
class CGC(MethodConfig):
    """Options of CGC.

    Attributes:
        interaction: Channels that interact with each other: C goes to O in groups of so many, or of a few more where
            they have to divide both; 16 is published.

    Examples:
        >>> from torch import nn
        >>> layer = CGC(interaction=8).build(nn.Conv2d(16, 32, 3, padding=1))
        >>> type(layer).__name__, tuple(layer.weight.shape)
        ('CGC2d', (1, 32, 16, 3, 3))
    """

    name: ClassVar[str] = "cgc"
    title: ClassVar[str] = "CGC"
    citation: ClassVar[str] = "Lin et al., Context-Gated Convolution, ECCV 2020"

    interaction: int = 16

    def __post_init__(self) -> None:
        """Check the number."""
        super().__post_init__()
        check_positive("interaction", self.interaction)

    def refuses(self, module: nn.Module) -> str | None:
        """CGC leaves kernels of one tap alone."""
        if isinstance(module, nn.Linear):
            return super().refuses(module)
        return "CGC gates the taps of a kernel, and leaves those of one tap static" if _is_point(module) else None

    def build(self, module: Any) -> nn.Module:
        """A CGC layer, of a kernel of one tap too."""
        if isinstance(module, nn.Linear):
            raise ConfigError(f"{self.title} has no dynamic form of a linear layer")
        return self.layers[len(module.kernel_size)].from_conv(module, self)

    @classmethod
    def placement(cls, site: Site) -> bool:
        """Every convolution but those of gates, the stem included; kernels of one tap are refused."""
        return site.is_conv and not site.gate


def _is_point(conv: Any) -> bool:
    return math.prod(conv.kernel_size) == 1


class GateLogits(Factors):
    """Logits of the gate, whose sum goes through a sigmoid.

    Attributes:
        channel: (B, C, T).
        filter: (B, O, T).
    """

    __slots__ = ()
    channel: Tensor
    filter: Tensor


class GateRouter(Router):
    """Encodes the context and decodes the gate's logits.

    Args:
        in_channels: C.
        out_channels: O.
        kernel_size: Of the convolution, and of what is left of the map.
        interaction: Channels per group of the interaction.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, ...],
        interaction: int,
        device: Device = None,
        dtype: Dtype = None,
    ) -> None:
        super().__init__(in_channels)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        linear: dict[str, Any] = {"bias": False, **factory}
        T = math.prod(kernel_size)
        D = T // 2 + 1
        most, common = max(in_channels // interaction, 1), math.gcd(in_channels, out_channels)
        self.groups = max(n for n in range(1, most + 1) if common % n == 0)
        self.kernel_size, self.out_channels = kernel_size, out_channels
        self.encoder = nn.Linear(T, D, **linear)
        self.channel_norm = BatchNorm(in_channels, **factory)
        self.interaction_norm = BatchNorm(in_channels, **factory)
        self.interaction = nn.Linear(in_channels // self.groups, out_channels // self.groups, **linear)
        self.filter_norm = BatchNorm(out_channels, **factory)
        self.heads = nn.ModuleDict({"channel": nn.Linear(D, T, **linear), "filter": nn.Linear(D, T, **linear)})

    def _route(self, x: Tensor) -> GateLogits:
        return self.coefficients(adaptive_avg_pool(x, self.kernel_size).flatten(2).to(self.dtype()))

    def coefficients(self, vector: Tensor) -> GateLogits:
        """channel: (B, C, T) and filter: (B, O, T), from the pooled map (B, C, T)."""
        z = self.encoder(vector)  # (B, C, D)
        channel = self.heads["channel"](F.relu(normalised(self.channel_norm, z)))
        groups = unflatten(F.relu(normalised(self.interaction_norm, z)), 1, (self.groups, -1)).transpose(2, 3)
        mixed = self.interaction(groups).transpose(2, 3).flatten(1, 2)  # (B, O, D)
        return GateLogits(channel=channel, filter=self.heads["filter"](F.relu(normalised(self.filter_norm, mixed))))

    def neutral_(self) -> None:
        """Zero logits: the gate is 1/2."""
        for head in self.heads.values():
            nn.init.zeros_(head.weight)  # type: ignore[arg-type]

    def macs(self) -> int:
        """Each channel is encoded and decoded, each group interacts, each filter is decoded."""
        D, T = self.encoder.weight.shape
        C, O = self.in_channels, self.out_channels
        return (2 * C + O) * D * T + self.groups * self.interaction.weight.numel() * D


class _CGCNd(AssembledConv):
    config_type = CGC
    config: CGC
    takes = GateLogits

    if TYPE_CHECKING:  # by scripts/signatures.py

        def __init__(
            self, in_channels: int, out_channels: int, kernel_size: Size, stride: Size = 1, padding: Size | str = 0,
            dilation: Size = 1, groups: int = 1, bias: bool = True, padding_mode: PaddingMode = "zeros",
            device: Device = None, dtype: Dtype = None, *, interaction: int = 16
        ) -> None:  # fmt: skip
            """Torch's arguments, then the method's options, which its config explains."""

    def make_router(self, **factory: Any) -> Router:
        return GateRouter(self.in_channels, self.out_channels, self.kernel_size, self.config.interaction, **factory)

    @property
    def label(self) -> str:
        """What the method adds to the kernel."""
        return "gated"

    def extra_options(self) -> str:
        """Channels that interact."""
        return f"interaction={self.config.interaction}"

    def initialise_(self) -> None:
        """Kaiming-normal (fan-out) as in the authors' networks; the router like ``nn.Linear``."""
        super().initialise_()
        nn.init.kaiming_normal_(self.weight[0], mode="fan_out", nonlinearity="relu")

    def kernels(self, coeffs: GateLogits) -> Tensor:
        """(B, O, C/G, *k)."""
        G, O = self.groups, self.out_channels
        channel = unflatten(coeffs.channel, 1, (G, 1, -1))  # (B, G, 1, C/G, T)
        filter = unflatten(coeffs.filter, 1, (G, O // G, 1))  # (B, G, O/G, 1, T)
        gate = (channel + filter).sigmoid().flatten(1, 2)
        return unflatten(gate, 3, self.kernel_size) * self.whole(self.weight[0])  # a sum of logits carries no scale

    def take_(self, weight: Tensor, noise: float, router: Router | None) -> float:
        """Become a static layer, exactly: the gate is 1/2 for every input, and ``scale`` 2. No experts would differ."""
        self.weight.copy_(weight / self.compensate_(0.5))
        return 1.0

    def released(self, present: Container[str] | None) -> Iterator[Row]:
        """XudongLinthu/context-gated-convolution's layout.

        Raises:
            CheckpointError: the layer has a bias, which their code keeps and never adds.
        """
        if self.bias is not None:
            raise CheckpointError("the released CGC code never adds its bias; got a layer with bias, use bias=False")
        yield Row("weight", "weight", ONE_KERNEL)
        yield from renamed({f"router.{ours}": theirs for ours, theirs in _LINEAR.items()}, ("weight",))
        yield from renamed({f"router.{ours}": theirs for ours, theirs in _NORMS.items()}, BATCH_NORM)


class CGC1d(_CGCNd):
    """CGC over (B, C, L): ``nn.Conv1d``'s arguments, then the options of ``CGC``."""

    rank = 1


class CGC2d(_CGCNd):
    """CGC over (B, C, H, W): ``nn.Conv2d``'s arguments, then the options of ``CGC``.

    >>> import torch
    >>> layer = CGC2d(64, 128, 3, padding=1)
    >>> layer(torch.randn(1, 64, 5, 7)).shape
    torch.Size([1, 128, 5, 7])
    """

    rank = 2


class CGC3d(_CGCNd):
    """CGC over (B, C, D, H, W): ``nn.Conv3d``'s arguments, then the options of ``CGC``."""

    rank = 3


CGC.layers = {1: CGC1d, 2: CGC2d, 3: CGC3d}
