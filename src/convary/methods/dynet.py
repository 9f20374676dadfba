# SPDX-License-Identifier: Apache-2.0
"""DyNet: a coefficient per output channel.

Output channel o of the dynamic kernel is ``sum_i eta[i, o] w[i, o]`` over g_t static kernels, with
``eta = sigmoid(FC(GAP(x)))`` of size g_t x O.

Zhang, Zhang, Wang, Zhong, "DyNet: Dynamic Convolution for Accelerating Convolutional Neural Networks",
arXiv 2004.10694. No code was released. In the paper one predictor per block serves all its dynamic convolutions; here
every layer predicts from its own input. The paper mixes feature maps in training and kernels in inference and states
that they are equal; they are (tests/methods/test_methods.py), so here the strategy is chosen by cost in both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from convary.methods.config import BankConfig, check_positive
from convary.nn import DynamicConv, PerceptronRouter, Router, Site
from convary.nn.arguments import Device, Dtype, PaddingMode, Size
from convary.nn.upcycle import per_expert_
from convary.ops import Coefficients
from convary.ops.shapes import unflatten


@dataclass(frozen=True, kw_only=True)
class DyNet(BankConfig):
    """Options of DyNet.

    Attributes:
        experts: g_t, kernels per output channel; 6 is best in the paper's ablation of 1, 2, 4, 6.
        reduction: None: one linear layer predicts the coefficients (mobile networks). A number: a hidden layer of
            max(1, C // reduction) units before it; the paper's ResNets use 4.

    Examples:
        >>> import convary as cv
        >>> static = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
        >>> dynamic = cv.convert(static, cv.DyNet(experts=3), cv.where.all())
        >>> type(dynamic[2]).__name__, dynamic[2].num_experts
        ('DyNetConv2d', 3)
    """

    name: ClassVar[str] = "dynet"
    title: ClassVar[str] = "DyNet"
    citation: ClassVar[str] = "Zhang et al., DyNet, arXiv 2004.10694"

    experts: int = 6
    reduction: int | None = None

    def __post_init__(self) -> None:
        """Check the numbers."""
        super().__post_init__()
        if self.reduction is not None:
            check_positive("reduction", self.reduction)

    @classmethod
    def placement(cls, site: Site) -> bool:
        """The convolutions inside the blocks; stem, shortcuts and head stay static.

        This is our reading: the paper draws dynamic blocks and lists no layers.
        """
        if not site.is_conv or site.gate or site.shortcut:
            return False
        return site.block is not None if site.block_count else site.index > 0


class FilterRouter(PerceptronRouter):
    """``sigmoid(FC(pool(x)))`` with one coefficient per kernel and output channel.

    Args:
        in_channels: C.
        num_experts: K.
        out_channels: O.
        hidden: Width of a hidden layer, or None for none.
    """

    def __init__(
        self,
        in_channels: int,
        num_experts: int,
        out_channels: int,
        hidden: int | None,
        device: Device = None,
        dtype: Dtype = None,
    ) -> None:
        super().__init__(in_channels, "sigmoid", device=device)
        self.shape = (num_experts, out_channels)
        width = in_channels if hidden is None else hidden
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        if hidden is not None:
            self.squeeze = nn.Linear(in_channels, hidden, **factory)
        self.linear = nn.Linear(width, num_experts * out_channels, **factory)

    @property
    def head(self) -> nn.Linear:
        """The predictor."""
        return self.linear

    def to_coefficients(self, pieces: Sequence[Tensor]) -> Coefficients:
        """filter: (B, K, O)."""
        return Coefficients(filter=unflatten(pieces[0], 1, self.shape))


class _DyNetNd(DynamicConv):
    config_type = DyNet
    config: DyNet

    if TYPE_CHECKING:  # by scripts/signatures.py

        def __init__(
            self, in_channels: int, out_channels: int, kernel_size: Size, stride: Size = 1, padding: Size | str = 0,
            dilation: Size = 1, groups: int = 1, bias: bool = True, padding_mode: PaddingMode = "zeros",
            device: Device = None, dtype: Dtype = None, *, experts: int = 6, reduction: int | None = None
        ) -> None:  # fmt: skip
            """Torch's arguments, then the method's options, which its config explains."""

    def make_router(self, **factory) -> Router:
        reduction = self.config.reduction
        hidden = None if reduction is None else max(1, int(self.in_channels / reduction))
        return FilterRouter(self.in_channels, self.config.experts, self.out_channels, hidden, **factory)

    def initialise_(self) -> None:
        """Every kernel Kaiming-normal (fan-out) on its own; the predictor like ``nn.Linear``."""
        super().initialise_()
        per_expert_(self.weight, lambda kernel: nn.init.kaiming_normal_(kernel, mode="fan_out", nonlinearity="relu"))


class DyNetConv1d(_DyNetNd):
    """DyNet over (B, C, L): ``nn.Conv1d``'s arguments, then the options of ``DyNet``."""

    rank = 1


class DyNetConv2d(_DyNetNd):
    """DyNet over (B, C, H, W): ``nn.Conv2d``'s arguments, then the options of ``DyNet``.

    >>> import torch
    >>> layer = DyNetConv2d(8, 16, 3, padding=1, experts=6)
    >>> layer(torch.randn(2, 8, 5, 5)).shape
    torch.Size([2, 16, 5, 5])
    """

    rank = 2


class DyNetConv3d(_DyNetNd):
    """DyNet over (B, C, D, H, W): ``nn.Conv3d``'s arguments, then the options of ``DyNet``."""

    rank = 3


DyNet.layers = {1: DyNetConv1d, 2: DyNetConv2d, 3: DyNetConv3d}
