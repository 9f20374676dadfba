# SPDX-License-Identifier: Apache-2.0
"""DyConv: attention over convolution kernels.

``W(x) = sum_k pi_k W_k``, ``b(x) = sum_k pi_k b_k``, ``pi = softmax(FC2(relu(FC1(GAP(x)))) / temperature)``, sum 1.

Chen, Dai, Liu, Chen, Yuan, Liu, "Dynamic Convolution: Attention over Convolution Kernels", CVPR 2020. No official
code exists. Where third-party code differs, an option reproduces it: ``extra_hidden=1`` (kaijieshi7: C // 4 + 1
hidden units), ``hidden_bias=True`` (TArdelean). Without them the parameter counts of the DyConv rows in the ODConv
paper come out exactly. The temperature goes from 30 to 1, linearly, over the first ten epochs (Sec. 3.3).
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor, nn

from convary.errors import CheckpointError, ConfigError
from convary.methods.config import Annealing, BankConfig, check_positive
from convary.methods.perceptron import MixedLinear
from convary.nn import DynamicConv, MLPRouter, Router, Site, check_temperature
from convary.nn.arguments import Device, Dtype, PaddingMode, Size
from convary.nn.layout import SAME, Row, trailing
from convary.nn.router import kaiming_
from convary.nn.upcycle import per_expert_

# What they call the router's two layers, the bank and the biases.
_KAIJIESHI7 = ("attention.fc1", "attention.fc2", "weight", "bias")
_TARDELEAN = ("attention.to_scores.0", "attention.to_scores.2", "kernels_weights", "kernels_bias")


@dataclass(frozen=True, kw_only=True)
class DyConv(BankConfig):
    """Options of DyConv.

    Attributes:
        experts: K; accuracy stops rising past 4 (Table 5).
        reduction: The router has C // reduction hidden units.
        activation: "softmax" as published, or "sigmoid" (the paper's ablation).
        temperature: Start value; convary.anneal changes it.
        extra_hidden: Hidden units added to C // reduction. Where that is one to three, 16 more gain a point.
        hidden_bias: Whether the router's first layer has a bias.

    Examples:
        >>> import convary as cv
        >>> static = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
        >>> dynamic = cv.convert(static, cv.DyConv(experts=2, temperature=30), cv.where.all())
        >>> type(dynamic[2]).__name__, dynamic[2].num_experts
        ('DyConv2d', 2)
    """

    name: ClassVar[str] = "dyconv"
    title: ClassVar[str] = "DyConv"
    citation: ClassVar[str] = "Chen et al., Dynamic Convolution, CVPR 2020"
    annealing: ClassVar[Annealing | None] = Annealing(start=30.0, stop=1.0, epochs=10)

    experts: int = 4
    reduction: int = 4
    activation: Literal["softmax", "sigmoid"] = "softmax"
    temperature: float = 1.0
    extra_hidden: int = 0
    hidden_bias: bool = False

    def __post_init__(self) -> None:
        """Check the numbers."""
        super().__post_init__()
        check_positive("reduction", self.reduction)
        check_temperature(self.temperature)
        if self.extra_hidden < 0:
            raise ConfigError(f"extra_hidden must be at least 0; got {self.extra_hidden}")

    def refuses(self, module: nn.Module) -> str | None:
        """DyConv takes convolutions and linear layers."""
        return None

    def build(self, module: nn.Module) -> nn.Module:
        """A DyConv layer; for a linear layer the paper's dynamic perceptron."""
        if not isinstance(module, nn.Linear):
            return super().build(module)
        return MixedLinear.from_linear(
            module,
            experts=self.experts,
            activation=self.activation,
            reduction=self.reduction,
            temperature=self.temperature,
        )

    @classmethod
    def placement(cls, site: Site) -> bool:
        """All convolutions but the first; the 1x1 after MobileNetV2's last block stays static too.

        The text says only "except the first"; the published parameter counts need the last 1x1 static.
        ``where.all() & ~where.first()`` gives the placement of ODConv's re-implementation.
        """
        if not site.is_conv or site.gate:
            return False
        return site.index > 0 and (site.block is not None or site.block_count == 0)


class SqueezeExcitation(MLPRouter):
    """DyConv's attention: both layers Kaiming-normal (fan-out), biases zero."""

    def initialise_(self) -> None:
        """As published."""
        super().initialise_()
        for linear in (self.squeeze, self.head):
            kaiming_(linear)


class _DyConvNd(DynamicConv):
    config_type = DyConv
    config: DyConv

    if TYPE_CHECKING:  # by scripts/signatures.py

        def __init__(
            self, in_channels: int, out_channels: int, kernel_size: Size, stride: Size = 1, padding: Size | str = 0,
            dilation: Size = 1, groups: int = 1, bias: bool = True, padding_mode: PaddingMode = "zeros",
            device: Device = None, dtype: Dtype = None, *, experts: int = 4, reduction: int = 4,
            activation: Literal["softmax", "sigmoid"] = "softmax", temperature: float = 1.0, extra_hidden: int = 0,
            hidden_bias: bool = False
        ) -> None:  # fmt: skip
            """Torch's arguments, then the method's options, which its config explains."""

    def make_router(self, **factory) -> Router:
        config = self.config
        hidden = max(1, int(self.in_channels / config.reduction) + config.extra_hidden)
        return SqueezeExcitation(
            self.in_channels,
            hidden,
            config.experts,
            config.activation,
            config.temperature,
            config.hidden_bias,
            **factory,
        )

    def initialise_(self) -> None:
        """Every expert Kaiming-uniform on its own."""
        super().initialise_()
        per_expert_(self.weight, nn.init.kaiming_uniform_)

    def released(self, present: Container[str] | None) -> Iterator[Row]:
        """kaijieshi7's layout, or TArdelean's where the file is his; to write, where the hidden layer has a bias.

        kaijieshi7: the router's layers are 1x1 convolutions, the temperature is not saved, and the 3-D form has no
        second bias, which is a zero bias. TArdelean: they are linear layers.

        Raises:
            CheckpointError: a second bias that is not zero would have to go into a file without one.
        """
        tardelean = self.config.hidden_bias if present is None else _TARDELEAN[2] in present
        first, second, bank, biases = _TARDELEAN if tardelean else _KAIJIESHI7
        how = SAME if tardelean else trailing(self.rank)
        yield Row("weight", bank)
        yield Row("router.squeeze.weight", f"{first}.weight", how)
        yield Row("router.linear.weight", f"{second}.weight", how)
        if tardelean or self.rank < 3 or f"{second}.bias" in (present or ()):
            yield Row("router.linear.bias", f"{second}.bias")
        elif present is None and self.get_parameter("router.linear.bias").any():
            raise CheckpointError("kaijieshi7's 3-D layout has no second bias in the router, and this one is not zero")
        if self.config.hidden_bias:
            yield Row("router.squeeze.bias", f"{first}.bias")
        if self.bias is not None:
            yield Row("bias", biases)

    def from_released(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As always, and a second bias of zero where the file has none."""
        return {"router.linear.bias": torch.zeros(self.num_experts)} | super().from_released(tensors)


class DyConv1d(_DyConvNd):
    """DyConv over (B, C, L): ``nn.Conv1d``'s arguments, then the options of ``DyConv``."""

    rank = 1


class DyConv2d(_DyConvNd):
    """DyConv over (B, C, H, W): ``nn.Conv2d``'s arguments, then the options of ``DyConv``.

    >>> layer = DyConv2d(8, 16, 3, padding=1, experts=4, temperature=30.0)
    >>> layer(torch.randn(2, 8, 5, 5)).shape
    torch.Size([2, 16, 5, 5])
    """

    rank = 2


class DyConv3d(_DyConvNd):
    """DyConv over (B, C, D, H, W): ``nn.Conv3d``'s arguments, then the options of ``DyConv``."""

    rank = 3


DyConv.layers = {1: DyConv1d, 2: DyConv2d, 3: DyConv3d}
